"""One podlink data plane for the bench: static certificates and resolver, all else real.

    python -m bench.podlink_sidecar \\
        outbound --listen 127.0.0.1:P --target 127.0.0.1:Q --app 127.0.0.1:R \\
        --certs DIR --otlp 127.0.0.1:S
    python -m bench.podlink_sidecar \\
        inbound --listen 127.0.0.1:Q --app 127.0.0.1:R --certs DIR --otlp 127.0.0.1:S

What the bench expects of it:

- One process, one event loop. It listens on exactly `--listen`, and only once it can serve: the
  bench takes the first connection accepted there as "ready".
- `outbound` is the near sidecar. Whatever connects to P is a link to port R of the pod 127.0.0.1, as
  an entry of `upstreams` would make it; the peer runs in `localhost` mode with Q for its inbound
  port. The static resolver answers: meshed, identity
  `bench.certificates.FAR_IDENTITY`, the pod's IP 127.0.0.1 (it is among the leaf's IP SANs). A
  peer of any other identity or authority must get no byte of the app's.
- `inbound` is the far sidecar. Whatever connects to Q handshakes or is refused, as with
  `plaintext: deny`. OPEN names the app's port R.
- DIR holds `ca.pem`, and for the own side `near.pem`/`near.key` or `far.pem`/`far.key` (PEM, chain
  and PKCS#8), loaded through the same `TlsMaterial` as a leaf from the authority.
- Everything that costs in a pod is on: the SVID check of each handshake, `authorise` against one
  policy of a few rules that allows `NEAR_IDENTITY`, the pool at its defaults, a LinkRecord per
  link, spans at sampling ratio 1, encoded and exported to the OTLP/gRPC endpoint at `--otlp`
  (plaintext, `bench.sink`). All modules of a real sidecar are imported, so that its memory is the
  memory of a pod's sidecar.
- SIGTERM ends it with status 0 within 3 s.
"""

import argparse
import asyncio
import gc
import signal
import socket
from dataclasses import replace
from pathlib import Path

from bench.certificates import FAR_IDENTITY, NEAR_IDENTITY
from certs.trust.bans import Guard
from certs.trust.contexts import TlsMaterial
from certs.trust.identity import WorkloadIdentity
from certs.trust.svid import SvidChecker
from kit.buckets import Buckets
from kit.clock import monotonic
from kit.tasks import spawn, stop
from policy.rules import Policy, PolicySet, Rule, Source
from sidecar import sockets
from sidecar.__main__ import main as pod_main  # noqa: F401 - all that a pod's sidecar imports
from sidecar.carrier import trust_of
from sidecar.dataplane.links.arrival import Arrivals
from sidecar.dataplane.links.outbound import OutboundLink
from sidecar.dataplane.loop.listener import Listener
from sidecar.dataplane.loop.poller import DataLoop, poller_of
from sidecar.dataplane.plane import Plane, Trust
from sidecar.dataplane.sweep import Sweep
from sidecar.dataplane.tunnels.pool import Pool
from sidecar.denials import Denials
from sidecar.directory import Answer, Found, Own, Workload
from sidecar.lag import LoopLag
from sidecar.metrics.links import LinkMeter
from sidecar.resident import let_go_of_the_start
from sidecar.telemetry.config import TelemetryConfig
from sidecar.telemetry.exporter import LinkExporter
from sidecar.telemetry.resource import PodResource

SETTLED_AFTER_S = 2.0


def arguments() -> argparse.Namespace:
    """The command line that `bench.podlink` writes."""
    parser = argparse.ArgumentParser(prog="bench.podlink_sidecar")
    roles = parser.add_subparsers(dest="role", required=True)
    outbound, inbound = roles.add_parser("outbound"), roles.add_parser("inbound")
    for role in (outbound, inbound):
        role.add_argument("--listen", required=True)
        role.add_argument("--certs", required=True)
        role.add_argument("--otlp", required=True)
        role.add_argument("--app", required=True)
        role.add_argument(
            "--tunnels", type=int, default=0, help="from one peer, if not the default"
        )
    outbound.add_argument("--target", required=True)
    return parser.parse_args()


class StaticDirectory:
    """Knows the far pod by its name, and by its address the one whose connections come from there."""

    def __init__(self) -> None:
        near, far = WorkloadIdentity.parse(NEAR_IDENTITY), WorkloadIdentity.parse(FAR_IDENTITY)
        self._known: dict[str, Found] = {
            "far.bench": Workload("far", "bench", "far", far, ("127.0.0.1",), tunnel_only=True),
            "127.0.0.1": Workload("near", "bench", "near", near, ("127.0.0.1",), tunnel_only=True),
        }

    def known(self, key: str) -> Found | None:
        return self._known.get(key)

    def ask(self, key: str, answer: Answer, *, for_record: bool = False) -> None:
        answer(None)

    def ask_anew(self, key: str, answer: Answer) -> None:
        answer(self.known(key))


POLICIES = PolicySet(
    policies=(
        Policy(
            "bench/app",
            allow=(
                Rule("allow[0]", (Source("other", "one"), Source("other", "two"))),
                Rule("allow[1]", (Source("bench", "near"),)),
            ),
            deny=(Rule("deny[0]", (Source("bench", "legacy"),)),),
        ),
    )
)


def address(text: str) -> tuple[str, int]:
    ip, _, port = text.rpartition(":")
    return ip, int(port)


def trust(folder: Path, own: str, identity: str) -> Trust:
    material = TlsMaterial(
        (folder / f"{own}.key").read_bytes(),
        (folder / f"{own}.pem").read_bytes(),
        (folder / "ca.pem").read_bytes(),
    )
    return trust_of(material, identity, monotonic() + 12 * 3600)


async def settle() -> None:
    """As `sidecar.app` does, once the first connections are made."""
    await asyncio.sleep(SETTLED_AFTER_S)
    let_go_of_the_start()


async def run(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    near = args.role == "outbound"
    own, identity = ("near", NEAR_IDENTITY) if near else ("far", FAR_IDENTITY)
    exporter = LinkExporter(
        TelemetryConfig(
            endpoint=args.otlp, plaintext=True, resource=PodResource(pod=own, namespace="bench")
        )
    )
    poller = poller_of(loop)
    plane = Plane(
        poller=poller,
        own=Own("bench", own, own, frozenset({"192.0.2.1"})),
        directory=StaticDirectory(),
        verify=Guard(SvidChecker("cluster.local")),
        report=LinkMeter(Denials(exporter.report).report).report,
        pool=Pool(poller, monotonic),
        trust=trust(Path(args.certs), own, identity),
        policy=POLICIES,
        tunnel_only=True,
    )
    if args.tunnels:
        plane.limits = replace(
            plane.limits, tunnels_per_peer=args.tunnels, idle_tunnels_per_peer=args.tunnels
        )
        plane.handshake_rate = Buckets(args.tunnels, args.tunnels)
    arrivals = Arrivals(plane)
    watch = Sweep(plane, arrivals)
    app_port = address(args.app)[1]

    def accepted(sock: socket.socket, ip: str, port: int) -> None:
        OutboundLink(plane, sock, ip, port).start_upstream("far.bench", app_port)

    if near:
        plane.tunnel_port = address(args.target)[1]
    listener = Listener(
        poller, sockets.listen(*address(args.listen)), accepted if near else arrivals.accepted
    )
    exporter.start()
    lag = LoopLag(loop)
    settling = spawn(settle(), name="settle")
    await stopping.wait()
    await stop(settling)
    lag.close()
    listener.close()
    watch.close()
    plane.pool.close()
    arrivals.close()
    await exporter.close()


def main() -> None:
    gc.freeze()
    with asyncio.Runner(loop_factory=DataLoop) as runner:
        runner.run(run(arguments()))


if __name__ == "__main__":
    main()
