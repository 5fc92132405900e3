"""How long each change took to reach each sidecar. Pure.

A change has reached a sidecar when it has been told HOT's addresses as they are after this change or
after a later one (a slow reader is told the newest, not everything).
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

Change = tuple[int, tuple[str, ...]]
"""When the API server told it (ns), and HOT's addresses from then on."""
Note = tuple[int, tuple[str, ...]]
"""When a sidecar was told (ns), and which addresses."""


class Missed(Exception):
    """A change never reached a sidecar."""


def latencies_ms(changes: Sequence[Change], notes: Mapping[int, Sequence[Note]]) -> list[float]:
    """For each sidecar and each change, in ms. Raises Missed."""
    after: dict[tuple[str, ...], int] = {ips: number for number, (_, ips) in enumerate(changes)}
    found: list[float] = []
    for sidecar, told in notes.items():
        reached: list[tuple[int, int]] = []  # (change, when), both growing
        for when_ns, ips in told:
            number = after.get(ips, -1)
            newer = not reached or number > reached[-1][0]
            if newer and number >= 0 and when_ns >= changes[number][0]:
                reached.append((number, when_ns))
        numbers = [number for number, _ in reached]
        for number, (told_ns, _) in enumerate(changes):
            at = bisect_left(numbers, number)
            if at == len(reached):
                raise Missed(f"change {number} never reached sidecar {sidecar}")
            found.append((reached[at][1] - told_ns) / 1e6)
    return found


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
