"""What policies would have done to links on record: a table of fates."""

from typing import Any

import pytest

from policy.linkpolicy import LinkPolicy, parse
from policy.replay import Rules, Seen, Under, fate_of, under, without_replaced
from policy.rules import ALLOW_MESHED, DENY
from tests.policy.test_judge import who

DB = {"app": "db"}
WEB = {"app": "web"}


def policy(
    name: str = "db", *, of: dict[str, str] | None = None, audit: bool = False, **rules: Any
) -> LinkPolicy:
    """One of the namespace `prod`."""
    spec: dict[str, Any] = {"mode": "Audit" if audit else "Enforce", **rules}
    if of is not None:
        spec["selector"] = {"matchLabels": of}
    return parse(
        {
            "apiVersion": "podlink.dev/v1alpha1",
            "kind": "LinkPolicy",
            "metadata": {"name": name, "namespace": "prod"},
            "spec": spec,
        }
    )


def seen(
    account: str = "api",
    *,
    port: int = 5432,
    ip: str = "10.0.0.9",
    plaintext: bool = False,
    denied: bool = False,
    by_policy: bool = False,
) -> Seen:
    peer = None if plaintext else who("shop", account)
    return Seen(account, peer, ip, "prod", "db", port, denied, by_policy, 1, 0)


API_ONLY = policy(allow=[{"from": [{"namespace": "shop", "serviceAccount": "api"}]}])
NO_WEB = policy("no-web", deny=[{"from": [{"namespace": "shop", "serviceAccount": "web"}]}])
NO_WEB_AUDIT = policy(
    "no-web", audit=True, deny=[{"from": [{"namespace": "shop", "serviceAccount": "web"}]}]
)
NETWORK = policy("net", allow=[{"fromCIDRs": ["10.0.0.0/24"], "ports": [9187]}])


@pytest.mark.parametrize(
    ("link", "candidates", "mesh_default", "fate"),
    [
        (seen("api"), [API_ONLY], ALLOW_MESHED, "kept"),
        (seen("web"), [API_ONLY], ALLOW_MESHED, "cut"),
        (seen("web"), [], ALLOW_MESHED, "kept"),
        (seen("web"), [], DENY, "cut"),
        (seen("web"), [NO_WEB], ALLOW_MESHED, "cut"),
        (seen("web"), [NO_WEB_AUDIT], ALLOW_MESHED, "kept"),
        (seen("api", denied=True, by_policy=True), [API_ONLY], ALLOW_MESHED, "opened"),
        (seen("web", denied=True, by_policy=True), [API_ONLY], ALLOW_MESHED, "still"),
        (seen("api", denied=True), [API_ONLY], ALLOW_MESHED, "still"),
        # Plaintext that came in shows that the pod takes it; what was refused for that stays refused.
        (seen(plaintext=True, port=9187), [NETWORK], ALLOW_MESHED, "kept"),
        (seen(plaintext=True, port=9187, ip="10.1.0.9"), [NETWORK], ALLOW_MESHED, "cut"),
        (seen(plaintext=True, port=9187, denied=True), [NETWORK], ALLOW_MESHED, "still"),
        # An address that is not on record is nobody's.
        (seen(plaintext=True, port=9187, ip=""), [NETWORK], ALLOW_MESHED, "cut"),
    ],
)
def test_each_link_has_one_fate(
    link: Seen, candidates: list[LinkPolicy], mesh_default: str, fate: str
) -> None:
    assert fate_of(link, Under(tuple(candidates)), mesh_default)[0] == fate


def test_the_line_beside_a_fate_names_what_decided() -> None:
    assert fate_of(seen("api"), Under((API_ONLY,)))[1] == "prod/db allow[0]"
    some = Under((NO_WEB,), some=True)
    assert fate_of(seen("web"), some)[1].startswith("prod/no-web deny[0] (at some of its pods)")
    only_said = fate_of(seen("web"), Under((NO_WEB_AUDIT,)))[1]
    assert only_said == "prod/no-web deny[0] would deny it, but only audits"
    missed = fate_of(seen("web"), Under((API_ONLY,)))[1]
    assert "; nearest: " in missed
    elsewhere = fate_of(seen("api", denied=True), Under((API_ONLY,)))[1]
    assert elsewhere == "what denied it is not what policies decide"


def test_rules_that_are_in_force_already_add_up_with_the_candidates() -> None:
    assert fate_of(seen("web"), Under((API_ONLY,)))[0] == "cut"
    web = policy("web", allow=[{"from": [{"namespace": "shop", "serviceAccount": "web"}]}])
    assert fate_of(seen("web"), Under((API_ONLY,), (web,)))[0] == "kept"


def test_a_destination_comes_under_what_selects_any_of_its_pods() -> None:
    of_db, of_all = policy(of=DB), policy("all")
    both = under([of_db], [of_all], "prod", [DB, WEB])
    assert both == Under((of_db,), (of_all,), some=True)
    assert under([of_db], [], "prod", [DB, DB]) == Under((of_db,))
    assert under([of_db], [of_all], "prod", [WEB]) == Under((), (of_all,))
    assert under([of_db], [of_all], "other", [DB]) == Under(())


def test_a_candidate_takes_the_place_of_the_policy_of_its_name() -> None:
    assert without_replaced([API_ONLY, NO_WEB], [NO_WEB_AUDIT]) == [API_ONLY]


def test_a_rule_that_no_link_matched_is_unused() -> None:
    candidates = [API_ONLY, NO_WEB, NETWORK]
    rules = Rules(candidates)
    assert list(rules.unused) == ["prod/db allow[0]", "prod/no-web deny[0]", "prod/net allow[0]"]
    rules.note(seen("api"), candidates)
    rules.note(seen("web"), [NO_WEB])
    rules.note(seen(plaintext=True, ip="", port=9187), candidates)
    assert list(rules.unused) == ["prod/net allow[0]"]
