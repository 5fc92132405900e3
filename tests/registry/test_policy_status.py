"""The status writer against an API server: one write per change, none for what stands already."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from kit.kube import Kube
from kit.tasks import spawn, stop
from registry.facts import PolicyObject
from registry.policy_status import StatusWriter
from tests.kit.fake_api import FakeApi, fake_api, refusal
from tests.patience import PATIENCE_S
from tests.registry.test_policies import GOOD, SLIP, policy, world

PATH = "/apis/podlink.dev/v1alpha1/namespaces/shop/linkpolicies/db/status"


def patched(_: web.Request) -> web.Response:
    return web.json_response({"kind": "LinkPolicy"})


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.01)


class Writing:
    def __init__(self, kube: Kube, spec: Any) -> None:
        self.model, self.current = world(), dict[str, PolicyObject]()
        self.writer = StatusWriter(kube, self.model, lambda: self.current, soon_s=(0.0, 0.01))
        self.task = spawn(self.writer.run(), name="status")
        self.put(policy(spec))

    def put(self, one: PolicyObject) -> None:
        self.model.change_policy(self.current.get("shop/db"), one)
        self.current["shop/db"] = one
        self.writer.changed()


def status_of(api: FakeApi, number: int) -> dict[str, Any]:
    """What the number-th write said; each is bound to the object that was read."""
    method, kind, body = api.bodies[number]
    assert (method, kind) == ("PATCH", "application/json-patch+json")
    assert [one["op"] for one in body] == ["test", "test", "add"]
    assert body[0] == {"op": "test", "path": "/metadata/uid", "value": "u1"}
    status: dict[str, Any] = body[2]["value"]
    return status


async def test_a_change_is_told_once_and_what_stands_already_never_again() -> None:
    async with fake_api(patched, patched) as (api, kube):
        it = Writing(kube, GOOD)
        try:
            await until(lambda: len(api.bodies) == 1)
            assert api.asked[0]["path"] == PATH
            first = status_of(api, 0)
            assert first["selectedPods"] == 1
            it.put(policy(GOOD, status=json.loads(json.dumps(first))))
            it.writer.changed()
            await asyncio.sleep(0.1)
            assert len(api.bodies) == 1
            it.put(policy(SLIP, 2, status=first))
            await until(lambda: len(api.bodies) == 2)
            second = status_of(api, 1)
            assert second["inForce"] == {"generation": 1, "spec": GOOD}
            assert [one["status"] for one in second["conditions"]] == ["False", "True"]
        finally:
            await stop(it.task)


async def test_another_replica_that_was_faster_and_a_server_that_refuses_end_nothing() -> None:
    script = [refusal(409, "Conflict"), refusal(403, "Forbidden"), patched]
    async with fake_api(*script) as (api, kube):
        it = Writing(kube, GOOD)
        try:
            for count in (1, 2, 3):
                await until(lambda wanted=count: len(api.bodies) == wanted)  # type: ignore[misc]
                it.writer.changed()
            assert not it.task.done()
        finally:
            await stop(it.task)
