"""The one thread that writes to the store.

Requests queue up, bounded in bytes in all and for each sender; the thread takes of all that wait, a
request of each sender in turn, writes them in one transaction and answers each sender only then. So a
sender that was told yes can rely on it whatever happens to this process, and a crowd of senders costs
one commit.
"""

import asyncio
import logging
import sqlite3
import threading
from collections import Counter, OrderedDict, deque
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
    done: asyncio.Future[Counter[str]]
    sender: str


@dataclass(frozen=True, slots=True)
class _Work:
    """Something else to be done with the tables, in a transaction of its own."""

    do: Callable[[sqlite3.Connection], object]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Counter[str]]


class _Queue:
    """What waits for the thread: works in their order, requests by sender."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._works: deque[_Work] = deque()
        self._jobs: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._over = False

    def put(self, item: _Job | _Work) -> None:
        with self._changed:
            if isinstance(item, _Work):
                self._works.append(item)
            else:
                self._jobs.setdefault(item.sender, deque()).append(item)
            self._changed.notify()

    def end(self) -> None:
        """No more will come: `take` says so once all has been taken."""
        with self._changed:
            self._over = True
            self._changed.notify()

    def take(self, timeout_s: float, most_bytes: int) -> tuple[list[_Work], list[_Job], bool]:
        """All works; of the requests one of each sender in turn, until there are enough; and whether it
        is over. Waits for the first of them, no longer than this."""
        with self._changed:
            if not (self._works or self._jobs or self._over):
                self._changed.wait(timeout_s)
            works, self._works = list(self._works), deque()
            group: list[_Job] = []
            size_bytes = 0
            while self._jobs and size_bytes < most_bytes:
                sender, jobs = next(iter(self._jobs.items()))
                group.append(jobs.popleft())
                size_bytes += group[-1].size_bytes
                self._jobs.move_to_end(sender)
                if not jobs:
                    del self._jobs[sender]
            return works, group, self._over and not self._jobs


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
        self._jobs = _Queue()
        self._waiting_bytes = 0  # touched by the loop's thread only, as is:
        self._waiting_of: Counter[str] = Counter()
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
        self._jobs.end()
        await asyncio.to_thread(self._thread.join)

    def has_room(self, sender: str, size_bytes: int) -> bool:
        """Whether a request of this size may wait: in all, and of this sender, who may hold an eighth of
        the room (or one request). Who proves nothing is one sender, with all of it."""
        config = self._config
        if self._waiting_bytes + size_bytes > config.max_waiting_bytes:
            return False
        own = self._waiting_of[sender] if sender else 0
        return not own or own + size_bytes <= config.max_waiting_bytes // 8

    async def write(self, request: ExportTraceServiceRequest, sender: str = "") -> Counter[str]:
        """Keep the request's spans; returns, once they are on disk, how many were refused, by reason.
        `sender` is the identity that the connection proved, if any. Raises StoreBusy or StoreFailed."""
        size_bytes = request.ByteSize()
        if not self.has_room(sender, size_bytes):
            raise StoreBusy
        loop = asyncio.get_running_loop()
        job = _Job(request, size_bytes, loop, loop.create_future(), sender)
        self._waiting_bytes += size_bytes
        self._waiting_of[sender] += size_bytes
        # When the write ends, not when the sender gives up: until then the bytes are held.
        job.done.add_done_callback(lambda _: self._release(sender, size_bytes))
        self._jobs.put(job)
        return await asyncio.shield(job.done)

    async def do(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Have the writer's thread do this in a transaction. Raises StoreFailed."""
        loop = asyncio.get_running_loop()
        waiting = _Work(work, loop, loop.create_future())
        self._jobs.put(waiting)
        await asyncio.shield(waiting.done)

    def _release(self, sender: str, size_bytes: int) -> None:
        self._waiting_bytes -= size_bytes
        self._waiting_of[sender] -= size_bytes
        if not self._waiting_of[sender]:
            del self._waiting_of[sender]

    def _run(self) -> None:
        ended = False
        while not ended:
            wait_s = max(0.0, self._next_sweep - monotonic())
            works, group, ended = self._jobs.take(wait_s, _MAX_GROUP_BYTES)
            for work in works:
                self._do(work)
            if group:
                self._write_group(group)
            if monotonic() >= self._next_sweep:
                self._next_sweep = monotonic() + self._sweep_every_s
                self._sweep()
        self._db.close()

    def _do(self, work: _Work) -> None:
        answer: Counter[str] | Exception = Counter()
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
        answers: list[Counter[str] | Exception] = []
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

    def _insert(self, job: _Job) -> Counter[str]:
        rows = rows_of(job.request, job.sender, self._believes)
        received_ns = self._clock_ns()
        for of in rows.resources:
            self.written += self._inserter.insert(of, received_ns)
        return rows.rejected

    def _sweep(self) -> None:
        try:
            if self._retention.sweep(self._clock_ns()):
                self._next_sweep = 0.0  # there may be more: go on after the next group
            if self._retention.forgot:
                self._retention.forgot = False
                self._inserter.forget()
        except sqlite3.Error:
            _log.exception("retention failed")


def _answer(job: _Job | _Work, answer: Counter[str] | Exception) -> None:
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
