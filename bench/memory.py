"""Memory of podlink's sidecars with many idle links and tunnels, and over many links: a table.

    python -m bench.memory [--idle 5000] [--links 100000]

Each sidecar is `bench.podlink_sidecar`. Idle tunnels are held against the far one by a process of their
own, since a dialler keeps no more than 128 to one peer.
"""

import argparse
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import mutual
from bench.__main__ import _end
from bench.certificates import make_certificates
from bench.podlink import PodlinkPair
from bench.processes import Cpus, Memory, memory, wait_until
from bench.proxies import Site, free_address, text
from bench.rounds import _go
from certs.trust.contexts import TlsMaterial
from kit.contract import ALPN
from sidecar.dataplane.limits import Limits

_ROUNDS = 10
_A_MINUTE_S = 65.0
_TUNNELS = ["--tunnels", "20000"]
"""One peer holds them all here, which a pod does not let it."""


class _RoomyPair(PodlinkPair):
    def near_command(self) -> Sequence[str]:
        return [*super().near_command(), *_TUNNELS]

    def far_command(self) -> Sequence[str]:
        return [*super().far_command(), *_TUNNELS]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.memory", description=__doc__)
    parser.add_argument("--idle", type=int, default=5000, help="links, and tunnels, held open")
    parser.add_argument("--links", type=int, default=100_000, help="links opened and closed")
    parser.add_argument("--hold", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if args.hold:
        return _hold(args.hold[0], Path(args.hold[1]), args.idle)
    with tempfile.TemporaryDirectory(prefix="podlink-memory-") as name:
        folder = Path(name)
        site = Site(free_address(), make_certificates(folder), Cpus.split(), folder, free_address())
        app = _end("app", site, "bench.app", text(site.app))
        sink = _end("sink", site, "bench.sink", text(site.sink))
        try:
            wait_until(lambda: mutual.answers(site.app), "the app", timeout_s=10, child=app)
            for measure in (_idle_links, _idle_tunnels, _many_links, _burst):
                pair = _RoomyPair(site)
                try:
                    _start(pair)
                    measure(pair, site, args)
                finally:
                    pair.stop()
        finally:
            app.stop()
            sink.stop()
    return 0


def _start(pair: PodlinkPair) -> None:
    assert pair.tunnel_address is not None
    near, far = pair.start_near(), pair.start_far()
    for child, address in ((near, pair.client_address), (far, pair.tunnel_address)):
        wait_until(lambda a=address: mutual.listens(a), "podlink", timeout_s=10, child=child)  # type: ignore[misc]
    wait_until(lambda: mutual.answers(pair.client_address), "an answer", timeout_s=10, child=near)
    time.sleep(4.0)


def _tell(what: str, side: str, before: Memory, after: Memory, count: int) -> None:
    grown = (after.anonymous - before.anonymous) * 1024 / count
    print(
        f"{what:28s} {side:5s} {before.resident:6.1f} -> {after.resident:6.1f} MiB resident", end=""
    )
    print(f", {before.anonymous:6.1f} -> {after.anonymous:6.1f} anonymous, {grown:6.2f} KiB each")


def _load(pair: PodlinkPair, kind: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.load", kind, text(pair.client_address), *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"bench: the load {kind} broke off")
    return process


def _end_of(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)


def _idle_links(pair: PodlinkPair, _: Site, args: argparse.Namespace) -> None:
    before = [memory([pid]) for pid in pair.pids()]
    load = _load(pair, "idle", "--connections", str(args.idle))
    time.sleep(2)
    for side, old, pid in zip(("near", "far"), before, pair.pids(), strict=True):
        _tell(f"{args.idle} idle links", side, old, memory([pid]), args.idle)
    _end_of(load)


def _burst(pair: PodlinkPair, _: Site, __: argparse.Namespace) -> None:
    """What is left a minute after the largest burst that one peer may make."""
    before = [memory([pid]) for pid in pair.pids()]
    load = _load(pair, "idle", "--connections", str(Limits().tunnels_per_peer - 16))
    peak = [memory([pid]) for pid in pair.pids()]
    _end_of(load)
    time.sleep(_A_MINUTE_S)
    for side, old, most, pid in zip(("near", "far"), before, peak, pair.pids(), strict=True):
        left = memory([pid])
        print(
            f"a minute after a burst {side:5s} {old.resident:6.1f} -> {most.resident:6.1f} -> "
            f"{left.resident:6.1f} MiB resident, {left.resident / old.resident:.2f} of before"
        )


def _idle_tunnels(pair: PodlinkPair, site: Site, args: argparse.Namespace) -> None:
    assert pair.tunnel_address is not None
    far = pair.pids()[1]
    before = memory([far])
    command = [sys.executable, "-m", "bench.memory", "--idle", str(args.idle), "--hold"]
    command += [text(pair.tunnel_address), str(site.certificates.folder)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    if holder.stdout.readline() != "ready\n":
        raise SystemExit("bench: the idle tunnels broke off")
    time.sleep(1)
    _tell(f"{args.idle} idle tunnels", "far", before, memory([far]), args.idle)
    _end_of(holder)


def _hold(address: str, folder: Path, count: int) -> int:
    """The holder: so many tunnels after their handshake, kept until standard input ends."""
    ip, _, port = address.rpartition(":")
    pem = [(folder / name).read_bytes() for name in ("near.key", "near.pem", "ca.pem")]
    context = TlsMaterial(*pem).client_context([ALPN])
    kept: list[ssl.SSLSocket] = []
    for _ in range(count):
        kept.append(context.wrap_socket(socket.create_connection((ip, int(port)))))
    print("ready", flush=True)
    sys.stdin.read()
    return 0


def _many_links(pair: PodlinkPair, _: Site, args: argparse.Namespace) -> None:
    """Resident memory after each tenth of the links: level, or growing?"""
    each = args.links // _ROUNDS
    for done in range(1, _ROUNDS + 1):
        load = _load(pair, "connections", "--concurrency", "16", "--count", str(each))
        _go(load)
        _end_of(load)
        time.sleep(1.5)
        sides = [memory([pid]) for pid in pair.pids()]
        told = ", ".join(
            f"{side} {m.resident:.1f} ({m.anonymous:.1f} anonymous)"
            for side, m in zip(("near", "far"), sides, strict=True)
        )
        print(f"after {done * each} links: {told} MiB", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
