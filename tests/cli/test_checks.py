"""What `podlink check` makes of an API server that is not ready to answer."""

from typing import Any, cast

import pytest

from cli.checks import control_plane
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
