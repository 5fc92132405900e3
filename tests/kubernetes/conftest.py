"""`real`: a real API server, where KUBEBUILDER_ASSETS names one; the tests that need it skip else."""

import os
from collections.abc import Iterator

import pytest

from tests.kubernetes.real_api import VARIABLE, RealApi, find_assets, real_api


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApi]:
    assets = find_assets(os.environ)
    if assets is None:
        pytest.skip(f"{VARIABLE} is not set: no kube-apiserver and etcd to run against")
    with real_api(assets, tmp_path_factory.mktemp("kubernetes")) as api:
        yield api
