"""`node`: a real node with podlink's images on it; `mesh`: podlink installed there."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.node.cluster import ROOT, RealNode, left_behind, real_node, why_not
from tests.kubernetes.node.images import ALL

VARIABLE = "PODLINK_NODE_IMAGES"


_ORDER = ("test_plan", "test_links", "test_cni", "test_life")
"""One installation serves all: the last file takes it away."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = [n for n, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    ours = sorted((items[n] for n in places), key=lambda item: _ORDER.index(item.path.stem))
    for place, item in zip(places, ours, strict=True):
        items[place] = item
        if "node" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    if said := why_not(os.environ):
        pytest.skip(said)
    images = Path(os.environ.get(VARIABLE, ROOT / ".node-images"))
    if not all((images / f"{name}.tar").exists() for name in ALL):
        pytest.skip(f"{VARIABLE}={images}: the images are not there; make node-images")
    with real_node(Path(os.environ["KUBEBUILDER_ASSETS"]), tmp_path_factory.mktemp("node")) as made:
        made.load(images)
        yield made
    assert left_behind(made.plan) == []


@pytest.fixture(scope="session")
def mesh(node: RealNode) -> RealNode:
    """podlink on the node, from the manifests that the CLI prints."""
    node.kubectl("apply", "-f", "-", text=node.podlink("install"))
    wait_programs(node)
    return node


def wait_programs(node: RealNode) -> None:
    for name in ("ca", "registry", "injector", "traces"):
        node.kubectl(
            "-n", "podlink-system", "rollout", "status", f"deployment/podlink-{name}", "--timeout=180s",
            timeout=200,
        )  # fmt: skip
    _wait_injecting(node)


def _wait_injecting(node: RealNode) -> None:
    """A ready injector is not yet one that kube-proxy sends to; until it is, the guard refuses pods."""
    for _ in range(30):
        checks = json.loads(node.podlink("check", "-o", "json", check=False))["checks"]
        if any(each["id"] == "webhook-injects" and each["state"] == "ok" for each in checks):
            return
        time.sleep(1)
    raise AssertionError(f"nothing is injected: {checks}")
