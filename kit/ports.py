"""Sets of ports as annotations write them: `5432` or `9000-9010`, separated by commas."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

_ITEM = re.compile(r"(?P<low>[0-9]{1,5})(-(?P<high>[0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class PortSet:
    """Inclusive ranges, sorted and without overlap."""

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str | Iterable[str]) -> Self:
        """Raises ValueError naming the item that is no port or range."""
        items = text.split(",") if isinstance(text, str) else list(text)
        found = sorted(_range(item.strip()) for item in items if item.strip())
        merged: list[tuple[int, int]] = []
        for low, high in found:
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        return cls(tuple(merged))

    def __contains__(self, port: int) -> bool:
        for low, high in self.ranges:  # asked for every link, and mostly empty: no generator
            if low <= port <= high:
                return True
        return False

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def count(self) -> int:
        """How many ports it holds."""
        return sum(high - low + 1 for low, high in self.ranges)

    def __str__(self) -> str:
        return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in self.ranges)


def _range(item: str) -> tuple[int, int]:
    found = _ITEM.fullmatch(item)
    if found is not None:
        low = int(found["low"])
        high = int(found["high"] or low)
        if 1 <= low <= high <= 65535:
            return low, high
    raise ValueError(f"{item!r} is no port (1-65535) and no range such as 9000-9010")


NO_PORTS = PortSet()
