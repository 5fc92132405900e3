"""What `podlink check` makes of an API server that is not ready to answer, and of a control plane that
nobody runs.
"""

from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from cli.checks import control_plane, proxies
from cli.installed import Installation
from cli.objects import PROGRAMS
from kit.kube import Kube, KubeError


class FakeKube:
    """Asks for patience so many times, then knows of no LinkPolicies."""

    def __init__(self, times: int, status: int = 429) -> None:
        self.left, self.status = times, status

    async def get(self, path: str) -> dict[str, Any]:
        if self.left:
            self.left -= 1
            message = "storage is (re)initializing"
            raise KubeError(self.status, "TooManyRequests", message, retry_after_s=0.01)
        return {"items": []}


async def outcome(kube: FakeKube) -> tuple[str, int]:
    (one,) = await control_plane.policies(cast(Kube, kube))
    return one.state, kube.left


@pytest.mark.parametrize("times", [0, 1, 5])
async def test_a_check_waits_where_the_api_server_asks_for_patience(times: int) -> None:
    assert await outcome(FakeKube(times)) == ("ok", 0)


async def test_it_does_not_wait_for_ever_nor_where_nobody_asked_for_it() -> None:
    state, left = await outcome(FakeKube(1000))
    assert state == "fail" and left > 900
    assert await outcome(FakeKube(3, status=500)) == ("fail", 2)


def ready(wanted: int | None, ready: int) -> dict[str, tuple[str, str]]:
    """State and todo of every program whose Deployment is so."""
    spec = {} if wanted is None else {"replicas": wanted}
    one = {"spec": spec, "status": {"readyReplicas": ready} if ready else {}}
    found = Installation("podlink-system", dict.fromkeys(PROGRAMS, one))
    return {o.id.removesuffix("-ready"): (o.state, o.todo) for o in control_plane.programs(found)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_scaled_to_nothing_fails_and_the_way_back_is_said(program: str) -> None:
    state, todo = ready(0, 0)[program]
    assert state == "fail"
    assert f"kubectl -n podlink-system scale deployment {program} --replicas=" in todo


@pytest.mark.parametrize(
    ("wanted", "there", "state"),
    [(2, 2, "ok"), (2, 1, "warn"), (2, 0, "fail"), (None, 1, "ok"), (None, 0, "fail")],
)
def test_a_program_is_judged_by_the_pods_it_should_have(
    wanted: int | None, there: int, state: str
) -> None:
    assert {one for one, _ in ready(wanted, there).values()} == {state}


@pytest.mark.parametrize("release", ["podlink", "podlink-one-namespace", "podlink-cni"])
def test_a_record_that_goes_with_its_pod_is_worth_a_look(release: str) -> None:
    """As `podlink install` prints it; and with the volume that the chart makes instead."""
    printed = (Path("cli/manifests") / f"{release}.yaml").read_text()
    (store,) = (
        one
        for one in yaml.safe_load_all(printed)
        if one and one["kind"] == "Deployment" and one["metadata"]["name"] == "podlink-traces"
    )
    found = Installation("podlink-system", {"podlink-traces": store})
    (lost,) = control_plane.record_lasts(found)
    assert (lost.id, lost.state) == ("record-lasts", "warn")
    assert "traces.persistence.enabled: true" in lost.todo
    (volume,) = (v for v in store["spec"]["template"]["spec"]["volumes"] if v["name"] == "data")
    del volume["emptyDir"]
    volume["persistentVolumeClaim"] = {"claimName": "podlink-traces"}
    assert [one.state for one in control_plane.record_lasts(found)] == ["ok"]
    assert control_plane.record_lasts(Installation("podlink-system", {})) == []


class Namespaces:
    """Answers a question for labelled namespaces with these names; None: it may not be asked."""

    def __init__(self, names: list[str] | None) -> None:
        self.names = names

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        assert query == {"labelSelector": "podlink.dev/leaf-without-sidecar=allowed"}
        if self.names is None:
            raise KubeError(403, "Forbidden", "no")
        return {"items": [{"metadata": {"name": name}} for name in self.names]}


@pytest.mark.attack_row(53)
@pytest.mark.parametrize(
    ("names", "state", "said"),
    [
        ([], "ok", "only pods that carry the proxy"),
        (["vm", "batch"], "warn", "in batch, vm"),
        (None, "warn", "may not read"),
    ],
)
async def test_namespaces_whose_pods_need_no_sidecar_are_listed(
    names: list[str] | None, state: str, said: str
) -> None:
    kube = cast(Kube, Namespaces(names))
    (one,) = await control_plane.leaves_without_sidecar(kube)
    assert (one.id, one.state) == ("leaves-without-sidecar", state) and said in one.said


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ({}, ""),
        ({"wanted": False, "proven": [], "why_not": {}}, ""),
        ({"wanted": True, "proven": [4, 6], "why_not": {}}, ""),
        ({"wanted": True, "proven": [6], "why_not": {"4": "no route"}}, "IPv4: no route"),
    ],
)
def test_an_app_that_does_not_see_its_callers_is_worth_a_look(
    page: dict[str, Any], said: str
) -> None:
    found = proxies.of_source_address("shop/web-0", {"source_address": page} if page else {})
    assert [(one.state, said in one.said) for one in found] == [("warn", True)] * bool(said)
