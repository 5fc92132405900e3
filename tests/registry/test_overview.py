"""What the registry tells the trace store of policies, and that it tells nobody else."""

import functools
import json

import grpc
import pytest

from proto import registry_pb2 as pb
from proto.registry_pb2_grpc import ReviewStub
from registry.facts import read_policy
from registry.overview import MAX_LABEL_SETS, overview
from tests.patience import PATIENCE_S
from tests.registry.cluster import Cluster, Raw
from tests.registry.objects import pod
from tests.registry.test_service import FORGE, registry

STORE = "spiffe://cluster.local/ns/podlink-system/sa/podlink-traces"
ELSEWHERE = "spiffe://cluster.local/ns/shop/sa/podlink-traces"
WEB = "spiffe://cluster.local/ns/shop/sa/web"


def policy(spec: object, name: str = "db") -> Raw:
    return {
        "apiVersion": "podlink.dev/v1alpha1",
        "kind": "LinkPolicy",
        "metadata": {"name": name, "namespace": "shop", "uid": f"u-{name}", "generation": 3},
        "spec": spec,
    }


def test_a_policy_is_told_in_the_form_that_is_in_force() -> None:
    cluster = Cluster()
    good = read_policy(policy({"allow": [{"from": [{"namespace": "shop"}]}]}))
    cluster.model.change_policy(None, good)
    cluster.model.change_policy(good, read_policy(policy({"alow": []})))
    cluster.model.change_policy(None, read_policy(policy({"nonsense": 1}, "never")))
    answer = overview(cluster.model, "deny", with_labels=False)
    told = [(one.name, one.state, one.generation, one.spec) for one in answer.policies]
    spec = json.dumps({"allow": [{"from": [{"namespace": "shop"}]}]})
    assert told == [("db", "LastGood", 3, spec), ("never", "Closed", 0, "")]
    assert answer.mesh_default == "deny"
    assert not answer.accounts


@pytest.mark.attack_row(50)
def test_policies_too_large_for_a_message_keep_no_others_from_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registry.overview.MAX_POLICIES_BYTES", 1000)
    cluster = Cluster()
    for name, peers in (("a-large", 60), ("b", 1), ("c-larger", 64), ("d", 2)):
        allow = [{"from": [{"namespace": f"namespace-{n}"} for n in range(peers)]}]
        cluster.model.change_policy(None, read_policy(policy({"allow": allow}, name)))
    answer = overview(cluster.model, "deny", with_labels=False)
    assert [one.name for one in answer.policies] == ["b", "d"]


def test_labels_are_told_once_for_all_pods_that_carry_them_and_bounded() -> None:
    cluster = Cluster()
    cluster.pods(
        pod("a", "10.0.0.1", labels={"app": "a"}),
        pod("b", "10.0.0.2", labels={"app": "a"}),
        pod("done", "10.0.0.3", labels={"app": "x"}, phase="Succeeded"),
    )
    many = [pod(f"m{n}", account="many", labels={"n": str(n)}) for n in range(MAX_LABEL_SETS + 1)]
    cluster.pods(*many)
    accounts = overview(cluster.model, "deny", with_labels=True).accounts
    told = {one.service_account: (len(one.pods), one.more) for one in accounts}
    assert told == {"web": (1, False), "many": (MAX_LABEL_SETS, True)}


@pytest.mark.parametrize(("identity", "refused"), [(STORE, False), (WEB, True), (ELSEWHERE, True)])
async def test_nobody_but_the_trace_store_hears_of_policies(identity: str, refused: bool) -> None:
    leaf = functools.partial(FORGE.leaf, identity, ips=["127.0.0.1"])
    async with registry() as it, it.channel(leaf) as channel:
        call = ReviewStub(channel).Policies(pb.PoliciesRequest(), timeout=PATIENCE_S)
        if not refused:
            assert (await call).mesh_default == "allow-meshed"
            return
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
