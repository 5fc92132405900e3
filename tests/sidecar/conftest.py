"""Every test of the sidecar runs on the sidecar's own event loop."""

import asyncio
from collections.abc import Callable

from sidecar.dataplane.loop.poller import DataLoop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"data": DataLoop}
