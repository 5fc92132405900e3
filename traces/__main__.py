"""`python -m traces`: the trace store, until SIGTERM."""

import asyncio
import os
import signal
import sys

import uvloop

from kit.logs import start_logging
from kit.settings import Settings
from kit.tasks import spawn, stop
from kit.undumpable import forbid_dumps
from traces.app import TraceStore
from traces.config import TracesConfig


async def serve(config: TracesConfig) -> int:
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    store = await TraceStore.start(config)
    waiting = [
        spawn(event.wait(), name="wait for the end")
        for event in (asked_to_stop, store.receivers.broken)
    ]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await stop(*waiting)
    await store.stop()
    return 1 if store.receivers.broken.is_set() else 0


def main() -> None:
    forbid_dumps()
    config = TracesConfig.from_settings(Settings())
    start_logging(config.log_level)
    os.umask(0o077)  # who talked to whom is nobody else's business
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(serve(config))
    sys.exit(status)


if __name__ == "__main__":
    main()
