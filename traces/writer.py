"""The one thread that writes to the store.

Requests queue up, bounded in bytes; the thread takes all that wait, writes them in one transaction
and answers each sender only then. So a sender that was told yes can rely on it whatever happens to
this process, and a crowd of senders costs one commit.
"""

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kit.clock import monotonic, unix_ns
from traces.config import TracesConfig
from traces.insert import Inserter
from traces.retention import Retention
from traces.rows import rows_of
from traces.schema import open_for_writing
from traces.vouch import Voucher

_MAX_GROUP_BYTES = 4 << 20
_SWEEP_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class StoreBusy(Exception):
    """The writer is behind; try again later. Nothing of the request was kept."""

    reason = "store_busy"


class StoreFailed(Exception):
    """The disk refused. Nothing of the request was kept."""

    reason = "store_failed"


@dataclass(frozen=True, slots=True)
class _Job:
    request: ExportTraceServiceRequest
    size_bytes: int
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[int]
    sender: str


@dataclass(frozen=True, slots=True)
class _Work:
    """Something else to be done with the tables, in a transaction of its own."""

    do: Callable[[sqlite3.Connection], object]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[int]


class Writer:
    """`start` it, `await write(...)` from the loop, `stop` it at the end."""

    def __init__(
        self,
        config: TracesConfig,
        *,
        clock_ns: Callable[[], int] = unix_ns,
        sweep_every_s: float = _SWEEP_EVERY_S,
    ) -> None:
        self._config, self._clock_ns, self._sweep_every_s = config, clock_ns, sweep_every_s
        self._db = open_for_writing(config.db_path)
        self._inserter = Inserter(self._db)
        self._believes = Voucher(config.mesh.ca).believes if config.mesh is not None else None
        self._retention = Retention(self._db, config)
        self._jobs: queue.SimpleQueue[_Job | _Work | None] = queue.SimpleQueue()
        self._waiting_bytes = 0  # touched by the loop's thread only
        self._thread = threading.Thread(target=self._run, name="span-writer", daemon=True)
        self._next_sweep = 0.0
        self.written = 0

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Write what waits, then close the file."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    async def write(self, request: ExportTraceServiceRequest, sender: str = "") -> int:
        """Keep the request's spans; returns, once they are on disk, how many were refused as
        malformed. `sender` is the identity that the connection proved, if any. Raises StoreBusy or
        StoreFailed."""
        size_bytes = request.ByteSize()
        if self._waiting_bytes + size_bytes > self._config.max_waiting_bytes:
            raise StoreBusy
        loop = asyncio.get_running_loop()
        job = _Job(request, size_bytes, loop, loop.create_future(), sender)
        self._waiting_bytes += size_bytes
        # When the write ends, not when the sender gives up: until then the bytes are held.
        job.done.add_done_callback(lambda _: self._release(size_bytes))
        self._jobs.put(job)
        return await asyncio.shield(job.done)

    async def do(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Have the writer's thread do this in a transaction. Raises StoreFailed."""
        loop = asyncio.get_running_loop()
        waiting = _Work(work, loop, loop.create_future())
        self._jobs.put(waiting)
        await asyncio.shield(waiting.done)

    def _release(self, size_bytes: int) -> None:
        self._waiting_bytes -= size_bytes

    def _run(self) -> None:
        ended = False
        while not ended:
            group, ended = self._next_group()
            if group:
                self._write_group(group)
            if monotonic() >= self._next_sweep:
                self._next_sweep = monotonic() + self._sweep_every_s
                self._sweep()
        self._db.close()

    def _next_group(self) -> tuple[list[_Job], bool]:
        group: list[_Job] = []
        size_bytes = 0
        try:
            job = self._jobs.get(timeout=max(0.0, self._next_sweep - monotonic()))
            while job is not None:
                if isinstance(job, _Work):
                    self._do(job)
                    job = self._jobs.get_nowait()
                    continue
                group.append(job)
                size_bytes += job.size_bytes
                if size_bytes >= _MAX_GROUP_BYTES:
                    return group, False
                job = self._jobs.get_nowait()
        except queue.Empty:
            return group, False
        return group, True

    def _do(self, work: _Work) -> None:
        answer: int | Exception = 0
        try:
            self._db.execute("BEGIN IMMEDIATE")
            work.do(self._db)
            self._db.execute("COMMIT")
        except Exception as e:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            answer = StoreFailed(str(e))
        _answer(work, answer)

    def _write_group(self, group: list[_Job]) -> None:
        answers: list[int | Exception] = []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            answers.extend(self._insert(job) for job in group)
            self._inserter.flush()
            self._db.execute("COMMIT")
        except Exception as e:
            _log.exception("spans not written")
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._inserter.forget()
            answers = [StoreFailed(str(e))] * len(group)
        for job, answer in zip(group, answers, strict=True):
            _answer(job, answer)

    def _insert(self, job: _Job) -> int:
        rows = rows_of(job.request, job.sender, self._believes)
        received_ns = self._clock_ns()
        for of in rows.resources:
            self.written += self._inserter.insert(of, received_ns)
        return rows.rejected

    def _sweep(self) -> None:
        try:
            if self._retention.sweep(self._clock_ns()):
                self._next_sweep = 0.0  # there may be more: go on after the next group
            elif self._retention.forgot:
                self._retention.forgot = False
                self._inserter.forget()
        except sqlite3.Error:
            _log.exception("retention failed")


def _answer(job: _Job | _Work, answer: int | Exception) -> None:
    def settle() -> None:
        if job.done.done():
            return
        if isinstance(answer, Exception):
            job.done.set_exception(answer)
        else:
            job.done.set_result(answer)

    try:
        job.loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop has ended, and with it whoever asked
        _log.debug("nobody waits for the answer")
