"""`make fuzz`: every test that draws its own examples, again and again with new ones, for ten minutes.

    make fuzz ARGS=--seconds=3600

In rounds, each with as many examples a test as a third of the time that is left lasts for. A case that
fails ends it with the example; it belongs into the test as an `@example` or a test of its own.
"""

import argparse
import os
import subprocess
import sys
import time

WHERE = (
    "tests/certs/evidence",
    "tests/certs/trust",
    "tests/injector",
    "tests/kit",
    "tests/policy",
    "tests/registry",
    "tests/sidecar",
)
FIRST_EXAMPLES, MOST_EXAMPLES = 50, 50_000


def run_round(examples: int, within_s: float, more: list[str]) -> tuple[int, str]:
    """One round; returns its status and pytest's last line. It is ended when the time is over."""
    words = [sys.executable, "-m", "pytest", "-m", "hypothesis and not soak", "--timeout=0"]
    env = {**os.environ, "HYPOTHESIS_PROFILE": "deep", "HYPOTHESIS_EXAMPLES": str(examples)}
    try:
        done = subprocess.run(
            [*words, *WHERE, *more], env=env, timeout=within_s, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return 0, "ended: its time is over, and nothing had failed"
    if done.returncode:
        print(done.stdout[-20_000:], done.stderr[-2_000:], sep="\n")
    return done.returncode, (done.stdout.strip().splitlines() or ["nothing"])[-1]


def main() -> int:
    asked = argparse.ArgumentParser(prog="make fuzz")
    asked.add_argument("--seconds", type=float, default=600.0, help="how long in all")
    known, more = asked.parse_known_args()
    began, examples, number = time.monotonic(), FIRST_EXAMPLES, 0
    while True:
        left, at = known.seconds - (time.monotonic() - began), time.monotonic()
        if left <= 0:
            break
        number += 1
        status, said = run_round(examples, left, more)
        took = time.monotonic() - at
        print(f"round {number}: {examples} examples a test, {took:.0f} s: {said}", flush=True)
        if status:
            return status
        left -= took
        examples = min(MOST_EXAMPLES, max(FIRST_EXAMPLES, int(examples * left / 3 / took)))
    print(f"{number} rounds in {time.monotonic() - began:.0f} s, and nothing failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
