"""How late the event loop runs: a timer that notes by how much it was late.

One callback a second, nothing per link. A loop that lags makes every link wait, and deadlines that
pass while it stood still must not be held against a peer (docs/threat-model.md, `loop-stall`).
"""

import asyncio
from collections import deque
from typing import Final

EVERY_S: Final = 1.0
_KEPT: Final = 60
STALLED_S: Final = 1.0
"""From here on it is counted as a stall, and logged."""


class LoopLag:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._recent: deque[float] = deque(maxlen=_KEPT)
        self.stalls = 0
        self.worst_s = 0.0
        """Since the start."""
        self._timer = loop.call_at(loop.time() + EVERY_S, self._tick, loop.time() + EVERY_S)

    @property
    def last_s(self) -> float:
        return self._recent[-1] if self._recent else 0.0

    @property
    def worst_lately_s(self) -> float:
        """Of the last minute."""
        return max(self._recent, default=0.0)

    def close(self) -> None:
        self._timer.cancel()

    def _tick(self, wanted: float) -> None:
        now = self._loop.time()
        lag = max(0.0, now - wanted)
        self._recent.append(lag)
        self.worst_s = max(self.worst_s, lag)
        if lag > STALLED_S:
            self.stalls += 1
        self._timer = self._loop.call_at(now + EVERY_S, self._tick, now + EVERY_S)
