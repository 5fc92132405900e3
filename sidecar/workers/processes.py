"""Several processes that carry links, as their parent sees them.

Each new worker is told everything that is in force before it is asked for anything. One that dies is
started again, with back-off; the links it carried are gone, those of the others go on.
"""

import asyncio
import json
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from certs.client.source import Svid
from certs.trust.bans import Bans
from kit.backoff import Backoff
from kit.clock import monotonic
from kit.exposition import Family
from kit.tasks import spawn, stop
from proto import registry_pb2 as pb
from sidecar.admin import views
from sidecar.config import SidecarConfig
from sidecar.dataplane.sources import Sources
from sidecar.directory import Directory, Found
from sidecar.discovery.translate import policy_set
from sidecar.metrics import process
from sidecar.metrics.catalogue import BY_NAME
from sidecar.metrics.families import from_wire, merged
from sidecar.report import Report, RequestRecord
from sidecar.source_check import SourceCheck
from sidecar.workers import wire as w

_ANSWER_WITHIN_S: Final = 2.0
_STARTED_WITHIN_S: Final = 30.0
_AFTER_GRACE_S: Final = 3.0
_log = logging.getLogger(__name__)


class WorkerProcesses:
    """A `sidecar.workers.Carriers` of `config.workers` processes."""

    def __init__(
        self,
        config: SidecarConfig,
        directory: Directory,
        known: Callable[[], Mapping[str, Found]],
        report: Report,
        report_request: Callable[[RequestRecord], None],
        source_check: SourceCheck,
    ) -> None:
        self._config, self._directory, self._known = config, directory, known
        self._report, self._report_request = report, report_request
        self._svid: Svid | None = None
        self._bans: Bans | None = None
        self._settings: bytes | None = None
        self._mates: dict[int, _Mate] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self.restarts = 0
        self._source_check = source_check

    # --- start ------------------------------------------------------------------------------

    async def start(self) -> None:
        self._source_check.start()
        self._keepers = [
            spawn(self._keep(number), name=f"worker {number}", vital=True)
            for number in range(self._config.workers)
        ]
        async with asyncio.timeout(_STARTED_WITHIN_S):
            while sum(mate.listening for mate in self._mates.values()) < len(self._keepers):
                await asyncio.sleep(0.02)

    async def _keep(self, number: int) -> None:
        backoff = Backoff(first_s=0.1, longest_s=5.0)
        while True:
            began = monotonic()
            code = await self._run(number)
            if self._stopping:
                return
            if monotonic() - began > 60:
                backoff.reset()
            self.restarts += 1
            _log.error("a worker died and is started again", extra={"worker": number, "exit": code})
            await asyncio.sleep(backoff.next_s())

    async def _run(self, number: int) -> int:
        ours, theirs = socket.socketpair()
        with theirs:
            running = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "sidecar.workers.worker",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
            )
        mate = self._mates[number] = _Mate(self, running)
        try:
            await mate.wire.open(ours)
            self._brief(mate)
            return await running.wait()
        finally:
            mate.wire.close()
            self._mates.pop(number, None)
            if running.returncode is None:
                with suppress(ProcessLookupError):
                    running.kill()
                await running.wait()

    def _brief(self, mate: "_Mate") -> None:
        """Tell a new worker all that is in force. It listens already, and its first certificate is
        what lets it make links: whoever is banned must be known before that."""
        if self._bans is not None:
            mate.wire.send_value(w.BANS, self._bans)
        if self._svid is not None:
            mate.wire.send_value(w.SVID, self._svid)
        for key, value in self._known().items():
            mate.wire.send_value(w.FOUND, (key, value))
        if self._settings is not None:
            mate.wire.send(w.SETTINGS, self._settings)

    # --- news -------------------------------------------------------------------------------

    def svid_came(self, svid: Svid) -> None:
        self._svid = svid
        for mate in self._mates.values():
            mate.wire.send_value(w.SVID, svid)

    def bans_came(self, bans: Bans) -> None:
        self._bans = bans
        for mate in self._mates.values():
            mate.wire.send_value(w.BANS, bans)

    def settings_came(self, settings: pb.PodSettings) -> None:
        policy_set(settings)  # raises before anybody has been told
        self._settings = settings.SerializeToString()
        for mate in self._mates.values():
            mate.wire.send(w.SETTINGS, self._settings)

    def found_came(self, key: str, value: Found | None) -> None:
        for mate in self._mates.values():
            mate.wire.send_value(w.FOUND, (key, value))

    def heard(self, mate: "_Mate", kind: int, body: bytes) -> None:
        """What a worker says. Raises ValueError for nonsense."""
        if kind == w.RECORD:
            self._report(w.unpack_record(json.loads(body)))
        elif kind == w.REQUEST:
            self._report_request(w.unpack_request(json.loads(body)))
        elif kind == w.LOOKUP or kind == w.LOOKUP_ANEW:
            key = body.decode()
            ask = self._directory.ask if kind == w.LOOKUP else self._directory.ask_anew
            ask(key, lambda found: self._answer(mate, key, found))
        elif kind == w.LOOKUP_FOR_RECORD:
            key = body.decode()
            self._directory.ask(key, lambda found: self._answer(mate, key, found), for_record=True)
        elif kind == w.SAID:
            number, said = json.loads(body)
            waiting = self._asked.pop(number, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(said)
        elif kind == w.LISTENING:
            mate.listening = True

    def _answer(self, mate: "_Mate", key: str, found: Found | None) -> None:
        if found is not None:
            mate.wire.send_value(w.FOUND, (key, found))
        mate.wire.send(w.ANSWER, key.encode())
        if found is not None and self._directory.known(key) is None:  # not worth keeping
            mate.wire.send_value(w.FOUND, (key, None))

    # --- how they are -----------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        svid = self._svid
        listening = any(mate.listening for mate in self._mates.values())
        banned = svid is not None and self._bans is not None and self._bans.covers(svid.facts)
        return listening and svid is not None and not banned and svid.deadline > monotonic()

    @property
    def sources(self) -> Sources:
        return self._source_check.sources

    async def families(self) -> list[Family]:
        found = process.families()
        for said in await self._ask_all("metrics"):
            found += from_wire(said, BY_NAME)
        return merged(found)

    async def page(self, name: str) -> views.Json:
        parts = [part for part in await self._ask_all(name) if isinstance(part, dict)]
        return views.merge(name, parts)

    async def _ask_all(self, name: str) -> list[Any]:
        """What each worker says within a moment; one that hangs is left out."""
        waiting = []
        for mate in self._mates.values():
            self._next += 1
            self._asked[self._next] = answer = asyncio.get_running_loop().create_future()
            waiting.append(answer)
            mate.wire.send_json(w.ASK, [self._next, name])
        if not waiting:
            return []
        done, late = await asyncio.wait(waiting, timeout=_ANSWER_WITHIN_S)
        for answer in late:
            answer.cancel()
        return [answer.result() for answer in waiting if answer in done]

    # --- the end ----------------------------------------------------------------------------

    async def drain(self, hurry: asyncio.Event) -> None:
        self._source_check.close()
        self._stopping = True
        for mate in self._mates.values():
            mate.wire.send(w.DRAIN)
        hurrying = spawn(self._pass_on(hurry), name="hurry")
        try:
            await asyncio.wait(self._keepers, timeout=self._config.drain_s + _AFTER_GRACE_S)
        finally:
            await stop(hurrying)

    async def _pass_on(self, hurry: asyncio.Event) -> None:
        await hurry.wait()
        for mate in self._mates.values():
            mate.wire.send(w.HURRY)

    async def close(self) -> None:
        self._source_check.close()
        self._stopping = True
        await stop(*self._keepers)


class _Mate:
    """One worker."""

    def __init__(self, parent: WorkerProcesses, running: asyncio.subprocess.Process) -> None:
        self._parent, self._running = parent, running
        self.wire = w.Wire(self._heard, self._gone)
        self.listening = False

    def _heard(self, kind: int, body: bytes) -> None:
        try:
            self._parent.heard(self, kind, body)
        except (ValueError, TypeError, KeyError) as e:
            _log.error("a worker says nonsense and is ended", extra={"error": str(e)[:200]})
            self.wire.close()
            self._end()

    def _gone(self) -> None:
        self.listening = False
        self._end()

    def _end(self) -> None:
        if self._running.returncode is None:
            with suppress(ProcessLookupError):
                self._running.kill()
