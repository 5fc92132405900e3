"""`python -m sidecar.workers.worker <fd>`: a process that carries links and does nothing else.

Imports no gRPC: certificates, settings and answers come over the wire from the parent. It ends when
the parent says so, or is gone.
"""

import asyncio
import gc
import json
import logging
import signal
import socket
import sys

from kit.logs import start_logging
from kit.settings import Settings
from kit.tasks import spawn
from kit.undumpable import forbid_dumps
from proto import registry_pb2 as pb
from sidecar.admin import views
from sidecar.carrier import Carrier
from sidecar.config import SidecarConfig
from sidecar.dataplane.loop.poller import DataLoop
from sidecar.discovery.translate import NotUnderstood
from sidecar.metrics.collect import of_carrier
from sidecar.metrics.families import to_wire
from sidecar.workers import wire as w
from sidecar.workers.directory import How, WorkerDirectory

_LOOKUPS = {
    How.ASK: w.LOOKUP,
    How.FOR_RECORD: w.LOOKUP_FOR_RECORD,
    How.ANEW: w.LOOKUP_ANEW,
}
_log = logging.getLogger("podlink.worker")


class Worker:
    def __init__(self, config: SidecarConfig) -> None:
        self._wire = w.Wire(self._heard, self._parent_gone)
        self._directory = WorkerDirectory(self._ask_parent)
        self._carrier = Carrier(
            asyncio.get_running_loop(), config, self._directory, self._wire.send_record
        )
        self._carrier.watch_requests(self._wire.send_request)
        self._over, self._hurry = asyncio.Event(), asyncio.Event()

    async def run(self, sock: socket.socket) -> None:
        """Until the parent has drained us or is gone."""
        await self._wire.open(sock)
        try:
            self._carrier.listen()
            self._wire.send(w.LISTENING)
            await self._over.wait()
        finally:
            self._carrier.close()
            await self._wire.finish()  # the last records leave

    def _heard(self, kind: int, body: bytes) -> None:
        carrier = self._carrier
        if kind == w.SVID:
            carrier.svid_came(w.value_of(body))
        elif kind == w.BANS:
            carrier.bans_came(w.value_of(body))
        elif kind == w.SETTINGS:
            try:
                carrier.settings_came(pb.PodSettings.FromString(body))
            except NotUnderstood as e:
                _log.error("settings not understood, the old ones stay", extra={"error": str(e)})
        elif kind == w.FOUND:
            key, value = w.value_of(body)
            if value is not None:
                carrier.found_comes(key, value)
            self._directory.came(key, value)
        elif kind == w.ANSWER:
            self._directory.answered(body.decode())
        elif kind == w.ASK:
            number, name = json.loads(body)
            self._wire.send_json(w.SAID, [number, self._say(name)])
        elif kind == w.DRAIN:
            spawn(self._drain(), name="drain")
        elif kind == w.HURRY:
            self._hurry.set()

    def _say(self, name: str) -> object:
        if name == "metrics":
            return to_wire(of_carrier(self._carrier))
        return views.PAGES[name](self._carrier, self._directory)

    def _ask_parent(self, how: How, key: str) -> None:
        self._wire.send(_LOOKUPS[how], key.encode())

    async def _drain(self) -> None:
        await self._carrier.drain(self._hurry)
        self._over.set()

    def _parent_gone(self) -> None:
        self._over.set()


def main() -> None:
    forbid_dumps()
    config = SidecarConfig.from_settings(Settings())
    start_logging(config.log_level)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent drains us
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=DataLoop) as runner:
            runner.run(_run(config, socket.socket(fileno=int(sys.argv[1]))))
    except OSError as e:
        _log.error("cannot start", extra={"error": str(e)})
        sys.exit(1)


async def _run(config: SidecarConfig, sock: socket.socket) -> None:
    await Worker(config).run(sock)


if __name__ == "__main__":
    main()
