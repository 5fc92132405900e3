"""What the CA did, told to everybody who keeps count: the log, the ledger, the traces, the metrics.

One place, so that nothing is issued, refused, banned or rotated that one of them does not know of.
"""

import datetime as dt
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from certs.records import BanNote
from certs.server.issuance import Issuance, log_issuance
from certs.server.ledger import Ledger
from certs.server.review import Caller

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that was refused. `caller` is known once its token was reviewed."""

    at: dt.datetime
    rpc: str
    code: str
    reason: str
    detail: str
    source_ip: str
    caller: Caller | None


@dataclass(frozen=True, slots=True)
class RotationStep:
    at: dt.datetime
    phase: str
    by: str
    said: str


@dataclass(frozen=True, slots=True)
class BanChange:
    """A ban came into force, or ended."""

    at: dt.datetime
    note: BanNote
    lifted: bool


Item = Issuance | Refusal | RotationStep | BanChange
Sink = Callable[[Item], None]
"""Takes each item. Never blocks and never raises."""


class Reporter:
    def __init__(self, ledger: Ledger, sinks: list[Sink]) -> None:
        self._ledger, self._sinks = ledger, sinks
        self.issued = 0
        self.refused: Counter[str] = Counter()
        """By reason: a closed set of slugs, so that no caller can grow it."""

    def __call__(self, item: Item) -> None:
        match item:
            case Issuance():
                self.issued += 1
                self._ledger.issued(item)
                log_issuance(item)
            case Refusal():
                self.refused[item.reason] += 1
            case BanChange():
                _log.warning(
                    "ban lifted" if item.lifted else "banned",
                    extra={"ban": str(item.note.ban), "by": item.note.by, "why": item.note.why},
                )
        for sink in self._sinks:
            sink(item)
