"""One container of a pod: started, probed, restarted, stopped."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kit.clock import monotonic, utcnow
from kit.tasks import spawn, stop
from local.node import environment, probes
from local.node.container import Command, ContainerSpec
from local.node.environment import ConfigMissing, PodFacts
from local.node.podstatus import ContainerState, Role
from local.node.rootfs import Mount
from local.node.spawner import Process, Spawner, SpawnFailed
from local.node.volumes import Sources, Volumes
from local.objects import Object, dig, timestamp

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 30.0
_CALM_AFTER_S = 60.0
"""A container that ran this long starts its back-off anew."""
_CONFIG_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class PodContext:
    """What the containers of one pod share."""

    pod: Object
    facts: PodFacts
    pause_pid: int
    volumes: Volumes
    sources: Sources
    spawner: Spawner
    logs: Path
    scratch: Path
    files: tuple[Mount, ...]
    """/etc/hosts and /etc/resolv.conf."""
    needed: tuple[str, ...]
    """Paths of the host that every container sees: interpreter and packages."""
    single_uid: bool
    changed: Callable[[], None]
    event: Callable[[str, str, str], None]
    """Record a Kubernetes Event: type, reason, message."""


class Container:
    """Runs one container for as long as its pod lives. `state` says how it is."""

    def __init__(self, spec: Object, role: Role, context: PodContext) -> None:
        self.spec, self.role, self._context = spec, role, context
        self.state = ContainerState(spec["name"], role, spec.get("image", ""))
        self.started = asyncio.Event()
        self.process: Process | None = None
        self._stopping = False
        self._probes: list[asyncio.Task[None]] = []
        self._startup: asyncio.Task[None] | None = None

    @property
    def log(self) -> Path:
        return self._context.logs / f"{self.spec['name']}.log"

    async def run(self) -> int:
        """Start it, and again as its restart policy says; returns its last exit status."""
        backoff_s, policy = _FIRST_BACKOFF_S, self._policy()
        while True:
            since = monotonic()
            code = await self._run_once()
            if monotonic() - since > _CALM_AFTER_S:
                backoff_s = _FIRST_BACKOFF_S
            again = policy == "Always" or (policy == "OnFailure" and code != 0)
            if self._stopping or not again:
                self.state.finished = True
                self._context.changed()
                return code
            self.state.last_ended = self.state.ended
            words = f"back-off {backoff_s:g}s restarting container {self.spec['name']}"
            self.state.waiting = ("CrashLoopBackOff", words)
            self._context.event("Warning", "BackOff", words)
            self._context.changed()
            await asyncio.sleep(backoff_s)
            self.state.restarts += 1
            backoff_s = min(_LONGEST_BACKOFF_S, backoff_s * 2)

    def _policy(self) -> str:
        if self.role == "sidecar":
            return "Always"
        policy = str(self._context.pod["spec"]["restartPolicy"])
        if self.role == "init" and policy == "Always":
            return "OnFailure"
        return policy

    async def _run_once(self) -> int:
        state = self.state
        try:
            self.process = process = await self._start()
        except SpawnFailed as e:
            self._context.event("Warning", "Failed", f"cannot start {self.spec['name']}: {e}")
            state.waiting, state.ended = None, _terminated(128, "StartError", str(e))
            self._context.changed()
            return 128
        began = utcnow()
        state.waiting, state.running_since, state.ended = None, began, None
        state.container_id = f"podlink://{process.pid}"
        self._begin_probes()
        self._context.changed()
        try:
            code = await process.ended
        finally:
            await stop(*self._probes)
            self._probes = []
        state.running_since, state.started, state.ready = None, False, False
        self.process = None
        reason = "Completed" if code == 0 else "Error"
        state.ended = {**_terminated(code, reason), "startedAt": timestamp(began)}
        self._context.changed()
        return code

    async def _start(self) -> Process:
        while True:
            try:
                spec = self._described()
                break
            except ConfigMissing as e:
                if self.state.waiting != (e.reason, str(e)):
                    self.state.waiting = (e.reason, str(e))
                    self._context.event("Warning", "Failed", str(e))
                    self._context.changed()
                await asyncio.sleep(_CONFIG_RETRY_S)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".previous"))
        out = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return await self._context.spawner.run(spec, (null, out, out))
        finally:
            os.close(out)
            os.close(null)

    def command(self, argv: list[str]) -> Command:
        """A command as this container would run it: its user, environment and directory."""
        context, spec = self._context, self.spec
        env = environment.build(context.pod, spec, context.facts, context.sources.text)
        return {
            "argv": environment.interpreted(argv),
            "env": {"PYTHONPATH": str(environment.SOURCE_ROOT), **env},
            "cwd": spec.get("workingDir") or "/",
            "credentials": environment.credentials(
                context.pod, spec, single_uid=context.single_uid
            ),
        }

    def _described(self) -> ContainerSpec:
        context, spec = self._context, self.spec
        env = environment.build(context.pod, spec, context.facts, context.sources.text)
        mounts: list[Mount] = [*context.files]
        for mount in spec.get("volumeMounts") or ():
            mounts.append(
                {
                    "source": context.volumes.source(mount),
                    "target": mount["mountPath"],
                    "read_only": bool(mount.get("readOnly")),
                }
            )
        return {
            "argv": environment.argv(spec, env),
            "env": env,
            "cwd": spec.get("workingDir") or "/",
            "credentials": environment.credentials(
                context.pod, spec, single_uid=context.single_uid
            ),
            "pause_pid": context.pause_pid,
            "staging": str(context.scratch),
            "needed": list(context.needed),
            "mounts": mounts,
            "read_only_root": bool(dig(spec, "securityContext", "readOnlyRootFilesystem")),
        }

    def _begin_probes(self) -> None:
        self.started.clear()
        if "startupProbe" in self.spec:
            probe = probes.Probe.read(self.spec["startupProbe"])
            self._startup = self._watch(probe, self._heard_startup)
        else:
            self._now_started()

    def _heard_startup(self, good: bool) -> None:
        if not good:
            self._kill("Startup probe failed")
        elif not self.state.started:
            assert self._startup is not None
            self._startup.cancel()  # it is over with its first success
            self._now_started()

    def _now_started(self) -> None:
        self.state.started = True
        if "readinessProbe" in self.spec:
            self._watch(probes.Probe.read(self.spec["readinessProbe"]), self._heard_readiness)
        else:
            self.state.ready = self.role != "init"
        if "livenessProbe" in self.spec:
            self._watch(probes.Probe.read(self.spec["livenessProbe"]), self._heard_liveness)
        self.started.set()
        self._context.changed()

    def _heard_readiness(self, good: bool) -> None:
        if self.state.ready != good:
            self.state.ready = good
            self._context.changed()

    def _heard_liveness(self, good: bool) -> None:
        if not good:
            self._kill("Liveness probe failed")

    def _kill(self, why: str) -> None:
        process = self.process
        if process is not None and not self._stopping:
            self._context.event("Warning", "Unhealthy", f"{why}; {self.spec['name']} is restarted")
            spawn(_end(process, 10.0), name=f"restart {self.spec['name']}")

    def _watch(self, probe: probes.Probe, heard: Callable[[bool], None]) -> asyncio.Task[None]:
        ports = {p["name"]: p["containerPort"] for p in self.spec.get("ports") or () if "name" in p}
        where = probes.Where(self._context.facts.ips[0], ports, self.exec_quietly)
        task = spawn(probes.watch(probe, where, heard), name=f"probe {self.spec['name']}")
        self._probes.append(task)
        return task

    async def exec_quietly(self, argv: list[str], timeout_s: float) -> int:
        """Run a command in the container, its output thrown away; returns its exit status."""
        if self.process is None:
            return 1
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            process = await self._context.spawner.run_inside(
                self.command(argv), (null, null, null), self.process.pid
            )
        except (SpawnFailed, ConfigMissing):
            return 126
        finally:
            os.close(null)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(process.ended)
        except TimeoutError:
            process.send(signal.SIGKILL)
            return 124

    async def stop(self, grace_s: float) -> None:
        """Run preStop, send SIGTERM, wait up to `grace_s` seconds in all, then kill."""
        self._stopping = True
        deadline = monotonic() + grace_s
        process = self.process
        if process is None:
            return
        await self._pre_stop(grace_s)
        await _end(process, max(0.0, deadline - monotonic()))

    async def _pre_stop(self, grace_s: float) -> None:
        hook = dig(self.spec, "lifecycle", "preStop")
        if not hook or grace_s <= 0:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                if "sleep" in hook:
                    await asyncio.sleep(float(hook["sleep"]["seconds"]))
                else:
                    where = probes.Where(self._context.facts.ips[0], {}, self.exec_quietly)
                    await probes.succeeds(hook, grace_s, where)

    def follow_pod(self, pod: Object) -> None:
        """Take note of new labels and annotations, for what starts from now on."""
        self._context = replace(self._context, pod=pod)


async def _end(process: Process, grace_s: float) -> None:
    if grace_s > 0:
        process.send(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await asyncio.shield(process.ended)
    process.send(signal.SIGKILL)
    await asyncio.shield(process.ended)


def _terminated(code: int, reason: str, message: str = "") -> Object:
    stamp = timestamp(utcnow())
    found: Object = {"exitCode": code, "reason": reason, "startedAt": stamp, "finishedAt": stamp}
    if message:
        found["message"] = message
    if code > 128 and reason == "Error":
        found["signal"] = code - 128
    return found
