"""One line per link as it ends, for whoever listens now; costs a comparison while nobody does."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Final

from sidecar.admin.views import of_record
from sidecar.report import LinkRecord, Report

_WAITING: Final = 1024
"""Lines kept for a listener who is slow; the newest are dropped then, and the loss is said."""


class Tap:
    """`report` takes every record and hands it on to `then`."""

    def __init__(self, then: Report) -> None:
        self._then = then
        self._listeners: set[asyncio.Queue[bytes]] = set()
        self._missed: dict[asyncio.Queue[bytes], int] = {}

    def report(self, record: LinkRecord) -> None:
        if self._listeners:
            self._tell(record)
        self._then(record)

    async def lines(self) -> AsyncIterator[bytes]:
        """JSON objects, a line each, until the listener goes."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(_WAITING)
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
                if queue.empty() and (missed := self._missed.pop(queue, 0)):
                    yield json.dumps({"missed": missed}).encode() + b"\n"
        finally:
            self._listeners.discard(queue)
            self._missed.pop(queue, None)

    def _tell(self, record: LinkRecord) -> None:
        line = json.dumps(of_record(record)).encode() + b"\n"
        for queue in self._listeners:
            if queue.full():
                self._missed[queue] = self._missed.get(queue, 0) + 1
            else:
                queue.put_nowait(line)
