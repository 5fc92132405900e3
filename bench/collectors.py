"""What a collector that is down, slow or silent costs a link: `python -m bench.collectors`.

Five pairs of sidecars, alike but for where their spans go: nowhere, to a collector that works, to a
port where nobody listens, to one that takes the connection and never reads (a black hole), and to one
that reads a byte at a time. In one run and in turn, short links (connect, one request, its answer,
close) are opened at a fixed rate over each pair, and the time of each link is taken.
"""

import contextlib
import dataclasses
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from bench import mutual, priority
from bench.app import RESPONSE
from bench.certificates import make_certificates
from bench.load import REQUEST
from bench.podlink import PodlinkPair
from bench.processes import Child, Cpus, on, wait_until
from bench.proxies import Address, Site, free_address, text

ROUNDS, LINKS, RATE = 10, 600, 200
"""In each round and for each pair; links per second. Two pairs' worth of a sidecar's queue in all."""


class ToCollector(PodlinkPair):
    """A pair whose spans go to `collector`; None is nowhere."""

    def __init__(self, site: Site, name: str, collector: Address | None) -> None:
        super().__init__(dataclasses.replace(site, sink=collector or ("", 0)))
        self.name, self._to = name, collector

    def _common(self, role: str, listen: Address) -> list[str]:
        common = super()._common(role, listen)
        if self._to is None:
            common[common.index("--otlp") + 1] = ""
        return common


@contextlib.contextmanager
def silent() -> Iterator[Address]:
    """Takes connections (the kernel does), reads nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()


@contextlib.contextmanager
def dripping() -> Iterator[Address]:
    """Reads one byte of each connection every 10 ms."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        ended = threading.Event()
        peers: list[socket.socket] = []

        def run() -> None:
            listener.settimeout(0.01)
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    peer, _ = listener.accept()
                    peer.setblocking(False)
                    peers.append(peer)
                for peer in peers:
                    with contextlib.suppress(OSError):
                        peer.recv(1)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            ended.set()
            thread.join()
            for peer in peers:
                peer.close()


def links(address: Address) -> list[float]:
    """Seconds of each link, opened one after the other at RATE."""
    took, begin = [], time.monotonic()
    for number in range(LINKS):
        time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
        started = time.monotonic()
        with socket.create_connection(address, 10) as connection:
            connection.sendall(REQUEST)
            got = 0
            while got < len(RESPONSE):
                data = connection.recv(65536)
                if not data:
                    raise SystemExit("bench: a link broke off")
                got += len(data)
        took.append(time.monotonic() - started)
    return took


def start(pair: ToCollector) -> None:
    near = pair.start_near()
    assert pair.tunnel_address is not None
    far = pair.start_far()
    for where, child in ((pair.client_address, near), (pair.tunnel_address, far)):
        wait_until(
            lambda where=where: mutual.listens(where),  # type: ignore[misc]
            f"a proxy of {pair.name}",
            timeout_s=20,
            child=child,
        )


def main() -> None:
    cpus = Cpus.split()
    with tempfile.TemporaryDirectory(prefix="podlink-bench-") as name, contextlib.ExitStack() as at:
        folder = Path(name)
        site = Site(free_address(), make_certificates(folder), cpus, folder, free_address())
        app, sink = (
            Child(
                f"bench.{what}",
                [sys.executable, "-m", f"bench.{what}", text(address)],
                cpus=cpus.ends,
                log=folder / f"{what}.log",
            )
            for what, address in (("app", site.app), ("sink", site.sink))
        )
        at.callback(app.stop)
        at.callback(sink.stop)
        wait_until(lambda: mutual.answers(site.app), "the app", timeout_s=10, child=app)
        pairs = [
            ToCollector(site, "none", None),
            ToCollector(site, "works", site.sink),
            ToCollector(site, "dead", free_address()),
            ToCollector(site, "black hole", at.enter_context(silent())),
            ToCollector(site, "slow", at.enter_context(dripping())),
        ]
        took: dict[str, list[float]] = defaultdict(list)
        p99s: dict[str, list[float]] = defaultdict(list)
        for pair in pairs:
            at.callback(pair.stop)
            start(pair)
        with on(cpus.ends):
            for pair in pairs:
                links(pair.client_address)  # warm, and the exporter meets its collector
            for number in range(ROUNDS):
                for pair in pairs[number % 5 :] + pairs[: number % 5]:
                    with priority.undisturbed([*pair.pids(), app.pid, os.getpid()]):
                        found = links(pair.client_address)
                    took[pair.name] += found
                    p99s[pair.name].append(statistics.quantiles(found, n=100)[98])
        print(f"{'collector':12}{'p50':>9}{'p99':>9}{'p99.9':>9}   p99 to none")
        for pair in pairs:
            cuts = statistics.quantiles(took[pair.name], n=1000)
            ratio = statistics.median(p99s[pair.name]) / statistics.median(p99s["none"])
            print(
                f"{pair.name:12}{cuts[499] * 1e6:7.0f}us{cuts[989] * 1e6:7.0f}us"
                f"{cuts[998] * 1e6:7.0f}us   {ratio:.2f}"
            )


if __name__ == "__main__":
    main()
