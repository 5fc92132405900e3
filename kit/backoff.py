"""How long to wait before the next try: exponential, with full jitter.

Full jitter (a uniform draw between nothing and the bound) spreads a crowd of clients that lost the
same server at the same moment.
"""

import random
from collections.abc import Callable


class Backoff:
    """Waits that grow from `first_s` by `factor` up to `longest_s`, all in seconds.

    Not for sharing between callers: it remembers how often this one has failed in a row.
    """

    def __init__(
        self,
        first_s: float = 0.2,
        longest_s: float = 30.0,
        factor: float = 2.0,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first_s, self._longest_s, self._factor, self._draw = first_s, longest_s, factor, draw
        self.failures = 0

    @property
    def longest_s(self) -> float:
        """The cap on a wait."""
        return self._longest_s

    def next_s(self) -> float:
        """Count one more failure and return how many seconds to wait after it."""
        bound = min(self._longest_s, self._first_s * self._factor ** min(self.failures, 64))
        self.failures += 1
        return self._draw(bound / 10, bound)

    def reset(self) -> None:
        """Forget the failures: the last try worked."""
        self.failures = 0
