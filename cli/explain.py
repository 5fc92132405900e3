"""`podlink explain <source pod> <destination> [port]`: the decision path of a link, step by step.

Each step is decided by the code that decides it in the sidecar or the registry, over what the API
server says; where a sidecar can be asked, what it holds itself is used and differences are named.
Nothing is dialled.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import click

from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from cli.cluster import ClusterUnavailable, open_kube
from cli.mesh_view import MeshView, as_ip, ask_sidecar, read_in_force
from cli.terminal import printable, printable_json
from kit.contract import OWN_PORTS
from kit.kube import Kube
from policy.judge import Denial, judge
from policy.rules import ALLOW_MESHED, PolicySet
from registry.facts import PodFacts
from registry.keys import KeyMalformed
from sidecar.dataplane.routing.choose import eligible
from sidecar.dataplane.routing.route import Plaintext, Refused, Route, to_address
from sidecar.directory import (
    EXTERNAL,
    ByPort,
    Endpoint,
    External,
    Found,
    Gone,
    Service,
    ToPod,
    ToService,
    Workload,
    port_key,
)

_MARKS = {"ok": "ok  ", "note": "note", "stop": "STOP"}
_CLUSTER_SUFFIXES = (".svc.cluster.local", ".svc")


@dataclass
class Step:
    name: str
    state: str
    """`ok`, `note` (worth knowing) or `stop` (the link ends here)."""
    text: str


@dataclass
class Path:
    """How far a link gets."""

    steps: list[Step] = field(default_factory=list)
    verdict: str = ""

    def add(self, name: str, text: str, state: str = "ok") -> None:
        self.steps.append(Step(name, state, text))

    def stop(self, name: str, text: str) -> None:
        self.add(name, text, "stop")
        self.verdict = f"refused: {text}"


@click.command()
@click.argument("source")
@click.argument("destination")
@click.argument("port", required=False, type=click.IntRange(1, 65535))
@click.option("-o", "--output", type=click.Choice(("table", "json")), default="table")
@click.option(
    "--kubeconfig", type=click.Path(), help="As kubectl: else $KUBECONFIG, ~/.kube/config."
)
@click.option("--context", help="The kubeconfig's context to use.")
def explain(
    source: str,
    destination: str,
    port: int | None,
    output: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Explain what becomes of a link from SOURCE (namespace/pod) to DESTINATION: an IP, a Service
    (name.namespace), a pod (namespace/name) or a name outside (two words with a final dot, as
    example.com., else they are taken for a Service). Ends with status 1 if the link would be refused
    or there is no such Service."""
    try:
        path = asyncio.run(_explain(source, destination, port or 0, kubeconfig, context))
    except ClusterUnavailable as e:
        raise click.ClickException(printable(e)) from e
    if output == "json":
        click.echo(printable_json(asdict(path)))
    else:
        for number, step in enumerate(path.steps, 1):
            click.echo(f"{number}. {_MARKS[step.state]} {step.name:12} {printable(step.text)}")
        click.echo(f"=> {printable(path.verdict)}")
    if path.verdict.startswith("refused"):
        raise click.exceptions.Exit(1)


async def _explain(
    source: str, destination: str, port: int, kubeconfig: str | None, context: str | None
) -> Path:
    namespace, slash, name = source.partition("/")
    if not slash or not name:
        raise click.UsageError(f"{source!r} is not namespace/name of a pod")
    path = Path()
    async with await open_kube(kubeconfig, context) as kube:
        view = MeshView()
        await view.load(kube, namespace)
        near = view.pods.get(source)
        if near is None:
            raise click.ClickException(f"there is no pod {printable(source)}")
        policy_page, why_not = await ask_sidecar(kube, near, "/policy")
        state, _ = await ask_sidecar(kube, near, "/state")
        endpoints, _ = await ask_sidecar(kube, near, "/endpoints")
        _source(path, near, state, why_not, view)
        if path.verdict:
            return path
        found = await _resolve(kube, view, path, near, destination)
        if found is None:
            return path
        key, what, ip = found
        if isinstance(what, ByPort):
            key, what, ip, port = await _lead(kube, view, path, ip, what, port)
        allow_external = bool((policy_page or {}).get("allow_external", near.external != "deny"))
        route = _route(path, near, what, ip, port, allow_external, known(endpoints, key))
        if route is not None:
            far = _pod_at(view, route.ip)
            _way(path, route)
            if not path.verdict and not isinstance(route, Refused):
                await _receiver(kube, view, path, near, route, far)
    return path


def _source(
    path: Path, near: PodFacts, state: Mapping[str, Any] | None, why_not: str, view: MeshView
) -> None:
    who = f"{near.namespace}/{near.name}"
    if not near.meshed:
        path.add("source", f"{who} has no sidecar: it dials in plaintext, past podlink", "note")
        return
    if state is None:
        path.add("source", f"{who}; its sidecar cannot be asked: {why_not}", "note")
        return
    try:
        view.trust_domain = WorkloadIdentity.parse(str(state.get("identity"))).trust_domain
    except IdentityMalformed:
        return path.stop("source", f"the sidecar of {who} has no certificate: it dials nobody")
    if not state.get("ready"):
        waits = "; ".join(map(str, state.get("waits_for") or ()))
        return path.stop("source", f"the sidecar of {who} is not ready: {waits}")
    told = "" if state.get("registry_connected") else "; NOT connected to the registry"
    return path.add("source", f"{who} is {state.get('identity')}, mode {state.get('mode')}{told}")


async def _resolve(
    kube: Kube, view: MeshView, path: Path, near: PodFacts, text: str
) -> tuple[str, Found, str] | None:
    """What the destination is: (the key asked for, what it is, the address dialled)."""
    if "/" in text:
        namespace, _, _ = text.partition("/")
        await view.load(kube, namespace)
        pod = view.pods.get(text)
        if pod is None or not pod.ips:
            path.stop("resolve", f"there is no pod {text}" if pod is None else f"{text} has no IP")
            return None
        text = pod.ips[0]
    if ip := as_ip(text):
        await view.load_address(kube, ip)
        found = view.find(ip)
        path.add("resolve", f"{ip} is {described(found)}")
        return ip, found, ip
    name, within_cluster = service_name(text, near.namespace)
    try:
        await view.load(kube, name.rpartition(".")[2])
        found = view.find(name)
    except KeyMalformed:
        found = EXTERNAL
    if isinstance(found, External):
        if within_cluster:
            namespace = name.rpartition(".")[2]
            path.stop(
                "resolve", no_service(text, name, view.model.namespace(namespace) is not None)
            )
            return None
        path.add(
            "resolve",
            f"{text} is not one of the cluster's names; whether it exists outside, DNS alone can say",
            "note",
        )
        return text, EXTERNAL, text
    path.add("resolve", f"{text} is {described(found)}")
    first = found.cluster_ips[0] if isinstance(found, Service) and found.cluster_ips else ""
    return name, found, first


async def _lead(
    kube: Kube, view: MeshView, path: Path, ip: str, what: ByPort, port: int
) -> tuple[str, Found, str, int]:
    """Where the port leads of an address whose ports differ: key, what it is, address, port."""
    if not port:
        path.add("resolve", f"some ports of {ip} may lead to a Service: say which one", "note")
        return ip, what.otherwise, ip, port
    to = view.find(port_key(ip, port))
    if isinstance(to, ToPod) and to.pod.ips:
        path.add("resolve", f"{ip}:{port} is a host port of pod {to.pod.pod}: its port {to.port}")
        return to.pod.ips[0], to.pod, to.pod.ips[0], to.port
    if not isinstance(to, ToService):
        return ip, what.otherwise, ip, port
    await view.load(kube, to.key.rpartition(".")[2])
    service = view.find(to.key)
    path.add("resolve", f"{ip}:{port} leads to port {to.port} of {described(service)}")
    return to.key, service, ip, to.port


def service_name(text: str, namespace: str) -> tuple[str, bool]:
    """A host name as "name.namespace", seen from a pod of `namespace`, and whether it can only mean a
    Service: one word, two, or whatever ends as the cluster's names do. A final dot, as DNS has it,
    marks a name as complete: "example.com." is no Service `example`. Pure."""
    name = text.lower().removesuffix(".")
    for suffix in _CLUSTER_SUFFIXES:
        if name.endswith(suffix) and "." in (short := name.removesuffix(suffix)):
            return short, True
    if text.endswith("."):
        return name, False
    if "." not in name:
        return f"{name}.{namespace}", True
    return name, name.count(".") == 1


def no_service(text: str, key: str, namespace_exists: bool) -> str:
    """Why a name of the cluster's form leads nowhere, and what to do. Pure."""
    name, _, namespace = key.rpartition(".")
    if namespace_exists:
        said = f"no Service {name} in namespace {namespace}"
        return f"{said}; kubectl -n {namespace} get services lists them"
    said = f"no Service {name} in namespace {namespace}, for there is no such namespace"
    if text.lower() == key:
        said += f"; for a name outside the cluster give it with a final dot: {text}."
    return said


def described(found: Found) -> str:
    """One thing in a few words. Pure."""
    if isinstance(found, Service):
        ips = ", ".join(found.cluster_ips) or "headless"
        return f"Service {found.key} ({ips}), {len(found.endpoints)} endpoints"
    if isinstance(found, Workload):
        if not found.name:
            return "an address of a node: no identity can be proved there"
        return f"pod {found.pod}, " + (
            f"expected to be {found.identity}" if found.identity else "without a sidecar"
        )
    if isinstance(found, Gone):
        return "an address of the cluster that nobody holds now"
    if isinstance(found, ByPort):
        node = isinstance(found.otherwise, Workload)
        return "an address of a node" if node else "an address of a load balancer or an external IP"
    return "neither a pod nor a Service: external to the mesh"


def known(endpoints: Mapping[str, Any] | None, key: str) -> Mapping[str, Any] | None:
    """What the source's sidecar holds of a Service, from its admin page /endpoints."""
    for one in (endpoints or {}).get("services", ()):
        if one.get("key") == key or key in (one.get("cluster_ips") or ()):
            found: Mapping[str, Any] = one
            return found
    return None


def _route(
    path: Path,
    near: PodFacts,
    what: Found,
    ip: str,
    port: int,
    allow_external: bool,
    held: Mapping[str, Any] | None,
) -> Route | None:
    if isinstance(what, Gone):
        path.stop("endpoint", f"{ip} is held by nobody now: links to it are refused")
        return None
    if isinstance(what, ByPort | ToService | ToPod):  # nothing that a destination resolves to
        raise AssertionError(f"{ip} is not resolved")
    if not isinstance(what, Service):
        port = port or 80
        if port in OWN_PORTS:
            path.stop("endpoint", f"{port} is one of podlink's own ports")
            return None
        path.add("endpoint", f"{ip}:{port}, as dialled; an address is never rebalanced")
        return to_address(what, ip, port, allow_external=allow_external)
    port = port or min(what.ports, default=0)
    if port not in what.ports:
        listed = ", ".join(map(str, sorted(what.ports))) or "none"
        path.stop("endpoint", f"Service {what.key} has no port {port}; its ports: {listed}")
        return None
    fit = eligible(what, port)
    if not fit:
        path.stop("endpoint", f"no endpoint of {what.key} is ready for port {port}")
        return None
    _compare(path, fit, held)
    chosen = fit[0]
    why = what.balance or "least open links of two"
    if what.affinity_timeout_s:
        why = f"ClientIP affinity, else {why}"
    which = f"one of {len(fit)} by {why}; taken here:" if len(fit) > 1 else "the only one:"
    target = chosen.ports[port]
    pod = chosen.workload.pod if chosen.workload is not None else "no pod"
    path.add("endpoint", f"{which} {chosen.ip}:{target} ({pod})")
    if chosen.ip in near.ips:
        return Plaintext(chosen.ip, target, "self", "self", "self", pod)
    return to_address(
        chosen.workload or EXTERNAL, chosen.ip, target, allow_external=allow_external, choice="only"
    )


def _compare(path: Path, fit: list[Endpoint], held: Mapping[str, Any] | None) -> None:
    """What the source's sidecar holds against what the API server says."""
    if held is None:
        return
    here, there = {e.ip for e in fit}, {str(e["ip"]) for e in held["endpoints"] if e.get("ready")}
    if here != there:
        path.add(
            "in step",
            f"the sidecar holds other ready endpoints: lacks {sorted(here - there) or 'none'}, "
            f"still has {sorted(there - here) or 'none'}",
            "note",
        )
    out = [e["ip"] for e in held["endpoints"] for p in e["ports"].values() if p.get("ejected")]
    if out:
        path.add("in step", f"ejected after failures, tried last: {', '.join(out)}", "note")


def _way(path: Path, route: Route) -> None:
    if isinstance(route, Refused):
        path.stop("way", str(route.error))
    elif isinstance(route, Plaintext):
        words = {
            "self": "the pod itself: the bytes stay on loopback",
            "skip_port": "plaintext: the peer leaves this port out of its capture",
            "unmeshed_peer": "plaintext: the pod there has no sidecar",
            "host_network": "plaintext: it is on its node's network",
            "external": "plaintext: outside the mesh",
        }
        path.add("way", words.get(route.reason, route.reason), "note")
    else:
        path.add(
            "way",
            f"a tunnel to {route.ip}:{route.port}; the leaf there must be {route.pod.identity}",
        )


async def _receiver(
    kube: Kube, view: MeshView, path: Path, near: PodFacts, route: Route, far: PodFacts | None
) -> None:
    tunnelled = not isinstance(route, Plaintext) and near.meshed
    if far is None or not far.meshed or (isinstance(route, Plaintext) and route.reason != "self"):
        path.add("policy", "nobody of podlink's judges it there", "note")
        path.verdict = "allowed, in plaintext"
        return
    if isinstance(route, Plaintext):
        path.verdict = "allowed, within the pod"
        return
    page, why_not = await ask_sidecar(kube, far, "/policy")
    in_force, told = view.in_force(far, ALLOW_MESHED), ""
    if page is None:
        told = f" (told by the API server alone, and by the default allow-meshed: {why_not})"
    else:
        held = read_in_force(page)
        if set(held.policies) != set(in_force.policies):
            path.add("in step", "the receiver holds other policies than the API server has", "note")
        in_force = held
    peer = WorkloadIdentity(view.trust_domain, near.namespace, near.service_account)
    decide(path, peer if tunnelled else None, near.ips[0], route.port, in_force, told)


def decide(
    path: Path,
    peer: WorkloadIdentity | None,
    ip: str,
    port: int,
    in_force: PolicySet,
    told: str = "",
) -> None:
    """The receiver's verdict as the last step. Pure."""
    names = ", ".join(p.name + (" (Audit)" if p.audit else "") for p in in_force.policies)
    selected = f"selected by {names}" if names else "selected by no policy"
    verdict = judge(peer, ip, port, in_force)
    if isinstance(verdict, Denial):
        near = f"; nearest: {verdict.nearest}" if verdict.nearest else ""
        by = f" [{verdict.policy} {verdict.rule}]" if verdict.policy else f" [{verdict.rule}]"
        return path.stop("policy", f"{selected}: {verdict.text}{by}{near}{told}")
    by = f"{verdict.policy} {verdict.rule}".strip()
    path.add("policy", f"{selected}: allowed by {by}{told}")
    if verdict.would_deny:
        path.add("audit", f"{verdict.would_deny} {verdict.would_deny_rule} would refuse it", "note")
    path.verdict = f"allowed by {by}, over " + ("mutual TLS" if peer is not None else "plaintext")
    return None


def _pod_at(view: MeshView, ip: str) -> PodFacts | None:
    found = view.model.at_ip(ip)
    return found if isinstance(found, PodFacts) else None
