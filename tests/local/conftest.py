"""A cluster that the tests of a module share. Each module has its own, named after the process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    module = Path(str(request.path)).stem.removeprefix("test_").replace("_", "-")[:20]
    with Cluster.up(name=f"{module}-{os.getpid()}") as running:
        yield running
