"""The only place that reads a clock.

Code that decides takes the time as an argument; code that acts takes one of these functions, so a
test can hand in another. Wall-clock times are aware UTC datetimes; durations are measured on the
monotonic clock, which a person or NTP cannot set back.
"""

import datetime as dt
import time
from collections.abc import Callable

Clock = Callable[[], dt.datetime]
"""Says what time it is: an aware datetime in UTC."""

Monotonic = Callable[[], float]
"""Seconds on a clock that never goes back; only differences mean anything."""

monotonic: Monotonic = time.monotonic
unix_ns: Callable[[], int] = time.time_ns
"""Nanoseconds since 1970 by the wall clock, for the start and end of spans."""
unix_s: Callable[[], float] = time.time
"""Seconds since 1970 by the wall clock, for the ends of certificates."""


def utcnow() -> dt.datetime:
    """The present time, aware, in UTC."""
    return dt.datetime.now(dt.UTC)
