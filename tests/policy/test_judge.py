"""The receiver's verdict: a table of sentences, and agreement with a plain reference."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.trust.identity import WorkloadIdentity
from kit.ports import NO_PORTS, PortSet
from policy.judge import Denial, Permit, judge
from policy.rules import ALLOW_ALL, ALLOW_MESHED, DENY, Policy, PolicySet, Rule, Source
from sidecar.authorise import authorise
from sidecar.errors import Denied, PlaintextDenied


def who(namespace: str, account: str) -> WorkloadIdentity:
    return WorkloadIdentity("cluster.local", namespace, account)


API = who("shop", "api")
DB = Policy(
    "prod/db",
    allow=(
        Rule("allow[0]", (Source("shop", "api"), Source("batch")), ports=frozenset({5432})),
        Rule("allow[1]", networks=(ipaddress.ip_network("10.0.0.0/8"),), ports=frozenset({9187})),
    ),
    deny=(Rule("deny[0]", (Source("shop", "legacy"),)),),
)


def test_an_allowed_peer_gets_a_permit_that_names_policy_and_rule() -> None:
    permit = authorise(API, "10.0.0.1", 5432, PolicySet(policies=(DB,)))
    assert (permit.policy, permit.rule) == ("prod/db", "allow[0]")


@pytest.mark.attack_row(16)
@pytest.mark.parametrize(
    ("peer", "port"),
    [
        (who("shop", "legacy"), 5432),
        (who("shop", "web"), 5432),
        (API, 9187),
        (who("other", "api"), 5432),
    ],
)
def test_a_peer_that_no_rule_names_is_denied(peer: WorkloadIdentity, port: int) -> None:
    with pytest.raises(Denied):
        authorise(peer, "10.0.0.1", port, PolicySet(policies=(DB,)))


@pytest.mark.attack_row(17)
@pytest.mark.parametrize(
    ("rule", "peer"),
    [
        (Source("shop", "a-b"), who("shop", "a.b")),
        (Source("shop", "a.b"), who("shop", "axb")),
        (Source("foo"), who("foobar", "x")),
        (Source("foobar"), who("foo", "x")),
        (Source("shop", "*"), who("shop", "api")),
        (Source("*"), who("shop", "api")),
        (Source("shop", "аpi"), who("shop", "api")),  # a Cyrillic letter
    ],
)
def test_names_are_compared_whole_and_without_patterns(
    rule: Source, peer: WorkloadIdentity
) -> None:
    policy = Policy("p", allow=(Rule("allow[0]", (rule,)),))
    with pytest.raises(Denied):
        authorise(peer, "10.0.0.1", 80, PolicySet(policies=(policy,)))


@pytest.mark.attack_row(18)
def test_a_peer_without_identity_never_matches_a_rule_over_identities() -> None:
    everyone_but = Policy(
        "p",
        allow=(Rule("allow[0]", (Source("shop"),)),),
        deny=(Rule("deny[0]", (Source("shop", "legacy"),)),),
    )
    in_force = PolicySet(ALLOW_ALL, allow_plaintext=True, policies=(everyone_but,))
    with pytest.raises(Denied):
        authorise(None, "10.0.0.1", 80, in_force)


def test_a_meshed_peer_never_matches_a_rule_over_networks() -> None:
    with pytest.raises(Denied):
        authorise(API, "10.0.0.1", 9187, PolicySet(policies=(DB,)))


@pytest.mark.attack_row(1)
def test_plaintext_is_denied_unless_the_pod_lets_it_in() -> None:
    with pytest.raises(PlaintextDenied):
        authorise(None, "10.0.0.1", 9187, PolicySet(ALLOW_ALL, policies=(DB,)))
    permit = authorise(None, "10.0.0.1", 9187, PolicySet(allow_plaintext=True, policies=(DB,)))
    assert permit.rule == "allow[1]"


def test_an_auditing_policy_says_what_it_would_do_and_does_nothing() -> None:
    audit = Policy("prod/new", allow=DB.allow, deny=DB.deny, audit=True)
    permit = authorise(who("shop", "web"), "10.0.0.1", 80, PolicySet(policies=(audit,)))
    assert (permit.would_deny, permit.would_deny_rule) == ("prod/new", "no-rule")
    assert permit.rule == f"default:{ALLOW_MESHED}"


def test_of_two_auditing_deny_rules_the_first_is_told() -> None:
    first = Policy("prod/a", deny=DB.deny, audit=True)
    second = Policy("prod/b", deny=DB.deny, audit=True)
    permit = authorise(who("shop", "legacy"), "10.0.0.1", 80, PolicySet(policies=(first, second)))
    assert (permit.would_deny, permit.would_deny_rule) == ("prod/a", "deny[0]")


@pytest.mark.parametrize(
    ("default", "peer", "allowed"),
    [
        (ALLOW_MESHED, API, True),
        (ALLOW_ALL, API, True),
        (DENY, API, False),
        (DENY, None, False),
        (ALLOW_ALL, None, True),
    ],
)
def test_without_a_policy_the_mesh_default_decides(
    default: str, peer: WorkloadIdentity | None, allowed: bool
) -> None:
    in_force = PolicySet(default, allow_plaintext=True)
    if allowed:
        authorise(peer, "10.0.0.1", 80, in_force)
    else:
        with pytest.raises(Denied):
            authorise(peer, "10.0.0.1", 80, in_force)


@pytest.mark.parametrize(
    ("peer", "port", "nearest"),
    [
        (API, 9187, "prod/db allow[0] allows 5432, not port 9187"),
        (
            who("shop", "web"),
            5432,
            "prod/db allow[0] allows shop/api, batch/(any), not shop/web",
        ),
        (
            who("shop", "legacy"),
            1,
            "prod/db allow[0] allows 5432, not port 1 and "
            "allows shop/api, batch/(any), not shop/legacy",
        ),
        (None, 9187, "prod/db allow[1] allows 10.0.0.0/8, not 192.0.2.1"),
    ],
)
def test_a_denial_names_the_policy_and_the_nearest_rule(
    peer: WorkloadIdentity | None, port: int, nearest: str
) -> None:
    allowing = Policy("prod/db", allow=DB.allow)
    denial = judge(peer, "192.0.2.1", port, PolicySet(allow_plaintext=True, policies=(allowing,)))
    assert isinstance(denial, Denial)
    assert (denial.policy, denial.rule, denial.nearest) == ("prod/db", "no-rule", nearest)


def test_a_deny_rule_that_wins_over_an_allow_rule_names_both() -> None:
    both = Policy("prod/db", allow=(Rule("allow[0]", (Source("shop"),)),), deny=DB.deny)
    with pytest.raises(Denied, match="prod/db deny") as caught:
        authorise(who("shop", "legacy"), "10.0.0.1", 5432, PolicySet(policies=(both,)))
    denied = caught.value
    assert (denied.policy, denied.rule) == ("prod/db", "deny[0]")
    assert denied.nearest == "prod/db allow[0] allows it, but a deny rule wins"


names = st.sampled_from(["a", "a-b", "a.b", "ab", "b"])
sources = st.builds(Source, names, st.one_of(st.just(""), names))
networks = st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]).map(ipaddress.ip_network)
rules = st.builds(
    Rule,
    st.just("r"),
    st.lists(sources, max_size=2).map(tuple),
    st.lists(networks, max_size=1).map(tuple),
    st.frozensets(st.integers(1, 3), max_size=2),
)
policies = st.builds(
    Policy,
    names,
    st.lists(rules, max_size=3).map(tuple),
    st.lists(rules, max_size=2).map(tuple),
    st.booleans(),
)
peers = st.one_of(st.none(), st.builds(who, names.filter(lambda n: "." not in n), names))


def reference(peer: WorkloadIdentity | None, ip: str, port: int, in_force: PolicySet) -> bool:
    """Design section 6, written the long way round."""

    def hits(rule: Rule) -> bool:
        if rule.ports and port not in rule.ports:
            return False
        if peer is None:
            return any(ipaddress.ip_address(ip) in n for n in rule.networks)
        texts = [(s.namespace, s.service_account or peer.service_account) for s in rule.sources]
        return (peer.namespace, peer.service_account) in texts

    if peer is None and not in_force.allow_plaintext and port not in in_force.plaintext_ports:
        return False
    enforcing = [p for p in in_force.policies if not p.audit]
    if any(hits(r) for p in enforcing for r in p.deny):
        return False
    if enforcing:
        return any(hits(r) for p in enforcing for r in p.allow)
    return in_force.mesh_default != DENY


@given(
    peers,
    st.sampled_from(["10.1.2.3", "10.9.9.9", "192.0.2.1", "fd00::1"]),
    st.integers(1, 4),
    st.builds(
        PolicySet,
        st.sampled_from([ALLOW_MESHED, ALLOW_ALL, DENY]),
        st.booleans(),
        st.lists(policies, max_size=3).map(tuple),
        st.sampled_from([NO_PORTS, PortSet.parse("1-2")]),
    ),
)
@pytest.mark.attack_row(17)
def test_the_matcher_agrees_with_the_reference(
    peer: WorkloadIdentity | None, ip: str, port: int, in_force: PolicySet
) -> None:
    verdict = judge(peer, ip, port, in_force)
    assert isinstance(verdict, Permit) == reference(peer, ip, port, in_force)
    if isinstance(verdict, Denial) and verdict.policy:
        assert verdict.policy in {p.name for p in in_force.policies if not p.audit}
