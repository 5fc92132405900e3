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
from traces.rows import COLUMNS, rows_of
from traces.schema import open_for_writing

_INSERT = (
    f"INSERT OR IGNORE INTO spans ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - constants
)
_MAX_GROUP_BYTES = 4 << 20
_SWEEP_EVERY_S = 10.0
_SWEEP_ROWS = 2000
"""Deleted in one transaction, so that senders wait a moment and no longer."""

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
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting_bytes = 0  # touched by the loop's thread only
        self._thread = threading.Thread(target=self._run, name="span-writer", daemon=True)
        self._next_sweep = 0.0
        self._resources_stale = True
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

    async def write(self, request: ExportTraceServiceRequest) -> int:
        """Keep the request's spans; returns, once they are on disk, how many were refused as
        malformed. Raises StoreBusy or StoreFailed."""
        size_bytes = request.ByteSize()
        if self._waiting_bytes + size_bytes > self._config.max_waiting_bytes:
            raise StoreBusy
        loop = asyncio.get_running_loop()
        job = _Job(request, size_bytes, loop, loop.create_future())
        self._waiting_bytes += size_bytes
        # When the write ends, not when the sender gives up: until then the bytes are held.
        job.done.add_done_callback(lambda _: self._release(size_bytes))
        self._jobs.put(job)
        return await asyncio.shield(job.done)

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
                group.append(job)
                size_bytes += job.size_bytes
                if size_bytes >= _MAX_GROUP_BYTES:
                    return group, False
                job = self._jobs.get_nowait()
        except queue.Empty:
            return group, False
        return group, True

    def _write_group(self, group: list[_Job]) -> None:
        answers: list[int | Exception] = []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            answers.extend(self._insert(job) for job in group)
            self._db.execute("COMMIT")
        except Exception as e:
            _log.exception("spans not written")
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            answers = [StoreFailed(str(e))] * len(group)
        for job, answer in zip(group, answers, strict=True):
            _answer(job, answer)

    def _insert(self, job: _Job) -> int:
        rows = rows_of(job.request, self._clock_ns())
        self._db.executemany(
            "INSERT OR IGNORE INTO resources (digest, resource) VALUES (?, ?)",
            rows.resources.items(),
        )
        self._db.executemany(_INSERT, rows.spans)
        self.written += len(rows.spans)
        return rows.rejected

    def _sweep(self) -> None:
        """Delete what is too old, then the oldest while there is too much.

        Denied, plaintext and failed links go last, so that nobody can push them out with noise.
        """
        try:
            oldest_ns = self._clock_ns() - int(self._config.keep_s * 1e9)
            aged = (
                "DELETE FROM spans WHERE id IN "
                "(SELECT id FROM spans WHERE received_ns < ? ORDER BY received_ns LIMIT ?)"
            )
            deleted = self._delete(aged, oldest_ns)
            if not deleted and self._used_bytes() > self._config.max_bytes:
                oldest = (
                    "DELETE FROM spans WHERE id IN "
                    "(SELECT id FROM spans WHERE {} ORDER BY id LIMIT ?)"
                )
                deleted = self._delete(oldest.format("is_ordinary")) or self._delete(
                    oldest.format("true")
                )
            if deleted:
                self._next_sweep = 0.0  # there may be more: go on after the next group
                self._resources_stale = True
            elif self._resources_stale:
                self._drop_unused_resources()
            self._db.execute("PRAGMA incremental_vacuum(2000)")
        except sqlite3.Error:
            _log.exception("retention failed")

    def _delete(self, statement: str, *values: int) -> int:
        return self._db.execute(statement, (*values, _SWEEP_ROWS)).rowcount

    def _drop_unused_resources(self) -> None:
        self._resources_stale = False
        self._db.execute(
            "DELETE FROM resources WHERE digest NOT IN (SELECT resource_digest FROM spans)"
        )

    def _used_bytes(self) -> int:
        def pragma(name: str) -> int:
            return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

        return (pragma("page_count") - pragma("freelist_count")) * pragma("page_size")


def _answer(job: _Job, answer: int | Exception) -> None:
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
