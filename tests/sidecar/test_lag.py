"""The watchdog sees a loop that stood still."""

import asyncio
import time

from sidecar import lag
from sidecar.lag import LoopLag


async def test_a_loop_that_stood_still_is_seen_and_counted(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(lag, "EVERY_S", 0.01)
    watch = LoopLag(asyncio.get_running_loop())
    try:
        await asyncio.sleep(0.05)
        before = watch.stalls  # none, but for a machine that stands still by itself
        time.sleep(1.1)  # noqa: ASYNC251 - that is the fault
        await asyncio.sleep(0.05)
        assert watch.stalls > before
        assert watch.worst_s >= watch.worst_lately_s > 1.0
    finally:
        watch.close()
