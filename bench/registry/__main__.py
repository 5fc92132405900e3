"""Runs the simulation and writes bench/out/registry.json: `python -m bench.registry [--quick]`.

The registry has one CPU; all others share what there is. `bench/out/registry.json` holds `figures` in
the form of `latest.json`: name, podlink, unit, goal, met.
"""

import argparse
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.certificates import make_certificates
from bench.priority import undisturbed
from bench.processes import Child, Cpus, cpu_seconds, memory
from bench.registry.apiserver import RELABEL_EVERY_S
from bench.registry.cluster import Size
from bench.registry.measure import Change, Note, latencies_ms, percentile

OUT = Path(__file__).parents[1] / "out" / "registry.json"
SMALL = Size(pods=700, services=20, sidecars=1)
_PER_PROCESS = 125
_WHOLE = 2
"""Of each process's sidecars, those that are the sidecar's own client."""
_START_S, _SETTLE_S = 120.0, 2.0


@dataclass(frozen=True)
class Figure:
    name: str
    podlink: float
    unit: str
    goal: str = ""
    met: bool | None = None


class Run:
    """One cluster with its registry and its sidecars, until the stack closes."""

    def __init__(self, size: Size, folder: Path, certs: Path, cpus: Cpus, stack: ExitStack) -> None:
        self.size, self._folder, self._stack, self._cpus = size, folder, stack, cpus
        self._certs = certs
        folder.mkdir()
        words = [f"--{name}={value}" for name, value in asdict(size).items()]
        self._changes = folder / "changes.jsonl"
        api = self._start("apiserver", ["--log", str(self._changes), *words], own_cpu=False)
        self._api = api
        self.api_port = int(self._said(api))
        began = time.monotonic()
        words = ["--api", str(self.api_port), "--certs", str(certs)]
        self.registry = self._start("server", words, own_cpu=True)
        self.port = int(self._said(self.registry))
        self.synced_s = time.monotonic() - began
        self.sidecars: list[tuple[Child, Path]] = []

    def connect(self, first: int, count: int, whole: int) -> Child:
        out = self._folder / f"notes-{first}.json"
        words = [f"--port={self.port}", f"--first={first}", f"--count={count}", f"--whole={whole}"]
        words += [f"--services={self.size.services}", f"--certs={self._certs}", f"--out={out}"]
        child = self._start("sidecars", words, own_cpu=False)
        self.sidecars.append((child, out))
        self._said(child)
        return child

    def churn(self, seconds: int, relabel_every_s: int) -> None:
        url = (
            f"http://127.0.0.1:{self.api_port}/-/churn?seconds={seconds}&relabel={relabel_every_s}"
        )
        with urllib.request.urlopen(url, timeout=seconds + 60) as response:
            response.read()
        time.sleep(_SETTLE_S)

    def pids(self) -> list[int]:
        return [child.pid for child in (self._api, self.registry, *(c for c, _ in self.sidecars))]

    def lists(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.api_port}/-/lists") as response:
            found: dict[str, int] = json.load(response)
            return found

    def notes(self) -> dict[int, list[Note]]:
        """Ends the sidecars' processes."""
        found: dict[int, list[Note]] = {}
        for child, out in self.sidecars:
            child.stop(20.0)
            said = json.loads(out.read_text())
            sets = [tuple(ips) for ips in said["sets"]]
            for number, told in said["by_sidecar"].items():
                found[int(number)] = [(when, sets[index]) for when, index in told]
        return found

    def changes(self) -> list[Change]:
        lines = self._changes.read_text().splitlines()
        return [(one["t"], tuple(one["ips"])) for one in map(json.loads, lines)]

    def _start(self, module: str, words: Sequence[str], *, own_cpu: bool) -> Child:
        cpus = self._cpus.proxies if own_cpu else self._cpus.proxies | self._cpus.ends
        log = self._folder / f"{module}-{len(list(self._folder.iterdir()))}.log"
        command = [sys.executable, "-u", "-m", f"bench.registry.{module}", *words]
        child = Child(module, command, cpus=cpus, log=log)
        self._stack.callback(child.stop)
        return child

    @staticmethod
    def _said(child: Child) -> str:
        """The first line of standard output that is no log."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            for line in child.log.read_text().splitlines():
                if line == "ready" or line.isdigit():
                    return line
            child.check_alive()
            time.sleep(0.05)
        raise SystemExit(f"bench: {child.name} was not ready within {_START_S:g} s")


def run(size: Size, seconds: int, relabel_every_s: int) -> dict[str, object]:
    """Raises Missed if a change never reached a sidecar."""
    cpus = Cpus.split()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podlink-bench-")))
        certs = folder / "certs"
        certs.mkdir()
        make_certificates(certs)
        small = _one_sidecar(SMALL, folder / "small", certs, cpus)
        big = Run(size, folder / "big", certs, cpus, stack)
        idle = memory([big.registry.pid]).resident
        alone = memory([big.connect(0, 1, whole=1).pid]).resident
        for first in range(1, size.sidecars, _PER_PROCESS):
            count = min(_PER_PROCESS, size.sidecars - first)
            big.connect(first, count, whole=min(_WHOLE, count))
        before = cpu_seconds([big.registry.pid])
        with undisturbed(big.pids()) as alone_on_machine:
            big.churn(seconds, relabel_every_s)
        used = (cpu_seconds([big.registry.pid]) - before) / seconds
        loaded = memory([big.registry.pid]).resident
        lists = big.lists()
        changes, notes = big.changes(), big.notes()
        took = latencies_ms(changes, notes)
    messages = sum(len(told) - 1 for told in notes.values()) / len(notes) / len(changes)
    p99, worst = percentile(took, 0.99), max(took)
    grown, most = alone - small, max(lists.values())
    figures = [
        Figure("push_p50", percentile(took, 0.5), "ms"),
        Figure("push_p99", p99, "ms", "<= 100 ms", p99 <= 100),
        Figure("push_worst", worst, "ms", "<= 2,000 ms after a removal", worst <= 2000),
        Figure("messages_per_change", messages, "1"),
        Figure("registry_memory", loaded, "MiB", "<= 500 MiB", loaded <= 500),
        Figure("registry_memory_no_streams", idle, "MiB"),
        Figure("registry_cpu", used, "cores"),
        Figure("registry_start", big.synced_s, "s"),
        Figure("lists_per_kind", most, "1", "= 1", most == 1),
        Figure("sidecar_growth", grown, "MiB", "<= 1 MiB from 700 to all pods", grown <= 1),
    ]
    return {
        "figures": [{**asdict(f), "podlink": round(f.podlink, 3)} for f in figures],
        "plan": {**asdict(size), "seconds": seconds, "samples": len(took)},
        "undisturbed": alone_on_machine,
        "lists": lists,
    }


def _one_sidecar(size: Size, folder: Path, certs: Path, cpus: Cpus) -> float:
    """Resident memory (MiB) of a process with one sidecar's client in a cluster of that size."""
    with ExitStack() as stack:
        it = Run(size, folder, certs, cpus, stack)
        return memory([it.connect(0, 1, whole=1).pid]).resident


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.registry", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 pods, 50 sidecars, 10 s")
    parser.add_argument("--seconds", type=int, default=0, help="of churn; 70, or 10 with --quick")
    parser.add_argument("--strict", action="store_true", help="fail if a goal is missed")
    args = parser.parse_args(argv)
    size = Size(pods=1_000, services=100, sidecars=50) if args.quick else Size()
    seconds = args.seconds or (10 if args.quick else 70)
    report = run(size, seconds, 5 if args.quick else RELABEL_EVERY_S)
    figures: list[dict[str, object]] = report["figures"]  # type: ignore[assignment]
    for one in figures:
        met = {True: "met", False: "MISSED", None: ""}[one["met"]]  # type: ignore[index]
        print(f"{one['name']:28} {one['podlink']:>10} {one['unit']:6} {one['goal']:32} {met}")
    if not report["undisturbed"]:
        print("* Not run as root: other programs of the machine are part of the latencies.")
    if not args.quick:
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if args.strict and any(one["met"] is False for one in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
