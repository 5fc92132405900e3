"""`python -m bench`: measure, print the table, write bench/out/latest.json.

Run it with the interpreter of a virtual environment made from requirements/bench.lock: that has
what a sidecar needs and the Envoy binary, and nothing else.
"""

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import mutual
from bench.certificates import make_certificates
from bench.envoy import EnvoyPair
from bench.figures import PROXIES, figures
from bench.haproxy import HaproxyPair
from bench.podlink import PodlinkPair
from bench.processes import Child, Cpus, wait_until
from bench.proxies import NoProxy, Proxy, Site, free_address, text
from bench.rounds import Bench, Plan
from bench.sink import exported_spans
from bench.syscalls import count_syscalls, strace_works
from bench.table import render

OUT = Path(__file__).parent / "out" / "latest.json"
_KINDS: dict[str, type[Proxy]] = {
    "none": NoProxy,
    "podlink": PodlinkPair,
    "envoy": EnvoyPair,
    "haproxy": HaproxyPair,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0 if all ran, whatever the figures; with --strict, 1 if a goal was missed."""
    args = _arguments(argv)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rounds = args.rounds or (2 if args.quick else 5)
    plan = Plan.quick(rounds) if args.quick else Plan.full(rounds)
    cpus = Cpus.split()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="podlink-bench-") as name:
        folder = Path(name)
        site = Site(free_address(), make_certificates(folder), cpus, folder, free_address())
        app = _end("app", site, "bench.app", text(site.app))
        sink = _end("sink", site, "bench.sink", text(site.sink))
        proxies = [_KINDS[kind](site) for kind in PROXIES if kind in args.proxies]
        bench = Bench(proxies, plan, cpus, app_pid=app.pid)
        try:
            wait_until(lambda: mutual.answers(site.app), "the app", timeout_s=10, child=app)
            bench.start()
            for progress in bench.measure():
                print(f"bench: {progress}", file=sys.stderr, flush=True)
            if args.syscalls and strace_works():
                for proxy in proxies:
                    bench.samples["syscalls_per_request"][proxy.name] += count_syscalls(proxy)
        finally:
            bench.stop()
            app.stop()
            sink.stop()
        spans = exported_spans(folder / "sink.log") if "podlink" in args.proxies else None
    if spans is not None and spans < plan.least_spans:
        raise SystemExit(
            f"bench: podlink exported {spans} spans of at least {plan.least_spans}:"
            " its figures would leave work out"
        )
    measured = figures(bench.samples)
    print(render(measured))
    if not bench.undisturbed:
        print("* Not run as root: other programs of the machine are part of the latencies.")
    OUT.parent.mkdir(exist_ok=True)
    report = {
        "figures": [figure.as_json() for figure in measured],
        "plan": vars(plan),
        "machine": {"kernel": platform.release(), "python": platform.python_version()},
        "spans": spans,
        "undisturbed": bench.undisturbed,
        "samples": bench.samples,
        "seconds": round(time.monotonic() - began),
    }
    OUT.write_text(json.dumps(report, indent=1) + "\n")
    missed = any(figure.met is False for figure in measured)
    return 1 if args.strict and missed else 0


def _end(name: str, site: Site, module: str, address: str) -> Child:
    """The app or the sink: one of our own modules, on the CPU of the load."""
    command = [sys.executable, "-m", module, address]
    return Child(name, command, cpus=site.cpus.ends, log=site.folder / f"{name}.log")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=0, help="5, or 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="under a minute, and noisier")
    parser.add_argument("--strict", action="store_true", help="fail if a goal is missed")
    parser.add_argument("--syscalls", action="store_true", help="count system calls with strace")
    parser.add_argument(
        "--proxies",
        type=lambda value: value.split(","),
        default=list(PROXIES),
        help="which to run, such as none,envoy,haproxy",
    )
    args = parser.parse_args(argv)
    if unknown := set(args.proxies) - set(PROXIES):
        parser.error(f"no such proxy: {', '.join(sorted(unknown))}")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
