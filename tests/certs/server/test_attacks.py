"""Position C: what a caller of the CA's port may try, each with a positive control beside it."""

import asyncio
import gzip
import logging
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from certs import records
from certs.server.limits import InFlight, Limits, TokenBuckets
from certs.server.pods import PodSeen, check_placed, check_source
from certs.server.refusals import RETRY_AFTER, CallerForbidden, CannotAnswer
from certs.trust.bans import Ban, Bans
from certs.trust.svid import check_leaf
from kit.clock import monotonic, utcnow
from tests.certs.fake_kube import PROXY
from tests.certs.running_ca import RunningCa, running_ca
from tests.certs.server.test_service import assert_opaque
from tests.patience import PATIENCE_S

Code = grpc.StatusCode


@pytest.fixture
async def bound(tmp_path: Path) -> AsyncIterator[RunningCa]:
    """A CA as it is by default: a token counts only from its own pod."""
    async with running_ca(tmp_path, bind_tokens=True) as ca:
        yield ca


@pytest.mark.attack_row(29)
@pytest.mark.attack_row(33)
async def test_a_stolen_token_is_of_no_use_from_another_address(bound: RunningCa) -> None:
    stolen = bound.fake.add_pod(ips=("10.0.0.7",))  # we call from loopback
    assert_opaque(await bound.refusal(stolen), Code.PERMISSION_DENIED)
    assert bound.refused[-1].reason == "token_elsewhere"
    assert bound.refused[-1].source_ip == "127.0.0.1"
    assert not bound.issued
    own = bound.fake.add_pod(name="here", ips=("127.0.0.1", "fd00::7"))
    assert (await bound.sign(own)).chain_der, "the positive control"
    assert bound.issued[-1].direct


@pytest.mark.attack_row(29)
async def test_a_node_that_masquerades_is_let_through_and_shows_in_the_record(
    bound: RunningCa,
) -> None:
    token = bound.fake.add_pod(ips=("10.0.0.7",), hostIP="127.0.0.1")
    assert (await bound.sign(token)).chain_der
    assert not bound.issued[-1].direct


@pytest.mark.attack_row(29)
async def test_where_binding_is_off_a_token_from_elsewhere_is_reported(ca: RunningCa) -> None:
    assert (await ca.sign(ca.fake.add_pod(ips=("10.0.0.7",)))).chain_der
    assert (ca.issued[-1].direct, ca.issued[-1].source_ip) == (False, "127.0.0.1")


@pytest.mark.parametrize(
    ("ips", "host_ips", "host_network", "source", "fits"),
    [
        ({"10.0.0.7"}, {"192.168.9.1"}, False, "10.0.0.7", True),
        ({"10.0.0.7", "fd00::7"}, {"192.168.9.1"}, False, "fd00::7", True),
        ({"10.0.0.7"}, {"192.168.9.1"}, False, "192.168.9.1", True),
        ({"10.0.0.7"}, {"192.168.9.1"}, False, "10.0.0.8", False),
        ({"10.0.0.7"}, {"192.168.9.1"}, False, "127.0.0.1", False),
        ({"10.0.0.7"}, {"192.168.9.1"}, False, "", False),
        ({"192.168.9.1"}, {"192.168.9.1"}, True, "192.168.9.1", True),
        ({"192.168.9.1"}, {"192.168.9.1"}, True, "192.168.9.2", False),
        (set(), {"192.168.9.1"}, False, "10.0.0.8", True),
    ],
)
def test_where_a_call_may_come_from(
    ips: set[str], host_ips: set[str], host_network: bool, source: str, fits: bool
) -> None:
    pod = PodSeen("node-1", host_network, frozenset(ips), frozenset(host_ips))
    if fits:
        check_source(pod, source)
    else:
        with pytest.raises(CallerForbidden) as refused:
            check_source(pod, source)
        assert refused.value.reason == "token_elsewhere"


NO_PROXIES: dict[str, dict[str, Any]] = {
    "none": {"initContainers": []},
    "another command": {"initContainers": [{**PROXY, "command": ["sleep", "1h"]}]},
    "no command": {"initContainers": [{k: v for k, v in PROXY.items() if k != "command"}]},
    "arguments": {"initContainers": [{**PROXY, "args": ["--evil"]}]},
    "another name": {"initContainers": [{**PROXY, "name": "podlink"}]},
    "another image": {"initContainers": [{**PROXY, "image": "evil/podlink:0.1.0"}]},
    "an image that ends like ours": {
        "initContainers": [{**PROXY, "image": "evil:5000/podlink/podlink@sha256:00"}]
    },
    "no image": {"initContainers": [{**PROXY, "image": None}]},
    "its node's network": {"hostNetwork": True},
}


@pytest.mark.attack_row(53)
@pytest.mark.parametrize("spec", NO_PROXIES.values(), ids=NO_PROXIES)
async def test_a_pod_without_our_proxy_gets_no_leaf(tmp_path: Path, spec: dict[str, Any]) -> None:
    """Any container may mount a token of our audience: it proves the pod, not what is in it."""
    async with running_ca(tmp_path, proxy_images=("podlink/podlink:0.1.0",)) as ca:
        token = ca.fake.add_pod(spec=spec)
        assert_opaque(await ca.refusal(token), Code.PERMISSION_DENIED)
        assert ca.refused[-1].reason == "pod_without_proxy"
        async with ca.stub() as stub:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                call = stub.WatchBundle(iter(()), metadata=(("authorization", f"Bearer {token}"),))
                await call.read()
        assert_opaque(refused.value, Code.PERMISSION_DENIED)
        assert not ca.issued
        assert (await ca.sign(ca.fake.add_pod(name="meshed"))).chain_der, "the positive control"


async def test_an_earlier_versions_proxy_and_a_plain_container_get_their_leaf(
    tmp_path: Path,
) -> None:
    images = ("registry.example:5000/podlink:2", "podlink/podlink:0.1.0")
    async with running_ca(tmp_path, proxy_images=images) as ca:
        for image in ("podlink/podlink:0.0.9", "registry.example:5000/podlink@sha256:ab"):
            proxy = {k: v for k, v in PROXY.items() if k != "restartPolicy"} | {"image": image}
            spec = {"initContainers": [], "containers": [proxy]}
            assert (await ca.sign(ca.fake.add_pod(spec=spec))).chain_der


async def test_a_namespace_may_say_that_its_pods_get_leaves_without_a_sidecar(
    ca: RunningCa,
) -> None:
    token = ca.fake.add_pod(spec={"initContainers": []})
    ca.fake.add_namespace("shop", **{"podlink.dev/leaf-without-sidecar": "yes"})
    assert_opaque(await ca.refusal(token), Code.PERMISSION_DENIED)
    ca.fake.add_namespace("shop", **{"podlink.dev/leaf-without-sidecar": "allowed"})
    assert (await ca.sign(token)).chain_der
    ca.fake.answers["GET", "/api/v1/namespaces/shop"] = (403, {"message": "no right"})
    assert_opaque(await ca.refusal(token), Code.PERMISSION_DENIED)
    ca.fake.answers["GET", "/api/v1/namespaces/shop"] = (500, {"message": "out of order"})
    assert_opaque(await ca.refusal(token), Code.UNAVAILABLE)


async def test_the_control_plane_needs_no_sidecar_and_its_neighbours_do(ca: RunningCa) -> None:
    for account in ("podlink-registry", "podlink-injector", "podlink-traces"):
        token = ca.fake.add_pod("podlink-system", account, account, spec={"initContainers": []})
        assert (await ca.sign(token)).chain_der
    for namespace, account in (("podlink-system", "default"), ("shop", "podlink-registry")):
        token = ca.fake.add_pod(namespace, "pod", account, spec={"initContainers": []})
        assert_opaque(await ca.refusal(token), Code.PERMISSION_DENIED)


@pytest.mark.attack_row(29)
@pytest.mark.parametrize("bind_tokens", [True, False])
async def test_a_pod_without_an_address_gets_a_leaf_only_through_its_node(
    tmp_path: Path, bind_tokens: bool
) -> None:
    """Else a stolen token would get a leaf that carries the thief's address."""
    async with running_ca(tmp_path, bind_tokens=bind_tokens) as ca:
        token = ca.fake.add_pod(ips=())
        assert_opaque(await ca.refusal(token), Code.UNAVAILABLE)
        assert ca.refused[-1].reason == "pod_address_unknown"
        status = ca.fake.pods["shop", "api-1"]["status"]
        status["hostIP"] = "127.0.0.1"
        leaf = check_leaf(
            (await ca.sign(token)).chain_der[0], trust_domain="cluster.local", now=utcnow()
        )
        assert leaf.ips == frozenset(), "from its node: a leaf, and no address in it"
        status |= {"hostIP": "192.168.9.1", "podIPs": [{"ip": "127.0.0.1"}]}
        assert (await ca.sign(token)).chain_der, "from its own address, once that is known"


@pytest.mark.parametrize(
    ("ips", "host_ips", "source", "fits"),
    [
        ((), (), "10.0.0.9", False),
        ((), (), "", False),
        ((), ("192.168.9.1",), "10.0.0.9", False),
        ((), ("192.168.9.1",), "192.168.9.1", True),
        (("10.0.0.9",), (), "10.0.0.9", True),
        (("10.0.0.9",), (), "10.0.0.7", True),
    ],
)
def test_what_a_pod_that_nobody_has_placed_must_wait_for(
    ips: tuple[str, ...], host_ips: tuple[str, ...], source: str, fits: bool
) -> None:
    pod = PodSeen("node-1", False, frozenset(ips), frozenset(host_ips))
    if fits:
        check_placed(pod, source)
    else:
        with pytest.raises(CannotAnswer, match="pod_address_unknown"):
            check_placed(pod, source)


@pytest.mark.attack_row(33)
async def test_loopback_is_asked_for_the_same_proof_as_anybody(bound: RunningCa) -> None:
    for token in (None, "", "garbage", "a.b.c"):
        assert_opaque(await bound.refusal(token), Code.UNAUTHENTICATED)
    assert not bound.issued


@pytest.mark.attack_row(31)
async def test_who_is_shed_is_told_when_to_come_again(tmp_path: Path) -> None:
    limits = Limits.usual(monotonic)
    limits.per_pod = TokenBuckets(0.5, 1, monotonic)
    async with running_ca(tmp_path, limits=limits) as ca:
        token = ca.fake.add_pod()
        assert (await ca.sign(token)).chain_der
        refused = await ca.refusal(token)
        assert_opaque(refused, Code.RESOURCE_EXHAUSTED)
        trailing: dict[str, Any] = dict(refused.trailing_metadata() or ())
        assert 0 < int(trailing[RETRY_AFTER]) <= 2000


class Hand:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.attack_row(31)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("per_source", "rate_per_source"),
        ("in_all", "rate"),
        ("per_identity", "rate_per_identity"),
        ("per_pod", "rate_per_pod"),
    ],
)
async def test_every_rate_is_bounded_and_opens_again(
    tmp_path: Path, name: str, reason: str
) -> None:
    hand, limits = Hand(), Limits.usual(monotonic)
    setattr(limits, name, TokenBuckets(1.0, 2, hand, reason=reason))
    async with running_ca(tmp_path, limits=limits) as ca:
        token = ca.fake.add_pod()
        for _ in range(2):
            assert (await ca.sign(token)).chain_der
        assert_opaque(await ca.refusal(token), Code.RESOURCE_EXHAUSTED)
        assert ca.refused[-1].reason == reason
        hand.now += 1.0
        assert (await ca.sign(token)).chain_der


@pytest.mark.attack_row(31)
async def test_who_shows_bad_tokens_is_soon_not_reviewed_any_more(tmp_path: Path) -> None:
    hand, limits = Hand(), Limits.usual(monotonic)
    limits.bad_tokens = TokenBuckets(1.0, 3, hand, reason="rate_bad_tokens")
    limits.in_all = TokenBuckets(1.0, 1, hand, reason="rate")
    async with running_ca(tmp_path, limits=limits) as ca:
        for _ in range(3):
            assert_opaque(await ca.refusal("a.b.c"), Code.UNAUTHENTICATED)
        asked = len(ca.fake.review_specs)
        assert_opaque(await ca.refusal("a.b.c"), Code.RESOURCE_EXHAUSTED)
        assert len(ca.fake.review_specs) == asked, "and costs the API server nothing"
        hand.now += 1.0
        good = ca.fake.add_pod()
        assert (await ca.sign(good)).chain_der, "what strangers did used nothing up for the known"


@pytest.mark.attack_row(31)
async def test_calls_of_one_identity_leave_room_for_others(tmp_path: Path) -> None:
    limits = Limits.usual(monotonic)
    limits.in_flight = InFlight(64, 64)
    limits.identities_in_flight = InFlight(64, 2, reason="in_flight_identity")
    async with running_ca(tmp_path, limits=limits) as ca:
        crowd = [ca.fake.add_pod(name=f"api-{n}") for n in range(8)]
        other = ca.fake.add_pod("prod", "db-0", "db")
        release = asyncio.Event()

        async def hold() -> None:
            if ca.fake.seen[-1][0] == "GET" and "/pods/api-" in ca.fake.seen[-1][1]:
                await release.wait()

        ca.fake.wait = hold
        calls = [asyncio.ensure_future(ca.sign(token)) for token in crowd]
        async with asyncio.timeout(PATIENCE_S):
            while len(ca.refused) < 6:
                await asyncio.sleep(0.01)
        assert {r.reason for r in ca.refused} == {"in_flight_identity_per_source"}
        assert (await ca.sign(other)).chain_der, "the positive control"
        release.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(not isinstance(o, BaseException) for o in outcomes) == 2


@pytest.mark.attack_row(31)
@pytest.mark.parametrize("field", ["csr", "token", "metadata"])
async def test_what_is_too_large_is_refused_before_it_is_parsed(ca: RunningCa, field: str) -> None:
    token = ca.fake.add_pod()
    if field == "csr":
        error = await ca.refusal(token, b"-----BEGIN CERTIFICATE REQUEST-----\n" * 200_000)
    elif field == "token":
        error = await ca.refusal("a.b." + "c" * 20_000)
    else:
        error = await ca.refusal("a." + "b" * 200_000 + ".c")
    assert error.code() in (Code.RESOURCE_EXHAUSTED, Code.UNAUTHENTICATED)
    assert not ca.fake.review_specs
    assert (await ca.sign(token)).chain_der


@pytest.mark.attack_row(31)
async def test_a_thousand_bad_calls_cost_no_memory_and_a_bounded_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits.usual(monotonic)
    limits.per_source = TokenBuckets(1e6, 10**6, monotonic)
    async with running_ca(tmp_path, limits=limits) as ca:
        token = ca.fake.add_pod()
        with caplog.at_level(logging.WARNING):
            async with ca.stub() as stub:
                for _ in range(1000):
                    with pytest.raises(grpc.aio.AioRpcError):
                        await stub.Sign(request(), metadata=(("authorization", "Bearer a.b"),))
        assert len(caplog.records) <= 200
        assert ca.server.reporter.refused["token_malformed"] == 1000
        assert len(ca.server.ledger.entries()) == 0
        assert (await ca.sign(token)).chain_der


def request() -> Any:
    from proto import ca_pb2

    return ca_pb2.SignRequest()


@pytest.mark.attack_row(32)
async def test_metrics_hold_counts_and_no_names(ca: RunningCa) -> None:
    token = ca.fake.add_pod()
    await ca.sign(token)
    await ca.refusal("a.b.c")
    page = ca.server.metrics()
    assert "podlink_ca_certificates_issued_total 1\n" in page
    assert 'podlink_ca_calls_refused_total{reason="token_refused"} 1\n' in page
    for secret in (token, "shop", "api-1", "spiffe://", "PRIVATE", "10.0.0.7"):
        assert secret not in page


@pytest.mark.attack_row(46)
async def test_a_serial_tells_its_pod_and_a_leaf_passes_the_validator(ca: RunningCa) -> None:
    from certs.trust.bans import RANDOM_BITS, pod_tag

    token = ca.fake.add_pod(uid="0f6a8b1e-0000-4000-8000-000000000001")
    answer = await ca.sign(token)
    facts = check_leaf(answer.chain_der[0], trust_domain="cluster.local", now=utcnow())
    assert int(facts.serial, 16) >> RANDOM_BITS == pod_tag("0f6a8b1e-0000-4000-8000-000000000001")
    again = check_leaf(
        (await ca.sign(token)).chain_der[0], trust_domain="cluster.local", now=utcnow()
    )
    assert again.serial != facts.serial


@pytest.mark.attack_row(45)
async def test_a_ban_that_comes_while_the_api_server_is_asked_still_counts(ca: RunningCa) -> None:
    token = ca.fake.add_pod()
    assert (await ca.sign(token)).chain_der, "the positive control"
    identity = ca.issued[0].identity

    def banned_meanwhile(_method: str, path: str) -> None:
        if "/pods/" in path:
            ca.server.feed.ban(Bans.of([Ban("identity", identity)]))

    ca.fake.before = banned_meanwhile
    assert_opaque(await ca.refusal(token), Code.PERMISSION_DENIED)
    assert ca.refused[-1].reason == "banned" and len(ca.issued) == 1


@pytest.mark.attack_row(31)
def test_a_stored_book_is_read_no_further_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes of gzip may hold gigabytes."""
    bomb, most = gzip.compress(b"\n" * (4 << 20)), 1 << 16
    monkeypatch.setattr(records, "_MAX_BOOK_BYTES", most)
    with pytest.raises(records.BookMalformed, match="more than 65536 bytes"):
        records.from_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(records.BookMalformed):
            records.from_bytes(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert records.from_bytes(gzip.compress(b"")) == []
