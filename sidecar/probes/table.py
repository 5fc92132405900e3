"""Answers `/probe/<container>/<kind>` on the health port by asking the app.

Anybody who reaches the health port can ask, so each probe runs at most once at a time: who asks
meanwhile gets the same answer. An answer holds a status and podlink's own words, nothing of the app's.
"""

import asyncio
from contextlib import closing
from typing import Final

from kit.contract import PROBE_PATH
from kit.tasks import spawn, stop
from sidecar.dataplane.sources import Sources
from sidecar.pages import Answer, Request, text
from sidecar.probes.grpc import ask_grpc
from sidecar.probes.http import ProbeFailed, ask_http, connect
from sidecar.probes.spec import AppProbes, GrpcProbe, HttpProbe, Probe
from sidecar.source_address import Source

_Verdict = tuple[int, str]
_WELL: Final[_Verdict] = (200, "ok\n")


class ProbeTable:
    """`mark` is put on our own connections where capture exempts by mark; 0 for none. The app sees
    the address of whoever asked, as if that had asked it itself, where `sources` can show it."""

    def __init__(self, app: AppProbes, mark: int = 0, sources: Sources | None = None) -> None:
        self._app, self._mark, self._sources = app, mark, sources or Sources()
        self._running: dict[str, asyncio.Task[_Verdict]] = {}

    async def answer(self, request: Request) -> Answer:
        """For the health port's routes: 200, or the app's error status, or 503, or 404."""
        key = request.path.removeprefix(PROBE_PATH)
        probe = self._app.probes.get(key)
        if probe is None:
            return text(f"no probe {key[:200]!r}\n", 404)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = spawn(self._run(probe, request.source), name=f"probe {key}")
            task.add_done_callback(lambda _: self._running.pop(key, None))
        status, said = await asyncio.shield(task)
        return text(said, status)

    async def close(self) -> None:
        await stop(*self._running.values())

    async def _run(self, probe: Probe, asker: str) -> _Verdict:
        try:
            async with asyncio.timeout(probe.timeout_s):
                await self._ask(probe, self._source(asker))
        except ProbeFailed as e:
            return e.status, self._said(probe, str(e))
        except TimeoutError:
            return 503, self._said(probe, f"no answer within {probe.timeout_s:g} s")
        except (OSError, ValueError) as e:  # ValueError: a redirect to what is no address
            return 503, self._said(probe, str(e))
        return _WELL

    def _source(self, asker: str) -> Source | None:
        """A kubelet asks in clear: its address is what TCP says, as for any plaintext link."""
        if not asker or (":" in asker) != (":" in self._app.ip):
            return None
        return self._sources.seen(asker)

    async def _ask(self, probe: Probe, source: Source | None) -> None:
        if isinstance(probe, HttpProbe):
            await ask_http(probe, self._app.ip, self._mark, source)
        elif isinstance(probe, GrpcProbe):
            await ask_grpc(probe, self._app.ip, self._mark, source)
        else:
            _, writer = await connect(self._app.ip, probe.port, self._mark, source=source)
            with closing(writer):
                pass

    def _said(self, probe: Probe, what: str) -> str:
        kind = type(probe).__name__.removesuffix("Probe").upper()
        return f"podlink asked the app by {kind} at {self._app.ip} port {probe.port}: {what}\n"
