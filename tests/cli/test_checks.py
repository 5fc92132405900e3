"""What `podlink check` makes of an API server that is not ready to answer, and of a control plane that
nobody runs.
"""

from typing import Any, cast

import pytest

from cli.checks import control_plane
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
