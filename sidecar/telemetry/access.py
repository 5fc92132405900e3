"""The access log: one JSON line per link on standard output, beside its span and with its trace id.

The keys are fixed and those of ztunnel's access log where it has one, so that what reads those reads
these (docs/spans.md, "Access log"). Whatever a peer or an app could write into a value is escaped and
cut: nobody can forge a second line or steer a terminal (threat model, row 43).

`report` appends to a queue and returns. Lines are made in slices in the loop and written by a thread,
so a standard output that nobody reads costs lines, counted and told of, and never a link.
"""

import asyncio
import contextlib
import json
import logging
import os
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Final, Literal

from kit.clock import unix_ns
from kit.tasks import spawn, stop
from sidecar.report import LinkRecord, Report

Which = Literal["all", "notable", "off"]
"""`notable`: all but allowed links over mTLS and links of a pod to itself."""
KEYS: Final = (
    "time",
    "level",
    "scope",
    "message",
    "direction",
    "src.addr",
    "src.workload",
    "src.namespace",
    "src.identity",
    "dst.addr",
    "dst.service",
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "bytes_sent",
    "bytes_recv",
    "duration",
    "security",
    "verdict",
    "reason",
    "error",
    "policy",
    "rule",
    "close",
    "trace_id",
    "span_id",
)
_ROOM: Final = 4096
_SLICE: Final = 64
_EVERY_S: Final = 0.2
_CLOSE_S: Final = 1.0
_MAX_TEXT: Final = 1024
_REMEMBERED: Final = 256
_repeating = attrgetter(
    "direction",
    "source_ip",
    "source_pod",
    "source_identity",
    "destination_ip",
    "destination_port",
    "original_ip",
    "original_port",
    "service",
    "destination_pod",
    "destination_identity",
    "security",
    "verdict",
    "reason",
    "error",
    "policy",
    "rule",
    "close",
)
_log = logging.getLogger(__name__)


class AccessLog:
    """Give it records by `report`; it hands each on to `then`. `start` it in the running loop."""

    def __init__(self, then: Report, which: Which, fd: int = 1, *, room: int = _ROOM) -> None:
        self._then, self._fd, self._room = then, fd, room
        self._all, self._on = which == "all", which != "off"
        self._waiting: deque[LinkRecord] = deque()
        self._lines = AccessLines()
        self._task: asyncio.Task[None] | None = None
        self._pen: _Pen | None = None
        self._told = 0
        self.dropped = 0
        self.written = 0

    def report(self, record: LinkRecord) -> None:
        if self._on and not record.still_open and (self._all or _is_notable(record)):
            if len(self._waiting) >= self._room:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(record)
        self._then(record)

    def start(self) -> None:
        if self._on and self._task is None:
            self._task = spawn(self._run(), name="access-log", vital=True)

    async def close(self) -> None:
        """Write what waits, for a second at most."""
        await stop(self._task)
        self._task = None
        try:
            async with asyncio.timeout(_CLOSE_S):
                while self._on and await self._write_some():
                    pass
        except TimeoutError:
            _log.warning("nobody reads the access log", extra={"lines": len(self._waiting)})
        if self._pen is not None:
            self._count(self._pen)
            self._pen.close()
            self._pen = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            while await self._write_some():
                await asyncio.sleep(0)

    async def _write_some(self) -> bool:
        """One slice of lines. False if nothing waits."""
        if self._pen is None:
            self._pen = _Pen(self._fd, asyncio.get_running_loop())
        await self._pen.free.wait()
        self._count(self._pen)
        if self._pen.gone:
            self.dropped += len(self._waiting)
            self._waiting.clear()
            return False
        lines, links = self._make()
        if lines:
            self._pen.write(lines, links)
        return bool(lines)

    def _count(self, pen: "_Pen") -> None:
        """What became of the last slice."""
        self.written, pen.written = self.written + pen.written, 0
        self.dropped, pen.lost = self.dropped + pen.lost, 0

    def _make(self) -> tuple[bytes, int]:
        """A slice of lines, and how many of them are of links."""
        lines, before = [], len(self._waiting)
        if self.dropped != self._told:
            lines.append(self._lines.dropped(self.dropped - self._told, unix_ns()))
            self._told = self.dropped
        while self._waiting and len(lines) < _SLICE:
            lines.append(self._lines.line(self._waiting.popleft()))
        return "".join(lines).encode("utf-8", "replace"), before - len(self._waiting)


class _Pen:
    """A thread that sits in write(2) for as long as the pipe is full; one slice at a time. It is a
    daemon, not of the loop's executor, which would wait for it when the process ends."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        self._fd, self._loop = fd, loop
        self._slices: queue.SimpleQueue[tuple[bytes, int] | None] = queue.SimpleQueue()
        self.free = asyncio.Event()
        self.free.set()
        self.written = self.lost = 0
        """Links of the last slice. The thread's while `free` is not set, else the loop's."""
        self.gone = False
        """Standard output takes nothing any more."""
        threading.Thread(target=self._run, name="access-log", daemon=True).start()

    def write(self, lines: bytes, links: int) -> None:
        """`links` is how many of the lines, the last ones, tell of links."""
        self.free.clear()
        self._slices.put((lines, links))

    def close(self) -> None:
        self._slices.put(None)

    def _run(self) -> None:
        while (given := self._slices.get()) is not None:
            lines, links = given
            sent = self._put(lines)
            self.lost = min(links, lines.count(b"\n", sent))
            self.written = links - self.lost
            self.gone = sent < len(lines)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self.free.set)

    def _put(self, lines: bytes) -> int:
        """How many bytes have left: all, unless standard output is gone (the spans tell of the links).

        It may be non-blocking, since whoever shares it may have made it so: then its room is waited for.
        """
        view, sent = memoryview(lines), 0
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        while sent < len(lines):
            try:
                sent += os.write(self._fd, view[sent:])
            except BlockingIOError:
                room.poll()
            except OSError:
                break
        return sent


def _is_notable(record: LinkRecord) -> bool:
    return record.verdict != "allowed" or record.security not in ("mtls", "self")


class AccessLines:
    """Records as lines. What repeats from link to link is made once and remembered."""

    def __init__(self, now: Callable[[float], time.struct_time] = time.gmtime) -> None:
        self._known: dict[tuple[object, ...], tuple[str, str, str]] = {}
        self._gmtime = now
        self._second, self._text = -1, ""

    def line(self, record: LinkRecord) -> str:
        values = _repeating(record)
        parts = self._known.get(values)
        if parts is None:
            parts = _parts(record)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            if sum(map(len, parts)) < 4 * _MAX_TEXT:
                self._known[values] = parts
        head, middle, tail = parts
        took_ms = max(0, record.end_ns - record.start_ns) // 1_000_000
        return (
            f'{{"time":"{self._time(record.end_ns)}",{head}{record.source_port}",{middle}'
            f'"bytes_sent":{record.bytes_sent},"bytes_recv":{record.bytes_received},'
            f'"duration":"{took_ms}ms",{tail}"trace_id":"{record.trace_id.hex()}",'
            f'"span_id":"{record.span_id.hex()}"}}\n'
        )

    def dropped(self, count: int, at_ns: int) -> str:
        said = {
            "time": self._time(at_ns),
            "level": "warning",
            "scope": "access",
            "message": "access lines dropped",
            "dropped": count,
        }
        return json.dumps(said, separators=(",", ":")) + "\n"

    def _time(self, at_ns: int) -> str:
        second, rest = divmod(at_ns, 1_000_000_000)
        if second != self._second:
            try:
                self._text = time.strftime("%Y-%m-%dT%H:%M:%S", self._gmtime(second))
            except (OverflowError, OSError, ValueError):
                self._text = "1970-01-01T00:00:00"
            self._second = second
        return f"{self._text}.{rest // 1_000_000:03d}Z"


def _parts(r: LinkRecord) -> tuple[str, str, str]:
    """Everything but times, counts, ids and the source's port, which come between."""
    bad = r.verdict in ("denied", "failed")
    source_namespace, source_pod = _split(r.source_pod)
    destination_namespace, destination_pod = _split(r.destination_pod)
    ip = r.destination_ip or r.original_ip
    port = r.destination_port or r.original_port
    head = {
        "level": "warning" if bad else "info",
        "scope": "access",
        "message": "link refused" if bad else "link ended",
        "direction": r.direction,
    }
    middle = {
        "src.workload": source_pod,
        "src.namespace": source_namespace,
        "src.identity": r.source_identity,
        "dst.addr": f"{_bracketed(ip)}:{port}" if ip else "",
        "dst.service": r.service,
        "dst.workload": destination_pod,
        "dst.namespace": destination_namespace,
        "dst.identity": r.destination_identity,
    }
    tail = {
        "security": r.security,
        "verdict": r.verdict,
        "reason": r.reason,
        "error": r.error,
        "policy": r.policy,
        "rule": r.rule,
        "close": r.close,
    }
    address = _quoted(_bracketed(r.source_ip))[:-1]
    return f'{_joined(head)}"src.addr":{address}:', _joined(middle), _joined(tail)


def _joined(pairs: dict[str, str]) -> str:
    return "".join(f'"{key}":{_quoted(value)},' for key, value in pairs.items())


def _quoted(text: str) -> str:
    return json.dumps(text[:_MAX_TEXT])  # ASCII: every control character and every line separator


def _bracketed(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _split(pod: str) -> tuple[str, str]:
    namespace, slash, name = pod.partition("/")
    return (namespace, name) if slash else ("", pod)
