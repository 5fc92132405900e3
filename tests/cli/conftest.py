"""A cluster, as far as the commands that read traces can see one."""

from collections.abc import Iterator

import pytest

from tests.cli.api_server import FakeApiServer
from tests.traces.process import StoreProcess, store

__all__ = ["store"]


@pytest.fixture
def api_server(store: StoreProcess) -> Iterator[FakeApiServer]:
    it = FakeApiServer(store)
    yield it
    it.close()
