"""One local cluster with podlink on it, shared by all end-to-end tests; each module adds its pods.

Every test here makes network namespaces. Names of pods are unique over the modules.
"""

import os
from collections.abc import Iterator

import pytest

from local import mesh as podlink
from local.cluster import Cluster
from tests.e2e.mesh import Mesh
from tests.e2e.objects import MESH, PLAIN, account, namespace, pod


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e/" in item.path.as_posix():
            item.add_marker(pytest.mark.netns)


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    """A cluster with podlink, an injected pod `mesh/client` and a plain one `plain/stranger`."""
    with Cluster.up(name=f"e2e-{os.getpid()}") as cluster:
        podlink.install(cluster)
        running = Mesh(cluster)
        running.apply(
            namespace(MESH, injected=True),
            namespace(PLAIN, injected=False),
            account("client"),
            pod("client", serviceAccountName="client"),
            pod("stranger", where=PLAIN),
        )
        yield running
