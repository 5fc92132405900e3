"""A pod's status out of what its containers do. Pure."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, Literal

from local.objects import Object, timestamp

Role = Literal["init", "sidecar", "app"]


@dataclass(slots=True)
class ContainerState:
    """What is known of one container. Its worker changes it, `pod_status` reads it."""

    name: str
    role: Role
    image: str
    container_id: str = ""
    waiting: tuple[str, str] | None = ("PodInitializing", "")
    """Reason and message."""
    running_since: dt.datetime | None = None
    ended: Object | None = None
    """A ContainerStateTerminated."""
    last_ended: Object | None = None
    restarts: int = 0
    started: bool = False
    ready: bool = False
    finished: bool = False
    """It ended and will not be started again."""

    def as_object(self) -> Object:
        state: Object
        if self.running_since is not None:
            state = {"running": {"startedAt": timestamp(self.running_since)}}
        elif self.ended is not None and self.waiting is None:
            state = {"terminated": self.ended}
        else:
            reason, message = self.waiting or ("ContainerCreating", "")
            state = {"waiting": {"reason": reason}}
            if message:
                state["waiting"]["message"] = message
        done = self.role == "init" and self.ended is not None and self.ended["exitCode"] == 0
        found: Object = {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "containerID": self.container_id,
            "restartCount": self.restarts,
            "ready": self.ready or (done and self.finished),
            "started": self.started,
            "state": state,
            "lastState": {"terminated": self.last_ended} if self.last_ended else {},
        }
        return found


@dataclass(slots=True)
class PodState:
    """What is known of a pod beside its containers."""

    started_at: dt.datetime
    host_ip: str
    host_ip6: str
    ips: tuple[str, ...] = ()
    initialised: bool = False
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    conditions: dict[str, tuple[bool, str]] = field(default_factory=dict)
    """Type -> (status, since), so that lastTransitionTime stays true."""


def phase(containers: list[ContainerState], *, initialised: bool) -> str:
    """Kubernetes "Pod Lifecycle", phases."""
    apps = [c for c in containers if c.role == "app"]
    if any(c.role == "init" and c.finished and _failed(c) for c in containers):
        return "Failed"
    if not initialised:
        return "Pending"
    if apps and all(c.finished for c in apps):
        return "Failed" if any(_failed(c) for c in apps) else "Succeeded"
    begun = any(c.running_since or c.ended or c.last_ended for c in apps)
    return "Running" if begun else "Pending"


def _failed(container: ContainerState) -> bool:
    return container.ended is not None and container.ended["exitCode"] != 0


def pod_status(state: PodState, containers: list[ContainerState], now: dt.datetime) -> Object:
    """The whole `status` of a pod."""
    current = phase(containers, initialised=state.initialised)
    over = current in ("Succeeded", "Failed")
    ready = not over and all(c.ready for c in containers if c.role != "init")
    ready = ready and state.initialised
    facts: dict[str, tuple[bool, str]] = {
        "PodReadyToStartContainers": (bool(state.ips), ""),
        "Initialized": (state.initialised, "" if state.initialised else "ContainersNotInitialized"),
        "Ready": (ready, "" if ready else "PodCompleted" if over else "ContainersNotReady"),
        "ContainersReady": (ready, "" if ready else "ContainersNotReady"),
        "PodScheduled": (True, ""),
    }
    conditions = []
    for kind, (holds, reason) in facts.items():
        before = state.conditions.get(kind)
        if before is None or before[0] != holds:
            state.conditions[kind] = before = (holds, timestamp(now))
        entry: dict[str, Any] = {
            "type": kind,
            "status": str(holds),
            "lastProbeTime": None,
            "lastTransitionTime": before[1],
        }
        if reason:
            entry["reason"] = reason
        conditions.append(entry)
    status: Object = {
        "phase": current,
        "conditions": conditions,
        "hostIP": state.host_ip,
        "hostIPs": [{"ip": ip} for ip in (state.host_ip, state.host_ip6)],
        "startTime": timestamp(state.started_at),
        "qosClass": "BestEffort",
        "containerStatuses": [c.as_object() for c in containers if c.role == "app"],
    }
    inits = [c.as_object() for c in containers if c.role != "app"]
    if inits:
        status["initContainerStatuses"] = inits
    if state.ips:
        status["podIP"] = state.ips[0]
        status["podIPs"] = [{"ip": ip} for ip in state.ips]
    for key in ("reason", "message"):
        if value := getattr(state, key):
            status[key] = value
    return status
