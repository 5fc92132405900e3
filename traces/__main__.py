"""`python -m traces`: the trace store, until SIGTERM."""

import asyncio
import os
import signal

import uvloop

from kit.logs import start_logging
from kit.settings import Settings
from traces.app import TraceStore
from traces.config import TracesConfig


async def serve(config: TracesConfig) -> None:
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    store = await TraceStore.start(config)
    await asked_to_stop.wait()
    await store.stop()


def main() -> None:
    config = TracesConfig.from_settings(Settings())
    start_logging(config.log_level)
    os.umask(0o077)  # who talked to whom is nobody else's business
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config))


if __name__ == "__main__":
    main()
