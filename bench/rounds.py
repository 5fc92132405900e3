"""Runs the loads over every pair, in turn, and collects one sample per figure, pair and round.

Rounds are interleaved (every pair does a short run of one load before the next load comes, and the
order turns each round), so that whatever else the machine does hits all pairs alike.
"""

import functools
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from bench import mutual, priority
from bench.figures import added
from bench.processes import Cpus, cpu_seconds, memory, on, wait_until
from bench.proxies import Proxy, text

_SETTLE_S = 0.1
_IDLE_S = 4.0
"""Before the memory of an idle proxy is looked at: start-up is over for everybody."""
_READY_S = 20.0


class LoadFailed(SystemExit):
    """A load broke off: its pair's figures would mean nothing."""


@dataclass(frozen=True)
class Plan:
    """How much each round does."""

    rounds: int
    requests: int
    connections: int
    bulk_bytes: int
    latency_runs: int
    latency_s: float
    idle_links: int
    kept_alive: int = 64
    concurrency: int = 16
    rate: int = 1000
    latency_connections: int = 16
    settle_s: float = 1.5
    """After short links podlink exports their spans, once a second: that is part of their cost."""

    @property
    def least_spans(self) -> int:
        """What podlink must at least export: two spans for each link of the connections load."""
        return 2 * self.rounds * self.connections

    @classmethod
    def full(cls, rounds: int) -> "Plan":
        return cls(rounds, 20_000, 2_000, 500_000_000, 3, 1.5, 500)

    @classmethod
    def quick(cls, rounds: int) -> "Plan":
        return cls(rounds, 6_000, 500, 150_000_000, 3, 0.6, 200)


class Bench:
    """One run: `start`, `measure`, and the samples are in `samples`."""

    def __init__(self, proxies: Sequence[Proxy], plan: Plan, cpus: Cpus, *, app_pid: int) -> None:
        self._proxies, self._plan, self._cpus, self._app_pid = proxies, plan, cpus, app_pid
        self.undisturbed = True
        """Whether the latency runs could be kept apart from what else the machine does."""
        self.samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def start(self) -> None:
        """Start every pair, prove that it does mutual TLS, and note its memory before any load.

        Raises NotMutual or ChildFailed.
        """
        for proxy in self._proxies:
            if proxy.tunnel_address is None:
                continue
            near = proxy.start_near()
            wait_until(
                functools.partial(mutual.listens, proxy.client_address),
                f"the near proxy of {proxy.name}",
                timeout_s=_READY_S,
                child=near,
            )
            mutual.check_near_refuses_impostor(proxy)
            assert proxy.tunnel_address is not None
            far = proxy.start_far()
            seconds = wait_until(
                functools.partial(mutual.listens, proxy.tunnel_address),
                f"the far proxy of {proxy.name}",
                timeout_s=_READY_S,
                child=far,
            )
            wait_until(
                functools.partial(mutual.answers, proxy.client_address),
                f"an answer through {proxy.name}",
                timeout_s=_READY_S,
                child=far,
            )
            mutual.check_far_refuses_strangers(proxy)
            self._note("seconds_to_ready", proxy, seconds)
        time.sleep(_IDLE_S)
        for proxy in self._proxies:
            if pids := proxy.pids():
                idle = memory(pids)
                self._note("memory_idle", proxy, idle.resident)
                self._note("memory_idle_anonymous", proxy, idle.anonymous)

    def measure(self) -> Iterator[str]:
        """Run all rounds; yields a line of progress before each."""
        yield "idle links"  # first: memory that an earlier load left behind would hide their cost
        for proxy in self._proxies:
            self._idle(proxy)
        for number in range(self._plan.rounds):
            yield f"round {number + 1} of {self._plan.rounds}"
            turn = number % len(self._proxies)
            order = [*self._proxies[turn:], *self._proxies[:turn]]
            # One hiccup of the machine spoils a tail: many short runs, and their median.
            latencies = [self._latency] * self._plan.latency_runs
            for load in (self._requests, self._connections, self._bulk, *latencies):
                for proxy in order:
                    load(proxy)
        for proxy in self._proxies:
            if pids := proxy.pids():
                self._note("memory_loaded", proxy, memory(pids).resident)
        self._add_latencies()

    def stop(self) -> None:
        for proxy in self._proxies:
            proxy.stop()

    def _requests(self, proxy: Proxy) -> None:
        plan = self._plan
        options = ("--connections", plan.kept_alive, "--count", plan.requests)
        result, cpu = self._run(proxy, _SETTLE_S, "requests", *options)
        self._note("requests_per_second", proxy, plan.requests / result["seconds"])
        if cpu is not None:
            self._note("cpu_per_request", proxy, 1e6 * cpu / plan.requests)

    def _connections(self, proxy: Proxy) -> None:
        plan = self._plan
        options = ("--concurrency", plan.concurrency, "--count", plan.connections)
        result, cpu = self._run(proxy, plan.settle_s, "connections", *options)
        self._note("connections_per_second", proxy, plan.connections / result["seconds"])
        if cpu is not None:
            self._note("cpu_per_connection", proxy, 1e6 * cpu / plan.connections)

    def _bulk(self, proxy: Proxy) -> None:
        _, cpu = self._run(proxy, _SETTLE_S, "bulk", "--size-bytes", self._plan.bulk_bytes)
        if cpu is not None:
            self._note("cpu_per_gb", proxy, cpu / (self._plan.bulk_bytes / 1e9))

    def _latency(self, proxy: Proxy) -> None:
        plan = self._plan
        count = int(plan.rate * plan.latency_s)
        connections = ("--connections", plan.latency_connections)
        options = (*connections, "--rate", plan.rate, "--count", count)
        with self._load(proxy, "latency", *options) as process:
            path = [*proxy.pids(), self._app_pid, process.pid]
            with priority.undisturbed(path) as undisturbed:
                result = _go(process)
        self.undisturbed &= undisturbed
        self._note("p50", proxy, result["p50_us"])
        self._note("p99", proxy, result["p99_us"])

    def _idle(self, proxy: Proxy) -> None:
        if not (pids := proxy.pids()):
            return
        # Anonymous: pages of code that come back to whoever let go of them are no link's.
        before = memory(pids).anonymous
        with self._load(proxy, "idle", "--connections", self._plan.idle_links):
            grown = memory(pids).anonymous - before
        self._note("memory_per_link", proxy, max(0.0, grown * 1024 / self._plan.idle_links))

    def _add_latencies(self) -> None:
        for of in ("p50", "p99"):
            if not (bare := self.samples[of].get("none")):
                continue
            for proxy in self._proxies:
                if proxy.tunnel_address is not None:
                    self.samples[f"{of}_added"][proxy.name] = added(
                        self.samples[of][proxy.name], bare
                    )

    def _note(self, figure: str, proxy: Proxy, value: float) -> None:
        self.samples[figure][proxy.name].append(value)

    def _run(
        self, proxy: Proxy, settle_s: float, kind: str, *options: str | int
    ) -> tuple[dict[str, float], float | None]:
        """One load over one pair: its result, and the CPU seconds of both proxies meanwhile."""
        pids = proxy.pids()
        with self._load(proxy, kind, *options) as process:
            before = cpu_seconds(pids)
            result = _go(process)
            time.sleep(settle_s if pids else 0.0)
            used = cpu_seconds(proxy.pids()) - before
        return result, used if pids else None

    @contextmanager
    def _load(
        self, proxy: Proxy, kind: str, *options: str | int
    ) -> Iterator[subprocess.Popen[str]]:
        """A load generator, warm and waiting to be told to go."""
        argv = [sys.executable, "-m", "bench.load", kind, text(proxy.client_address)]
        with (
            on(self._cpus.ends),
            subprocess.Popen(
                [*argv, *map(str, options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as process,
        ):
            try:
                if _line(process.stdout) != "ready\n":
                    raise LoadFailed(f"bench: the load {kind} over {proxy.name} did not warm up")
                yield process
            finally:
                process.kill()


def _go(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    answer = _line(process.stdout)
    if not answer:
        raise LoadFailed(f"bench: a load broke off: {process.args!r}")
    result: dict[str, float] = json.loads(answer)
    return result


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()
