"""Replay, suggestion, authz and explain: what they make of the record and of what is in force."""

import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from click.testing import CliRunner

from certs.trust.identity import WorkloadIdentity
from cli import authz, explain
from cli.policy import policy
from cli.policy_replay import only_told_by_source, read_traffic, replay
from cli.policy_suggest import suggest
from kit.kube import KubeError
from policy.linkpolicy import LinkPolicy, parse
from policy.replay import Seen
from policy.rules import DENY, Policy, PolicySet, Rule, Source
from registry.facts import PodFacts, read_pod
from sidecar.dataplane.routing.route import Plaintext
from sidecar.directory import EXTERNAL, Endpoint, Service, Workload
from tests.policy.test_linkpolicy import DESIGN
from tests.registry.objects import endpoint, node, pod, service, slice_of, with_host_port

DB = {("prod", "db"): [{"app": "db"}]}


def row(who: str, **fields: Any) -> dict[str, Any]:
    namespace, _, account = who.partition("/")
    return {
        "source_kind": "identity",
        "source": f"spiffe://cluster.local/ns/{namespace}/sa/{account}",
        "destination_kind": "identity",
        "destination": "spiffe://cluster.local/ns/prod/sa/db",
        "port": 5432,
        "security": "mtls",
        "verdict": "allowed",
        "reason": "",
        "sides": "both",
        "links": 3,
        "opened": 0,
        "in_links": fields.get("links", 3) if fields.get("sides") != "outbound" else 0,
        "in_opened": 0,
        "last_ns": 7,
        **fields,
    }


def candidate(**spec: Any) -> LinkPolicy:
    raw = yaml.safe_load(DESIGN)
    raw["spec"].update(spec)
    return parse(raw)


def test_both_sides_of_a_link_are_counted_once_and_self_links_not_at_all() -> None:
    rows = [
        row("shop/api", sides="outbound", links=5),
        row("shop/api", sides="inbound", links=4, policy="prod/db", rule="allow[0]"),
        row("shop/api", security="self", links=100),
        row("shop/api", verdict="failed", links=100),
        row("shop/api", destination_kind="address", destination="192.0.2.7"),
        row("shop/api", source="rubbish"),
    ]
    (seen,) = read_traffic(rows)
    assert (seen.source, seen.links, seen.denied) == ("shop/api", 4, False)
    assert only_told_by_source(rows) == 0


@pytest.mark.attack_row(56)
def test_a_link_that_only_its_source_tells_of_makes_no_rule_and_no_fate() -> None:
    """Whoever wants to be let in need not have been: it would only have to say so often enough."""
    rows = [row("shop/api"), row("evil/x", sides="outbound", links=10_000)]
    seen = read_traffic(rows)
    assert [one.source for one in seen] == ["shop/api"]
    assert only_told_by_source(rows) == 10_000
    text = suggest("prod", seen, [running("db", "db", app="db")], enforce=True)
    assert "evil" not in text and "serviceAccount: api" in text


def test_a_replay_says_what_would_be_cut_kept_let_in_and_never_used() -> None:
    rows = [
        row("shop/api"),
        row("shop/web", links=9),
        row("batch/any", port=9187),
        row("shop/legacy", verdict="denied", reason="policy_denied"),
        row("batch/night", verdict="denied", reason="policy_denied"),
        row("", source_kind="address", source="10.1.2.3", port=9187, security="plaintext"),
        row("shop/api", destination="spiffe://cluster.local/ns/prod/sa/gone"),
    ]
    result = replay([candidate()], [], read_traffic(rows), DB)
    fates = {(one.seen.source, one.seen.port): one.fate for one in result.outcomes}
    assert fates == {
        ("shop/api", 5432): "kept",
        ("shop/web", 5432): "cut",
        ("batch/any", 9187): "cut",
        ("shop/legacy", 5432): "still",
        ("batch/night", 5432): "opened",
        ("10.1.2.3", 9187): "kept",
    }
    assert result.outcomes[0].seen.source == "shop/web", (
        "the most links that would be cut come first"
    )
    assert result.count("cut") == 12
    assert result.unused == ()
    assert result.notes == ("prod/gone runs no pod today: taken as not selected",)


def test_rules_of_other_policies_in_force_still_count_and_unused_rules_are_named() -> None:
    other = Policy("prod/other", (Rule("allow[0]", (Source("shop", "web"),)),))
    in_force = LinkPolicy("prod", "other", candidate().selector, other)
    result = replay([candidate()], [in_force], read_traffic([row("shop/web")]), DB)
    assert [one.fate for one in result.outcomes] == ["kept"]
    assert result.unused == ("prod/db allow[0]", "prod/db allow[1]", "prod/db deny[0]")


def test_an_auditing_candidate_cuts_nothing_and_says_what_it_would() -> None:
    result = replay([candidate(mode="Audit")], [], read_traffic([row("shop/web")]), DB)
    (one,) = result.outcomes
    assert one.fate == "kept" and "would deny it" in one.why


def test_pods_that_the_selector_passes_over_are_left_out_and_some_of_them_is_said() -> None:
    seen = read_traffic([row("shop/web")])
    assert replay([candidate()], [], seen, {("prod", "db"): [{"app": "other"}]}).outcomes == ()
    mixed = {("prod", "db"): [{"app": "db"}, {"app": "other"}]}
    (one,) = replay([candidate()], [], seen, mixed).outcomes
    assert "at some of its pods" in one.why


def running(name: str, account: str, **labels: str) -> PodFacts:
    return read_pod(pod(name, "10.0.0.1", namespace="prod", account=account, labels=labels))


def seen_by(who: str, port: int, **fields: Any) -> Seen:
    (found,) = read_traffic([row(who, port=port, **fields)])
    return found


def test_a_suggestion_allows_what_was_seen_and_selects_only_those_pods() -> None:
    pods = [
        running("db-0", "db", app="db", tier="data", **{"pod-template-hash": "x"}),
        running("db-1", "db", app="db", tier="data", **{"pod-template-hash": "y"}),
        running("web", "web", app="web", tier="data"),
    ]
    traffic = [
        seen_by("shop/api", 5432),
        seen_by("batch/night", 5432),
        seen_by("ops/scraper", 9187),
        seen_by("shop/legacy", 5432, verdict="denied", reason="policy_denied"),
        seen_by("", 9187, source_kind="address", source="10.1.2.3", security="plaintext"),
        seen_by("", 9187, source_kind="pod", source="old/nagios", security="plaintext"),
    ]
    text = suggest("prod", traffic, pods, enforce=False)
    db, web = yaml.safe_load_all(text)
    assert db["spec"]["selector"] == {"matchLabels": {"app": "db"}}
    assert db["spec"]["mode"] == "Audit"
    assert db["spec"]["allow"] == [
        {
            "from": [
                {"namespace": "batch", "serviceAccount": "night"},
                {"namespace": "shop", "serviceAccount": "api"},
            ],
            "ports": [5432],
        },
        {"from": [{"namespace": "ops", "serviceAccount": "scraper"}], "ports": [9187]},
        {"fromCIDRs": ["10.1.2.3/32"], "ports": [9187]},
    ]
    assert web["spec"]["allow"] == []
    assert "# refused already, and left out: shop/legacy port 5432" in text
    assert "# left out: plaintext from old/nagios to port 9187" in text
    parsed = [parse(one) for one in (db, web)]
    assert parsed[0].selects("prod", {"app": "db"})


def test_pods_that_no_label_tells_apart_are_said_to_be_so() -> None:
    pods = [running("a", "a", app="x"), running("b", "b", app="x")]
    assert "NOT EXACT" in suggest("prod", [], pods, enforce=True)


def test_a_hostile_name_on_record_stays_a_comment() -> None:
    nasty = seen_by("", 80, source_kind="pod", source="x\nspec: {}\u2028", security="plaintext")
    text = suggest("prod", [nasty], [running("db", "db", app="db")], enforce=False)
    assert len(list(yaml.safe_load_all(text))) == 1
    assert all(line.startswith("# ") for line in text.splitlines() if "spec: {}" in line)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is no YAML"),
        ("", "holds no LinkPolicy"),
        (DESIGN.replace("ports: [5432]", "port: [5432]"), "document 1: spec.allow[0].port"),
    ],
)
def test_check_refuses_in_one_line_that_names_the_field(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    done = CliRunner().invoke(policy, ["check", "-f", str(file)])
    assert done.exit_code == 1
    assert said in done.output and len(done.output.splitlines()) == 1


def test_check_says_what_is_lawful_and_perhaps_not_meant(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    raw = {**yaml.safe_load(DESIGN), "spec": {"deny": [{"from": [{"namespace": "a"}]}]}}
    file.write_text(yaml.safe_dump(raw))
    done = CliRunner().invoke(policy, ["check", "-f", str(file)])
    assert done.exit_code == 0
    assert "prod/db: ok, Enforce, 0 allow, 1 deny" in done.output
    assert "let nobody in" in done.output and "every pod of namespace prod" in done.output


def test_authz_lists_bars_before_ways_in_and_what_is_left() -> None:
    rules = (Rule("allow[0]", (Source("shop"),), (ip_network("10.0.0.0/8"),), frozenset({80})),)
    enforcing = Policy("prod/db", rules, (Rule("deny[0]", (Source("shop", "old"),)),))
    audit = Policy("prod/new", audit=True, allow=(Rule("allow[0]", (Source("x"),)),))
    found = list(authz.rows(PolicySet(policies=(enforcing, audit))))
    assert [(one["verdict"], one["who"], one["ports"]) for one in found] == [
        ("denied", "shop/old", "any"),
        ("allowed", "shop/(any)", "80"),
        ("allowed", "10.0.0.0/8 (plaintext)", "80"),
        ("would be allowed", "x/(any)", "any"),
        ("denied", "whoever shows no identity (plaintext)", "any"),
        ("denied", "everybody else", "any"),
    ]
    default = list(authz.rows(PolicySet(mesh_default=DENY, allow_plaintext=True)))
    assert default[-1]["because"] == "the mesh default deny"


def test_explain_ends_with_the_receivers_own_verdict() -> None:
    path = explain.Path()
    rules = (Rule("allow[0]", (Source("shop", "api"),), ports=frozenset({5432})),)
    in_force = PolicySet(policies=(Policy("prod/db", rules),))
    explain.decide(path, WorkloadIdentity("cluster.local", "shop", "api"), "10.0.0.1", 80, in_force)
    assert path.steps[-1].state == "stop"
    assert "nearest: prod/db allow[0] allows 5432, not port 80" in path.verdict


def test_explain_finds_the_endpoint_and_names_what_the_sidecar_holds_otherwise() -> None:
    near = running("web", "web", app="web")
    far = Workload("u", "prod", "db-0", None, ("10.0.0.7",))
    service = Service(
        "prod", "db", ("10.96.0.1",), frozenset({80}), (Endpoint("10.0.0.7", {80: 5432}, far),)
    )
    held = {"endpoints": [{"ip": "10.0.0.8", "ready": True, "ports": {"80": {"ejected": True}}}]}
    path = explain.Path()
    route = explain._route(path, near, service, "10.96.0.1", 80, True, held)
    assert isinstance(route, Plaintext) and route.reason == "unmeshed_peer"
    said = " / ".join(step.text for step in path.steps)
    assert "lacks ['10.0.0.7'], still has ['10.0.0.8']" in said and "ejected" in said
    assert explain._route(path, near, service, "", 81, True, None) is None
    assert path.verdict.startswith("refused: Service db.prod has no port 81")
    refused = explain.Path()
    explain._way(refused, explain._route(refused, near, EXTERNAL, "192.0.2.7", 80, False, None))  # type: ignore[arg-type]
    assert refused.verdict.startswith("refused: 192.0.2.7 is outside the mesh")


class FakeCluster:
    """Lists of one namespace, hello; there is no other, and no sidecar can be asked."""

    def __init__(self) -> None:
        named = (pod("client", "10.0.0.1", namespace="hello", meshed=False),)
        at = "/api/v1/namespaces/hello"
        self.objects: dict[str, Any] = {
            at: {"metadata": {"name": "hello"}},
            f"{at}/pods": {"items": named},
            f"{at}/services": {"items": [service("web", "10.96.0.1", namespace="hello")]},
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def get(self, path: str, **_: str) -> Any:
        if path in self.objects:
            return self.objects[path]
        if path.startswith("/api/v1/namespaces/") and path.count("/") == 4:
            raise KubeError(404, "NotFound", path)
        return {"items": []}


@pytest.fixture
def hello(monkeypatch: pytest.MonkeyPatch) -> None:
    async def opened(*_: object) -> FakeCluster:
        return FakeCluster()

    monkeypatch.setattr(explain, "open_kube", opened)
    monkeypatch.setattr(authz, "open_kube", opened)


@pytest.mark.usefixtures("hello")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuch", "no Service nosuch in namespace hello; kubectl -n hello get services lists"),
        ("nosuch.hello", "no Service nosuch in namespace hello;"),
        ("nosuch.hello.svc", "no Service nosuch in namespace hello;"),
        ("nosuch.hello.svc.cluster.local.", "no Service nosuch in namespace hello;"),
        ("web.helo", "for a name outside the cluster give it with a final dot: web.helo."),
        ("web.helo.svc.cluster.local", "no Service web in namespace helo, for there is no such"),
    ],
)  # fmt: skip
def test_explain_approves_no_name_that_is_no_service(name: str, said: str) -> None:
    done = CliRunner().invoke(explain.explain, ["hello/client", name, "80"])
    assert done.exit_code == 1, done.output
    assert said in done.output and "allowed" not in done.output


@pytest.mark.usefixtures("hello")
@pytest.mark.parametrize("name", ["www.example.com", "example.com."])
def test_explain_leaves_a_name_outside_to_dns_and_says_that_it_is_not_the_clusters(
    name: str,
) -> None:
    done = CliRunner().invoke(explain.explain, ["hello/client", name, "443"])
    assert done.exit_code == 0, done.output
    assert f"{name} is not one of the cluster's names" in done.output


@pytest.mark.usefixtures("hello")
@pytest.mark.parametrize("name", ["web", "WEB.hello", "web.hello.svc.cluster.local"])
def test_explain_finds_a_service_by_every_form_of_its_name(name: str) -> None:
    done = CliRunner().invoke(explain.explain, ["hello/client", name, "80"])
    assert f"{name} is Service web.hello (10.96.0.1)" in done.output


def _cluster_with_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    made = FakeCluster()
    ports = ({"name": "web", "port": 80, "nodePort": 30080},)
    lead = service("web", "10.96.0.1", namespace="hello", ports=ports, externalIPs=["198.51.100.7"])
    far = pod("web", "10.0.0.7", namespace="hello", meshed=False)
    published = with_host_port(pod("host", "10.0.0.8", namespace="hello", meshed=False), 9000, 8080)
    aims = ({"name": "web", "port": 8080, "protocol": "TCP"},)
    at = "/api/v1/namespaces/hello"
    made.objects[f"{at}/services"] = made.objects["/api/v1/services"] = {"items": [lead]}
    made.objects[f"{at}/pods"]["items"] += (far, published)
    made.objects["/apis/discovery.k8s.io/v1/namespaces/hello/endpointslices"] = {
        "items": [slice_of("web", endpoint("10.0.0.7", far), namespace="hello", ports=aims)]
    }
    made.objects["/api/v1/nodes"] = {"items": [node("n1", "192.0.2.1")]}

    async def opened(*_: object) -> FakeCluster:
        return made

    monkeypatch.setattr(explain, "open_kube", opened)


@pytest.mark.parametrize(
    ("ip", "port", "said"),
    [
        (
            "198.51.100.7",
            80,
            ["leads to port 80 of Service web.hello", "10.0.0.7:8080 (hello/web)"],
        ),
        ("192.0.2.1", 30080, ["an address of a node", "leads to port 80 of Service web.hello"]),
        ("192.0.2.1", 9000, ["is a host port of pod hello/host: its port 8080", "10.0.0.8:8080"]),
        ("192.0.2.1", 22, ["192.0.2.1:22, as dialled"]),
        ("198.51.100.7", None, ["say which one"]),
    ],
)
def test_explain_follows_a_port_of_an_address_to_where_it_leads(
    ip: str, port: int | None, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _cluster_with_ways(monkeypatch)
    asked = ["hello/client", ip, *([str(port)] if port else [])]
    done = CliRunner().invoke(explain.explain, asked)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    for words in said:
        assert words in done.output, done.output


@pytest.mark.usefixtures("hello")
def test_authz_prints_no_rules_for_a_pod_that_nothing_guards() -> None:
    done = CliRunner().invoke(authz.authz, ["hello/client"])
    [line] = done.output.splitlines()
    assert done.exit_code == 0 and "hello/client has no sidecar" in line
    found = json.loads(CliRunner().invoke(authz.authz, ["hello/client", "-o", "json"]).output)
    assert found["rules"] == [] and found["plaintext"] is True
