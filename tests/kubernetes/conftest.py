"""`real`: a real API server, where KUBEBUILDER_ASSETS names one; the tests that need it skip else."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.objects import Choices
from tests.charts.conftest import helm, rendered
from tests.kubernetes.objects import Objects
from tests.kubernetes.programs import PROGRAMS, ControlPlane, may_unshare, own_address
from tests.kubernetes.real_api import VARIABLE, RealApi, find_assets, real_api

__all__ = ["helm", "rendered"]


@pytest.fixture(scope="session")
def assets() -> Path:
    found = find_assets(os.environ)
    if found is None:
        pytest.skip(f"{VARIABLE} is not set: no kube-apiserver and etcd to run against")
    return found


@pytest.fixture(scope="session")
def real(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApi]:
    with real_api(assets, tmp_path_factory.mktemp("kubernetes")) as api:
        yield api


@pytest.fixture(scope="session")
def objects(real: RealApi) -> Objects:
    return Objects(real)


@pytest.fixture(scope="module")
def plane(
    request: pytest.FixtureRequest, objects: Objects, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """podlink installed as `podlink install` prints it, with all its programs running; the choices are
    the module's CHOICES. `shop` is enrolled, `elsewhere` is not."""
    if not may_unshare():
        pytest.skip("no mount namespace can be had here: programs look for tokens in /var/run")
    choices = getattr(request.module, "CHOICES", Choices())
    made = ControlPlane(objects, tmp_path_factory.mktemp("programs"), choices)
    made.address = own_address() or made.address
    objects.drop_crd()
    try:
        objects.namespace("shop", **{"podlink.dev/inject": "enabled"})
        objects.namespace("elsewhere")
        made.install()
        with made.running(*PROGRAMS):
            yield made
    finally:
        made.uninstall()
        objects.drop_namespace("shop")
        objects.drop_namespace("elsewhere")
