"""Writes each LinkPolicy's status: whether it could be read, what is in force, how many pods.

Every replica would write the same, so each waits a random while and looks again: mostly one writes.
What is said (`said`) is pure; the writing is apart.
"""

import asyncio
import datetime as dt
import json
import logging
import random
from collections.abc import Callable
from typing import Any, Final

from kit.clock import Clock, utcnow
from kit.kube import Kube, KubeError
from policy.linkpolicy import GROUP, PLURAL, VERSION
from registry.facts import PolicyObject
from registry.model import Model
from registry.policies import CLOSED, LAST_GOOD, Standing

POLICIES: Final = f"/apis/{GROUP}/{VERSION}/{PLURAL}"
SOON_S: Final = (0.1, 0.5)
"""Between a change and the status that tells of it."""
EVERY_S: Final = 10.0
"""Between looks at how many pods are selected."""
_MAX_MESSAGE: Final = 1024
_CONFLICT, _GONE = 409, 404
_log = logging.getLogger(__name__)

Status = dict[str, Any]


def said(
    standing: Standing, generation: int, pods: int, before: Status, now: dt.datetime
) -> Status:
    """The status of a policy; `before` is what its object has now. Equal if nothing has changed."""
    error = standing.error
    accepted = _condition(
        "Accepted",
        error is None,
        "Valid" if error is None else "Invalid",
        _advice(standing) if error is None else str(error),
        generation,
    )
    in_force = _condition(
        "InForce", standing.state != CLOSED, standing.state, _in_force(standing), generation
    )
    status: Status = {
        "observedGeneration": generation,
        "selectedPods": pods,
        "conditions": [_since(one, before, now) for one in (accepted, in_force)],
    }
    if standing.raw_spec is not None:
        status["inForce"] = {"generation": standing.generation, "spec": standing.raw_spec}
    return status


def _condition(kind: str, holds: bool, reason: str, message: str, generation: int) -> Status:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": message[:_MAX_MESSAGE],
        "observedGeneration": generation,
    }


def _since(condition: Status, before: Status, now: dt.datetime) -> Status:
    listed = before.get("conditions")
    for old in listed if isinstance(listed, list) else ():
        if not isinstance(old, dict):
            continue
        if old.get("type") == condition["type"] and old.get("status") == condition["status"]:
            return {**condition, "lastTransitionTime": old.get("lastTransitionTime")}
    return {**condition, "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ")}


def _advice(standing: Standing) -> str:
    policy = standing.policy.policy
    if not policy.allow and not policy.audit:
        return (
            "it has no allow rule: whoever no other policy allows is refused at the selected pods"
        )
    return ""


def _in_force(standing: Standing) -> str:
    if standing.state == LAST_GOOD:
        return f"generation {standing.generation} stays in force until this one can be read"
    if standing.state == CLOSED:
        return "no form of it could ever be read: the pods that it selects let nobody in"
    return ""


class StatusWriter:
    """`changed` marks an object; `run` writes until cancelled. `current` gives all objects."""

    def __init__(
        self,
        kube: Kube,
        model: Model,
        current: Callable[[], dict[str, PolicyObject]],
        clock: Clock = utcnow,
        soon_s: tuple[float, float] = SOON_S,
    ) -> None:
        self._kube, self._model, self._current = kube, model, current
        self._clock, self._soon_s = clock, soon_s
        self._changed = asyncio.Event()

    def changed(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            await asyncio.sleep(random.uniform(*self._soon_s))  # noqa: S311 - only spreads replicas
            for one in list(self._current().values()):
                await self._write(one)
                await asyncio.sleep(0)  # thousands of policies must not hold up a push

    async def _write(self, one: PolicyObject) -> None:
        standing = self._model.policies.standing(one.namespace, one.name)
        if standing is None:
            return
        before = json.loads(one.raw_status)
        before = before if isinstance(before, dict) else {}
        pods = self._model.count_selected(one.namespace, one.name)
        status = said(standing, one.generation, pods, before, self._clock())
        if status == before:
            return
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{one.namespace}/{PLURAL}/{one.name}/status"
        # The spec within is replaced whole: merged, a field that is gone would stay.
        body = [
            {"op": "test", "path": "/metadata/uid", "value": one.uid},
            {"op": "test", "path": "/metadata/resourceVersion", "value": one.version},
            {"op": "add", "path": "/status", "value": status},
        ]
        try:
            await self._kube.patch(path, body, "application/json-patch+json")
        except KubeError as error:
            if error.status not in (_CONFLICT, _GONE, 422):  # somebody else was faster
                _log.warning(
                    "status of a LinkPolicy not written",
                    extra={"policy": f"{one.namespace}/{one.name}", "error": str(error)},
                )
