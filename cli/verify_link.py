"""`podlink verify-link ns/a ns/b[:port]`: is the path from one pod to another, or to a Service, what it
should be?

Both proxies are asked what they are, a link is really made from inside the source's app, and what
both sides recorded of it is compared. The answer is text to paste into a ticket.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import click

from cli.cluster import ClusterUnavailable, open_kube
from cli.exec import ExecFailed, exec_json, exec_lines, exec_output
from cli.pods import PodName, identity_of, is_meshed, read_pod
from cli.target import Target, read_target
from cli.terminal import printable, printable_json
from kit.clock import utcnow
from kit.contract import HEALTH_PORT, PROXY_CONTAINER, VERSION
from kit.kube import Kube
from kit.tasks import spawn, stop

_PYTHON: Final = (
    "import socket,sys,time\n"
    "s=socket.create_connection((sys.argv[1],int(sys.argv[2])),5)\n"
    "s.settimeout(0.5)\n"
    "try: s.recv(1)\n"
    "except OSError: pass\n"
)
_ROUND_TRIP: Final = (
    "import socket,sys,time\n"
    "t=[]\n"
    "for _ in range(5):\n"
    " b=time.perf_counter(); socket.create_connection((sys.argv[1],int(sys.argv[2])),3).close()\n"
    " t.append(time.perf_counter()-b)\n"
    "print(min(t)*1e3)\n"
)
_MARKS: Final = {True: "✓", False: "✗", None: "?"}

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One statement about the path. `ok` None: it could not be told."""

    name: str
    ok: bool | None
    said: str


def connecting(ip: str, port: int) -> list[list[str]]:
    """Commands that open a TCP connection and end it, for whatever an app's image has."""
    dev = f"exec 3<>/dev/tcp/{ip}/{port}; read -t 1 -n 1 <&3; exec 3>&-"
    host = f"[{ip}]" if ":" in ip else ip
    return [
        ["python3", "-c", _PYTHON, ip, str(port)],
        ["python", "-c", _PYTHON, ip, str(port)],
        ["bash", "-c", dev],
        ["nc", "-w", "1", "-z", ip, str(port)],
        ["curl", "-s", "-m", "2", "-o", "/dev/null", f"http://{host}:{port}/"],
        ["wget", "-q", "-T", "2", "-O", "/dev/null", f"http://{host}:{port}/"],
    ]


@click.command("verify-link")
@click.argument("source")
@click.argument("destination")
@click.option(
    "--wait",
    type=click.IntRange(1, 600),
    default=10,
    show_default=True,
    help="Seconds to wait for the link to be told of by both sides.",
)
@click.option(
    "-o", "--output", type=click.Choice(("text", "json")), default="text", show_default=True
)
@click.option(
    "--kubeconfig", type=click.Path(), help="As kubectl: else $KUBECONFIG, ~/.kube/config."
)
@click.option("--context", help="The kubeconfig's context to use.")
def verify_link(
    source: str,
    destination: str,
    wait: int,
    output: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Prove the path from SOURCE (ns/pod) to DESTINATION (ns/pod[:port], or ns/service[:port]): capture,
    resolution, handshake, identities, policy, directness, round trip.

    It makes one connection from inside the source's app container, which the destination's app sees
    come and go. Status 0 only if nothing is wrong."""
    a, b = PodName.parse(source), PodName.parse(destination, with_port=True)
    try:
        checks = asyncio.run(_verify(a, b, wait, kubeconfig, context))
    except (ClusterUnavailable, ExecFailed) as e:
        raise click.ClickException(printable(e)) from e
    sound = all(check.ok is not False for check in checks)
    if output == "json":
        click.echo(
            printable_json(
                {
                    "source": str(a),
                    "destination": str(b),
                    "sound": sound,
                    "checks": [asdict(c) for c in checks],
                }
            )
        )
    else:
        click.echo(as_text(a, b, checks, sound))
    if not sound:
        raise click.exceptions.Exit(1)


def as_text(a: PodName, b: PodName, checks: Sequence[Check], sound: bool) -> str:
    to = f"{b}:{b.port}" if b.port else str(b)
    head = f"podlink verify-link {a} {to}   {utcnow():%Y-%m-%dT%H:%M:%SZ}   podlink {VERSION}"
    width = max((len(check.name) for check in checks), default=0)
    lines = [f" {_MARKS[c.ok]} {c.name:<{width}}  {printable(c.said)}" for c in checks]
    told = sum(1 for check in checks if check.ok is None)
    end = "all of it holds" if sound else "something is wrong: see the lines marked ✗"
    if sound and told:
        end = f"nothing is wrong; {told} could not be told (marked ?)"
    return "\n".join([head, *lines, f" {end}"])


async def _verify(
    a: PodName, b: PodName, wait_s: int, kubeconfig: str | None, context: str | None
) -> list[Check]:
    async with await open_kube(kubeconfig, context) as kube:
        source = await read_pod(kube, a)
        if not is_meshed(source):
            raise ClusterUnavailable(f"{a} has no sidecar, so nothing can be proven from it")
        to = await read_target(kube, b)
        checks = await _one_end(kube, a, source, "source")
        if not to.service:
            checks += await _one_end(kube, b, to.pods[str(b)], "destination")
        if not to.ip:
            return [*checks, Check("destination's address", False, f"{b} has no IP yet")]
        out, into, how = await _link(kube, a, source, to, wait_s)
        checks.append(Check("a link was made", out is not None, how))
        if out is None:
            return checks
        pod, ip = str(b), to.ip
        if to.service:  # which of its pods it was, the link has shown
            pod, ip = str(out.get("destination_pod") or ""), str(out.get("destination_ip") or "")
            checks.append(of_service(b, to.pods, pod))
            if pod not in to.pods:
                return checks
            checks += await _one_end(kube, PodName.parse(pod), to.pods[pod], "destination")
        destination = to.pods[pod]
        checks += judge(
            out,
            into,
            source=identity_of(source, _domain(out)),
            destination=identity_of(destination, _domain(out)),
            pod=pod,
            ip=ip,
            port=to.port,
            meshed=is_meshed(destination),
            dialled=to.ip,
        )
        checks.append(await _round_trip(kube, a, ip, is_meshed(destination)))
        return checks


def of_service(service: PodName, pods: Mapping[str, Any], chosen: str) -> Check:
    """Whether what was dialled is one of the Service's pods, by the API's word. Pure."""
    among = f"one of {len(pods)}" if len(pods) != 1 else "the only one"
    if chosen in pods:
        return Check("endpoint", True, f"{chosen}, {among} of Service {service}")
    return Check("endpoint", False, f"{chosen or 'none'} is no pod behind Service {service}")


def _domain(record: Item) -> str:
    parts = str(record.get("source_identity", "")).split("/")
    return parts[2] if len(parts) > 2 else "cluster.local"


async def _one_end(kube: Kube, name: PodName, pod: Mapping[str, Any], which: str) -> list[Check]:
    if not is_meshed(dict(pod)):
        return [Check(f"{which} is meshed", False, f"{name} has no sidecar")]
    capture = await exec_json(kube, name.namespace, name.name, "/capture")
    leaf = await exec_json(kube, name.namespace, name.name, "/certificates")
    state = await exec_json(kube, name.namespace, name.name, "/state")
    return of_end(which, capture, leaf, state)


def of_end(which: str, capture: Item, certificates: Item, state: Item) -> list[Check]:
    """What one proxy says of itself. Pure."""
    if capture.get("mode") == "localhost":
        told = Check(f"{which}: capture", None, "mode localhost: nothing is captured")
    elif capture.get("in_place"):
        told = Check(
            f"{which}: capture", True, f"the canary was captured {capture.get('seen_s_ago')} s ago"
        )
    elif capture.get("in_place") is None:
        told = Check(f"{which}: capture", None, "the canary has not flown yet")
    else:
        told = Check(f"{which}: capture", False, "the canary was not captured: rules are missing")
    leaf = certificates.get("leaf") or {}
    usable = bool(certificates.get("usable"))
    said = (
        f"{leaf.get('identity')}, serial {leaf.get('serial')}, ends {leaf.get('expires_at')}"
        if leaf
        else "no leaf"
    )
    return [
        told,
        Check(f"{which}: certificate", usable, said),
        Check(
            f"{which}: ready",
            bool(state.get("ready")),
            f"version {state.get('version')}, node {state.get('node') or 'not told'}"
            if state.get("ready")
            else f"waits for {state.get('waits_for')}",
        ),
    ]


def judge(
    out: Item,
    into: Item | None,
    *,
    source: str,
    destination: str,
    pod: str,
    ip: str,
    port: int,
    meshed: bool,
    dialled: str = "",
) -> list[Check]:
    """What both sides recorded of the link, against what the API says of the pods. Pure."""
    resolved = str(out.get("destination_pod") or "")
    choice = out.get("endpoint_choice") or "nothing"
    verdict = str(out.get("verdict"))
    reason = f" ({out.get('reason')})" if out.get("reason") else ""
    checks = [
        Check(
            "resolution",
            resolved == pod and out.get("destination_ip") in (ip, "") if resolved else None,
            f"{dialled or ip}:{port} is {resolved or 'not told'}, chosen by {choice}",
        ),
        Check(
            "handshake",
            out.get("security") == "mtls",
            f"TLS 1.3, {out.get('tls_cipher') or 'cipher as negotiated earlier'}"
            + (", over an idle tunnel" if out.get("pooled") else ", new tunnel")
            if out.get("security") == "mtls"
            else f"{out.get('security')}{reason}"
            + ("" if meshed else ": the destination has no sidecar"),
        ),
        Check(
            "destination's identity",
            out.get("destination_identity") == destination,
            f"{out.get('destination_identity') or 'none was shown'}, expected {destination}",
        ),
    ]
    seen = into.get("source_identity") if into else None
    checks.append(
        Check(
            "source's identity",
            seen == source if into else None,
            f"{seen or 'none was shown'}, expected {source}"
            if into
            else "the destination told of no link",
        )
    )
    judged = into or out
    rule = " ".join(str(judged.get(k)) for k in ("policy", "rule") if judged.get(k))
    near = f"; nearest: {judged.get('nearest_rule')}" if judged.get("nearest_rule") else ""
    wrong = str(out.get("error") or judged.get("error") or "")
    checks.append(
        Check(
            "policy",
            verdict in ("allowed", "audited")
            and str(judged.get("verdict")) in ("allowed", "audited"),
            f"{verdict}{reason}"
            + (f" by {rule}" if rule else "")
            + near
            + (f": {wrong}" if wrong and verdict not in ("allowed",) else ""),
        )
    )
    came_from = into.get("source_ip") if into else ""
    direct = into.get("direct") if into else out.get("direct")
    checks.append(
        Check(
            "direct",
            bool(direct) if direct is not None else None,
            "the TCP source is an IP of the peer's leaf: nothing in between rewrote it"
            if direct
            else "not told"
            if direct is None
            else f"NATed: the TCP source {came_from} is no IP of the peer's leaf",
        )
    )
    same = into is not None and into.get("trace_id") == out.get("trace_id")
    trace = str(out.get("trace_id") or "")
    checks.append(
        Check(
            "both sides told", same, f"trace {trace}" if same else f"only the source; trace {trace}"
        )
    )
    return checks


async def _link(
    kube: Kube, a: PodName, source: Mapping[str, Any], to: Target, wait_s: int
) -> tuple[Item | None, Item | None, str]:
    """Listen at the proxies, make a link, and wait until both sides have told of it."""
    ip, port = to.ip, to.port
    out_found: list[Item] = []
    in_found: list[Item] = []
    told = asyncio.Event()

    async def listen(pod: PodName, found: list[Item], direction: str) -> None:
        with suppress(ExecFailed):
            async for item in exec_lines(kube, pod.namespace, pod.name, "/tap"):
                if item.get("direction") == direction and not item.get("still_open"):
                    found.append(item)
                    told.set()

    taps = [spawn(listen(a, out_found, "outbound"), name="tap of the source")]
    for name, pod in to.pods.items():
        if is_meshed(dict(pod)):
            listening = listen(PodName.parse(name), in_found, "inbound")
            taps.append(spawn(listening, name=f"tap of {name}"))
    own = source["spec"]["containers"][0]["name"]
    how = ""
    out: Item | None = None
    into: Item | None = None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    try:
        await asyncio.sleep(0.5)  # a tap has nothing to say until a link ends: give it time to open
        while loop.time() < deadline and (out is None or (into is None and len(taps) > 1)):
            told.clear()
            if out is None:
                how = await _connect(kube, a, own, ip, port)
            with suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), 1.0)
            out = next((r for r in reversed(out_found) if _is_to(r, ip, port)), out)
            if out is not None:
                into = next((r for r in in_found if r.get("trace_id") == out.get("trace_id")), into)
                if (
                    into is None
                    and out.get("verdict") in ("denied", "failed")
                    and loop.time() > deadline - wait_s + 3
                ):
                    break
    finally:
        await stop(*taps)
    if out is None:
        return None, None, how or "no link was told of in time"
    return out, into, how


def _is_to(record: Item, ip: str, port: int) -> bool:
    return record.get("original_ip") == ip and record.get("original_port") == port


async def _connect(kube: Kube, a: PodName, container: str, ip: str, port: int) -> str:
    """Open a connection from the app's container with whatever it has; says how."""
    failed = ""
    for argv in connecting(ip, port):
        try:
            await exec_output(kube, a.namespace, a.name, container, argv)
        except ExecFailed as e:
            said = str(e)
            missing = any(
                w in said for w in ("not found", "No such file", "no such file", "127", "stat ")
            )
            if missing:
                continue
            failed = f"{argv[0]} in container {container}: {said.rpartition(': ')[2]}"
            return f"from container {container} by {argv[0]} (which said: {failed.rpartition(': ')[2]})"
        return f"from container {container} by {argv[0]}"
    return (
        f"container {container} has none of python3, bash, nc, curl, wget: "
        "let its app call the destination while this waits (--wait)"
    )


async def _round_trip(kube: Kube, a: PodName, ip: str, meshed: bool) -> Check:
    """Of a TCP connection between the two pods, by the destination's health port: no link is made."""
    if not meshed:
        return Check("round trip", None, "the destination has no sidecar to measure by")
    try:
        said = await exec_output(
            kube,
            a.namespace,
            a.name,
            PROXY_CONTAINER,
            ("python", "-c", _ROUND_TRIP, ip, str(HEALTH_PORT)),
        )
        return Check("round trip", True, f"{float(said):.2f} ms at best of 5, pod to pod")
    except (ExecFailed, ValueError) as e:
        return Check("round trip", None, f"could not be measured: {str(e).rpartition(': ')[2]}")
