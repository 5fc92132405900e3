"""LinkPolicies from `kubectl apply` to the link that they refuse, let in or cut."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from policy.linkpolicy import API_VERSION
from tests.e2e.mesh import Mesh, now, until
from tests.e2e.objects import MESH, Object, account, pod, service, serving

VAULT = {"matchLabels": {"app": "vault"}}
FROM_CLERK = {"from": [{"namespace": MESH, "serviceAccount": "clerk"}], "ports": [7001]}
REFUSED = {"ConnectionResetError", "ConnectionRefusedError"}


def link_policy(name: str = "vault", **spec: Any) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "LinkPolicy",
        "metadata": {"name": name, "namespace": MESH},
        "spec": {"selector": VAULT, **spec},
    }


@pytest.fixture(scope="module", autouse=True)
def vault(mesh: Mesh) -> Iterator[None]:
    made = [
        account("clerk"),
        account("thief"),
        service("vault", {"port": 80, "targetPort": 7001}),
        pod("vault", serving("echo", 7001)),
        pod("clerk", serviceAccountName="clerk"),
        pod("thief", serviceAccountName="thief"),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


@pytest.fixture(autouse=True)
def no_policy(mesh: Mesh) -> Iterator[None]:
    yield
    for one in mesh.cluster.select("LinkPolicy", MESH, API_VERSION):
        mesh.cluster.delete(yaml.safe_dump(link_policy(one["metadata"]["name"])))
    until(lambda: reaches(mesh, "thief"), "the vault is open again")


def reaches(mesh: Mesh, who: str) -> bool:
    done = mesh.attempt(f"mesh/{who}", "vault.mesh", 80, "hello")
    assert done["got"] == "hello" or done["error"] in REFUSED, done
    return bool(done["got"] == "hello")


def refused(mesh: Mesh, who: str) -> bool:
    return not reaches(mesh, who)


def condition(mesh: Mesh, kind: str, name: str = "vault") -> dict[str, Any]:
    """A condition of the policy's status, once it tells of the object's present form."""

    def current() -> dict[str, Any] | None:
        one = mesh.cluster.get("LinkPolicy", f"{MESH}/{name}", API_VERSION)
        for found in (one.get("status") or {}).get("conditions") or ():
            if (
                found["type"] == kind
                and found["observedGeneration"] == one["metadata"]["generation"]
            ):
                assert isinstance(found, dict)
                return found
        return None

    found = until(current, f"{kind} of {name}")
    assert isinstance(found, dict)
    return found


@pytest.mark.attack_row(16)
def test_whom_a_policy_allows_gets_in_and_all_others_are_refused_by_name(mesh: Mesh) -> None:
    assert reaches(mesh, "thief")
    mesh.apply(link_policy(allow=[FROM_CLERK]))
    until(lambda: refused(mesh, "thief"), "the thief is refused")
    since = now()
    assert refused(mesh, "thief")
    assert reaches(mesh, "clerk")
    denied = mesh.link(since, source="mesh/thief", destination="mesh/vault", verdict="denied")
    assert (denied["reason"], denied["policy"], denied["rule"]) == (
        "policy_denied",
        "mesh/vault",
        "no-rule",
    )
    allowed = mesh.link(since, source="mesh/clerk", destination="mesh/vault", verdict="allowed")
    assert (allowed["policy"], allowed["rule"]) == ("mesh/vault", "allow[0]")
    assert condition(mesh, "Accepted")["status"] == "True"
    status = mesh.cluster.get("LinkPolicy", "mesh/vault", API_VERSION)["status"]
    assert status["selectedPods"] == 1


@pytest.mark.attack_row(16)
def test_an_open_link_that_a_new_policy_denies_is_cut_and_the_record_names_it(mesh: Mesh) -> None:
    hold = ("python", "-m", "tests.e2e.apps", "hold", mesh.ip("mesh/vault"), 7001)
    with mesh.in_pod("mesh/clerk", *hold) as kept, mesh.in_pod("mesh/thief", *hold) as cut:
        assert json.loads(kept.line()) == json.loads(cut.line()) == {"open": True}
        since = now() - 60_000_000_000
        deny = [{"from": [{"namespace": MESH, "serviceAccount": "thief"}]}]
        mesh.apply(link_policy(allow=[{"from": [{"namespace": MESH}]}], deny=deny))
        assert json.loads(cut.line())["ended"] == "ConnectionResetError"
        link = mesh.link(since, source="mesh/thief", destination="mesh/vault", close="policy")
        assert (link["verdict"], link["policy"], link["rule"]) == (
            "denied",
            "mesh/vault",
            "deny[0]",
        )
        kept.end_input()
        assert json.loads(kept.line())["ended"] != "ConnectionResetError", "the clerk was let be"


def test_an_auditing_policy_lets_all_in_and_says_whom_it_would_refuse(mesh: Mesh) -> None:
    mesh.apply(link_policy(allow=[FROM_CLERK], mode="Audit"))
    assert condition(mesh, "InForce")["reason"] == "Audited"

    def audited() -> bool:
        assert reaches(mesh, "thief")
        return any(
            link["verdict"] == "audited" and link["policy"] == "mesh/vault" for link in mesh.links()
        )

    until(audited, "a link of the thief's is marked")


@pytest.mark.attack_row(17)
def test_a_slip_leaves_the_last_good_policy_in_force_and_is_told(mesh: Mesh) -> None:
    mesh.apply(link_policy(allow=[FROM_CLERK]))
    until(lambda: refused(mesh, "thief"), "the thief is refused")
    assert condition(mesh, "InForce")["reason"] == "Current"
    slip = {"from": [{"namespace": MESH}], "port": [7001]}  # pruned, it would open every port
    mesh.apply(link_policy(allow=[slip]))
    accepted = condition(mesh, "Accepted")
    assert accepted["status"] == "False"
    assert accepted["message"].startswith("spec.allow[0].port: is not known here")
    assert condition(mesh, "InForce")["reason"] == "LastGood"
    assert refused(mesh, "thief") and reaches(mesh, "clerk")


@pytest.mark.attack_row(18)
def test_an_address_rule_lets_plaintext_in_and_never_a_meshed_peer(mesh: Mesh) -> None:
    open_vault = pod("open-vault", serving("echo", 7001), config={"plaintext": "allow"})
    mesh.apply(open_vault)
    policy = link_policy(
        "open-vault",
        selector={"matchLabels": {"app": "open-vault"}},
        allow=[{"fromCIDRs": [f"{mesh.ip('plain/stranger')}/32", f"{mesh.ip('mesh/thief')}/32"]}],
    )
    mesh.apply(policy)
    ip = mesh.ip("mesh/open-vault")
    until(lambda: mesh.attempt("mesh/thief", ip, 7001, "x")["got"] == "", "the thief is refused")
    mesh.talk("plain/stranger", ip, 7001, "hello")
    assert mesh.attempt("mesh/thief", ip, 7001, "x")["error"] in REFUSED
    mesh.delete(open_vault)
