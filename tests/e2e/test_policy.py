"""LinkPolicies from `kubectl apply` to the link that they refuse, let in or cut."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cli import __main__ as main
from local.errors import BadManifest
from policy.linkpolicy import API_VERSION
from tests.e2e.mesh import Mesh, now, until
from tests.e2e.objects import MESH, Object, account, pod, service, serving

VAULT = {"matchLabels": {"app": "vault"}}
FROM_CLERK = {"from": [{"namespace": MESH, "serviceAccount": "clerk"}], "ports": [7001]}
UNREADABLE = {"fromCIDRs": ["10.0.0.1/8"]}
"""The schema and the guard let it pass; only who reads it sees the host's bits."""
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
    denied = mesh.link(
        since, sides=2, source="mesh/thief", destination="mesh/vault", verdict="denied"
    )
    assert (denied["reason"], denied["policy"], denied["rule"]) == (
        "policy_denied",
        "mesh/vault",
        "no-rule",
    )
    allowed = mesh.link(
        since, sides=2, source="mesh/clerk", destination="mesh/vault", verdict="allowed"
    )
    assert (allowed["policy"], allowed["rule"]) == ("mesh/vault", "allow[0]")
    assert condition(mesh, "Accepted")["status"] == "True"
    status = mesh.cluster.get("LinkPolicy", "mesh/vault", API_VERSION)["status"]
    assert status["selectedPods"] == 1
    client = mesh.cluster.client
    shown = client.table(client.path(API_VERSION, "LinkPolicy", MESH))
    cells = [row["cells"][:5] for row in shown["rows"]]
    assert cells == [["vault", "Enforce", 1, "True", "Current"]]


@pytest.mark.attack_row(16)
def test_an_open_link_that_a_new_policy_denies_is_cut_and_the_record_names_it(mesh: Mesh) -> None:
    hold = ("python", "-m", "tests.e2e.apps", "hold", mesh.ip("mesh/vault"), 7001)
    with mesh.in_pod("mesh/clerk", *hold) as kept, mesh.in_pod("mesh/thief", *hold) as cut:
        assert json.loads(kept.line()) == json.loads(cut.line()) == {"open": True}
        since = now() - 60_000_000_000
        deny = [{"from": [{"namespace": MESH, "serviceAccount": "thief"}]}]
        mesh.apply(link_policy(allow=[{"from": [{"namespace": MESH}]}], deny=deny))
        assert json.loads(cut.line())["ended"] == "ConnectionResetError"
        link = mesh.link(
            since, sides=2, source="mesh/thief", destination="mesh/vault", close="policy"
        )
        assert (link["verdict"], link["policy"], link["rule"]) == (
            "denied",
            "mesh/vault",
            "deny[0]",
        )
        # The clerk was let be: its link lives until a rule of its own comes.
        both = [*deny, {"from": [{"namespace": MESH, "serviceAccount": "clerk"}]}]
        mesh.apply(link_policy(allow=[{"from": [{"namespace": MESH}]}], deny=both))
        assert json.loads(kept.line())["ended"] == "ConnectionResetError"
        link = mesh.link(
            since, sides=2, source="mesh/clerk", destination="mesh/vault", close="policy"
        )
        assert link["rule"] == "deny[1]"


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
    with pytest.raises(BadManifest, match="a field of a rule is not known"):
        mesh.apply(link_policy(allow=[slip]))
    assert condition(mesh, "InForce")["reason"] == "Current", "refused when it was applied"
    mesh.apply(link_policy(allow=[{"from": [{"namespace": MESH}]}, UNREADABLE]))
    accepted = condition(mesh, "Accepted")
    assert accepted["status"] == "False"
    assert accepted["message"].startswith("spec.allow[1].fromCIDRs[0]: 10.0.0.1/8 has host bits")
    assert condition(mesh, "InForce")["reason"] == "LastGood"
    assert refused(mesh, "thief") and reaches(mesh, "clerk")


@pytest.mark.attack_row(17)
@pytest.mark.fault_row("control-plane-down")
def test_a_registry_that_is_killed_leaves_policies_in_force_and_comes_back_with_the_last_good(
    mesh: Mesh,
) -> None:
    mesh.apply(link_policy(allow=[FROM_CLERK]))
    until(lambda: refused(mesh, "thief"), "the thief is refused")
    assert condition(mesh, "InForce")["reason"] == "Current"
    mesh.apply(link_policy(allow=[{"from": [{"namespace": MESH}]}, UNREADABLE]))
    assert condition(mesh, "InForce")["reason"] == "LastGood"

    (registry,) = [
        f"podlink-system/{one['metadata']['name']}"
        for one in mesh.cluster.select("Pod", "podlink-system")
        if one["metadata"]["name"].startswith("podlink-registry")
    ]
    mesh.node("kill", "-9", mesh.system_pid("registry"))
    assert refused(mesh, "thief") and reaches(mesh, "clerk"), "while it is away"
    mesh.cluster.wait_ready(registry, timeout_s=60.0)
    slip = link_policy(allow=[{"from": [{"namespace": MESH}], "ports": [7001]}, UNREADABLE])
    mesh.apply(slip)  # so that the new registry has something to say
    told = condition(mesh, "InForce")
    assert (told["reason"], told["status"]) == ("LastGood", "True")
    assert refused(mesh, "thief") and reaches(mesh, "clerk")
    mesh.apply(link_policy(allow=[{"from": [{"namespace": MESH}]}]))
    until(lambda: reaches(mesh, "thief"), "the sidecar hears of what is lawful again")


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


# --- understanding it -----------------------------------------------------------------------


def podlink(mesh: Mesh, *argv: str, status: int | None = 0) -> str:
    """What a `podlink` command prints; None: whether links are cut is not what is asked."""
    kubeconfig = ["--kubeconfig", str(mesh.cluster.kubeconfig)]
    done = CliRunner().invoke(main.podlink, [*argv, *kubeconfig])
    assert status in (done.exit_code, None), f"{argv}: {done.output} {done.exception!r}"
    return done.output


def test_authz_and_explain_say_what_the_sidecars_do(mesh: Mesh, tmp_path: Path) -> None:
    opened = podlink(mesh, "explain", "mesh/thief", "vault.mesh", "80")
    assert "=> allowed by default:allow-meshed, over mutual TLS" in opened
    mesh.apply(link_policy(allow=[FROM_CLERK]))
    until(lambda: refused(mesh, "thief"), "the thief is refused")

    authz = json.loads(podlink(mesh, "authz", "mesh/vault", "-o", "json"))
    assert authz["in_step"] and authz["mesh_default"] == "allow-meshed"
    assert authz["rules"][0] == {
        "verdict": "allowed",
        "who": "mesh/clerk",
        "ports": "7001",
        "because": "mesh/vault allow[0]",
    }
    assert "everybody else" in podlink(mesh, "authz", "mesh/vault")

    refusal = podlink(mesh, "explain", "mesh/thief", "vault", "80", status=1)
    assert "STOP policy" in refusal
    assert "nearest: mesh/vault allow[0] allows mesh/clerk, not mesh/thief" in refusal
    ip = mesh.ip("mesh/vault")
    let_in = json.loads(podlink(mesh, "explain", "mesh/clerk", ip, "7001", "-o", "json"))
    assert [step["name"] for step in let_in["steps"]] == [
        "source",
        "resolve",
        "endpoint",
        "way",
        "policy",
    ]
    assert let_in["verdict"] == "allowed by mesh/vault allow[0], over mutual TLS"
    assert "has no port 81" in podlink(mesh, "explain", "mesh/clerk", "vault", "81", status=1)
    outside = podlink(mesh, "explain", "mesh/clerk", "plain/stranger", "80")
    assert "plaintext: the pod there has no sidecar" in outside


def test_replay_and_suggest_go_by_the_links_on_record(mesh: Mesh, tmp_path: Path) -> None:
    since = now()
    for who in ("clerk", "thief"):
        assert reaches(mesh, who)
        mesh.link(since, sides=2, source=f"mesh/{who}", destination="mesh/vault")
    policy = link_policy(allow=[FROM_CLERK, {"from": [{"namespace": "nowhere"}]}])
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump(policy))
    said = json.loads(podlink(mesh, "policy", "replay", "-f", str(file), "-o", "json", status=1))
    fates = {one["source"]: one["fate"] for one in said["outcomes"] if not one["denied"]}
    assert fates["mesh/thief"] == "cut" and fates["mesh/clerk"] == "kept"
    assert said["unused"] == ["mesh/vault allow[1]"]
    assert "links would have been cut" in podlink(
        mesh, "policy", "replay", "-f", str(file), status=1
    )

    suggested = list(yaml.safe_load_all(podlink(mesh, "policy", "suggest", "-n", MESH)))
    (vault,) = [one for one in suggested if one["spec"].get("selector") == VAULT]
    assert vault["spec"]["mode"] == "Audit"
    rules = [rule for rule in vault["spec"]["allow"] if 7001 in rule["ports"]]
    sources = {source["serviceAccount"] for rule in rules for source in rule.get("from", ())}
    assert {"clerk", "thief"} <= sources
    # What was suggested cuts nothing of what was seen.
    file.write_text(
        yaml.safe_dump_all(
            [{**one, "spec": {**one["spec"], "mode": "Enforce"}} for one in suggested]
        )
    )
    again = json.loads(
        podlink(mesh, "policy", "replay", "-f", str(file), "-o", "json", status=None)
    )
    cut = {one["source"] for one in again["outcomes"] if one["fate"] == "cut"}
    # Plaintext from a pod whose address is not on record cannot be suggested; a comment says so.
    assert cut <= {"plain/stranger"}


def test_a_policy_in_force_is_picked_on_the_page_and_judged_by_its_pods_labels(mesh: Mesh) -> None:
    mesh.apply(link_policy(allow=[FROM_CLERK]), link_policy("other", allow=[FROM_CLERK]))
    until(lambda: refused(mesh, "thief"), "the policies are in force")
    assert reaches(mesh, "clerk")

    def replayed() -> dict[str, set[str]]:
        ask = mesh._traces._ask("/replay.json", {"pick": f"{MESH}/vault", "since": "1h"})
        found: dict[str, set[str]] = {}
        for row in asyncio.run(ask)["rows"]:
            found.setdefault(row["source"].rpartition("/")[2], set()).add(row["fate"])
        return found

    # What the thief did before there was a policy would be cut; nobody ticked which pods are meant.
    until(lambda: "kept" in replayed().get("clerk", ()), "the record has the clerk's link")
    assert "cut" in replayed()["thief"] or "still" in replayed()["thief"]
