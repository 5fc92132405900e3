"""podlink for one namespace: of the cluster it has what docs/install.md lists, and nothing else."""

import pytest

from cli.objects import Choices
from tests.injector.pods import pod
from tests.kubernetes.programs import SYSTEM, ControlPlane
from tests.kubernetes.test_injection import OURS, proxy, put, served
from tests.kubernetes.test_rights import (
    AT_HOME,
    EVERYWHERE,
    anybodys,
    may,
    rights,
    said_forbidden,
)

__all__ = ["served"]
CHOICES = Choices(only_namespace="shop")
HOME = rights("pods", ("get", "list", "watch"))
OF_THE_CLUSTER = {
    "ca": rights("tokenreviews.authentication.k8s.io", ("create",)),
    "injector": EVERYWHERE["injector"] - rights("namespaces", ("get", "list", "watch")),
    "registry": set(),
    "traces": set(),
}


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("namespace", ["shop", SYSTEM, "elsewhere", "kube-system"])
def test_a_program_has_these_rights_and_no_other(
    plane: ControlPlane, name: str, namespace: str
) -> None:
    wanted = set(OF_THE_CLUSTER[name])
    if name != "traces":
        wanted |= rights("namespaces", ("get", "list", "watch"), "shop")
    if namespace == "shop" and name in ("ca", "registry"):
        anywhere = rights("namespaces", ("get", "list", "watch"))
        wanted |= EVERYWHERE[name] - anywhere
    if namespace == SYSTEM and name == "ca":
        wanted |= AT_HOME["ca"] | HOME
    token = plane.programs[name].token
    assert may(plane, token, namespace) - anybodys(plane, namespace) == wanted


def test_it_works_there_and_nowhere_else(served: ControlPlane) -> None:
    assert served.bundle("shop") == served.bundle()
    assert proxy(put(served, pod())) == OURS
    enrolled = pod()
    enrolled["metadata"]["labels"]["podlink.dev/inject"] = "enabled"
    assert proxy(put(served, enrolled, "elsewhere")) == []
    for program in served.programs.values():
        assert program.process.poll() is None
        assert not said_forbidden(program), program.tail()


def test_an_enrolled_namespace_beyond_it_is_neither_injected_nor_guarded(
    served: ControlPlane,
) -> None:
    body = {"metadata": {"labels": {"podlink.dev/inject": "enabled"}}}
    kind = "application/merge-patch+json"
    served.objects.api.need("PATCH", "/api/v1/namespaces/elsewhere", body, kind=kind)
    answer = put(served, pod(), "elsewhere")
    assert (answer.status, proxy(answer)) == (201, [])
