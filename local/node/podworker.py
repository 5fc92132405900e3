"""The life of one pod on the node: sandbox, volumes, init containers in order, containers, the end.

(Kubernetes "Pod Lifecycle", "Init Containers" and "Sidecar Containers".)
"""

import asyncio
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kit.clock import monotonic, utcnow
from kit.tasks import spawn, stop
from local.apiserver import resources
from local.apiserver.api import Api
from local.errors import LocalError
from local.node import dns
from local.node.environment import ConfigMissing, PodFacts
from local.node.network import NODE_IP, NODE_IP6, Address, Network
from local.node.podcontainer import Container, PodContext
from local.node.podstatus import PodState, Role, pod_status
from local.node.rootfs import Mount
from local.node.spawner import Process, Spawner
from local.node.volumes import Sources, Volumes
from local.objects import Object, dig, path_of, uid_of

_SHORTEST_SIDECAR_GRACE_S = 2.0
_REFRESH_EVERY_S = 10.0
_WAIT_FOR_SOURCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Node:
    """What every pod of the node shares."""

    api: Api
    spawner: Spawner
    network: Network
    root: Path
    needed: tuple[str, ...]
    single_uid: bool
    api_host: str
    api_port: int
    event: Callable[[Object, str, str, str], None]
    """Record an Event about an object: type, reason, message."""


class PodWorker:
    """Runs one pod until `terminate`. `update` tells it of new labels and annotations."""

    def __init__(self, node: Node, pod: Object) -> None:
        self._node, self.pod = node, pod
        self._root = node.root / "pods" / uid_of(pod)
        self._state = PodState(utcnow(), NODE_IP, NODE_IP6)
        self.containers: list[Container] = []
        self._supervisors: list[asyncio.Task[int]] = []
        self._pause: Process | None = None
        self._address: Address | None = None
        self._volumes: Volumes | None = None
        self._sources_changed = asyncio.Event()
        self._life = spawn(self._live(), name=f"pod {path_of(pod)}")
        self._ending: asyncio.Task[None] | None = None

    @property
    def logs(self) -> Path:
        return self._root / "logs"

    def update(self, pod: Object) -> None:
        metadata_changed = pod["metadata"] != self.pod["metadata"]
        self.pod = pod
        if metadata_changed:
            for container in self.containers:
                container.follow_pod(pod)
            self._sources_changed.set()

    def sources_changed(self) -> None:
        """A ConfigMap or Secret of this namespace changed."""
        self._sources_changed.set()

    def terminate(self, grace_s: float) -> None:
        """End the pod gracefully and take its object away. Calling it again changes nothing."""
        if self._ending is None:
            self._ending = spawn(self._end(grace_s), name=f"end of {path_of(self.pod)}")

    async def _live(self) -> None:
        try:
            await self._make_sandbox()
            context = await self._make_context()
            refresh = spawn(self._refresh(), name=f"volumes of {path_of(self.pod)}")
            try:
                await self._run_containers(context)
            finally:
                await stop(refresh)
        except LocalError as e:
            self._state.reason, self._state.message = e.reason, str(e)
            self._node.event(self.pod, "Warning", "FailedCreatePodSandBox", str(e))
            self._publish()

    async def _make_sandbox(self) -> None:
        spec, metadata = self.pod["spec"], self.pod["metadata"]
        hostname = str(spec.get("hostname") or metadata["name"])[:63]
        on_host = bool(spec.get("hostNetwork"))
        self._pause = await self._node.spawner.pause(hostname, on_host)
        if on_host:
            self._state.ips = (NODE_IP, NODE_IP6)
        else:
            self._address = await self._node.network.attach(self._pause.pid)
            self._state.ips = (self._address.ip, self._address.ip6)
        for name in ("logs", "scratch", "etc"):
            (self._root / name).mkdir(parents=True)

    async def _make_context(self) -> PodContext:
        assert self._pause is not None
        node, pod = self._node, self.pod
        facts = PodFacts(self._state.ips, NODE_IP, node.api_host, node.api_port)
        store = node.api.store
        self._volumes = Volumes(pod, self._root / "volumes", facts, store, node.api.tokens)
        context = PodContext(
            pod=pod,
            facts=facts,
            pause_pid=self._pause.pid,
            volumes=self._volumes,
            sources=Sources(store, pod["metadata"]["namespace"]),
            spawner=node.spawner,
            logs=self.logs,
            scratch=self._root / "scratch",
            files=self._write_etc(),
            needed=node.needed,
            single_uid=node.single_uid,
            changed=self._publish,
            event=lambda *said: node.event(self.pod, *said),
        )
        self.containers = [
            Container(spec, _role(spec), context)
            for spec in pod["spec"].get("initContainers") or ()
        ]
        self.containers += [Container(spec, "app", context) for spec in pod["spec"]["containers"]]
        self._publish()
        await self._prepare_volumes()
        return context

    async def _prepare_volumes(self) -> None:
        assert self._volumes is not None
        told = ""
        while True:
            self._sources_changed.clear()
            try:
                self._volumes.prepare()
                return
            except ConfigMissing as e:
                if str(e) != told:
                    told = str(e)
                    self._node.event(self.pod, "Warning", "FailedMount", told)
                    for container in self.containers:
                        container.state.waiting = ("ContainerCreating", told)
                    self._publish()
            with suppress(TimeoutError):
                async with asyncio.timeout(_WAIT_FOR_SOURCE_S):
                    await self._sources_changed.wait()

    async def _refresh(self) -> None:
        """Keep written volumes up to date: at once when a source changes, and tokens in time."""
        assert self._volumes is not None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_EVERY_S):
                    await self._sources_changed.wait()
            self._sources_changed.clear()
            self._volumes.refresh(self.pod)

    async def _run_containers(self, context: PodContext) -> None:
        for container in self.containers:
            if container.role == "sidecar":
                self._supervise(container)
                await container.started.wait()
            elif container.role == "init":
                code = await container.run()
                if code != 0:
                    self._publish()
                    await self._end_sidecars(_SHORTEST_SIDECAR_GRACE_S)
                    return
        self._state.initialised = True
        apps = [c for c in self.containers if c.role == "app"]
        running = [self._supervise(c) for c in apps]
        self._publish()
        await asyncio.gather(*running)
        # Every app has ended for good: the pod is complete, its sidecars are not needed any more.
        await self._end_sidecars(float(self.pod["spec"]["terminationGracePeriodSeconds"]))
        self._publish()
        self._drop_sandbox()

    def _supervise(self, container: Container) -> "asyncio.Task[int]":
        task = spawn(container.run(), name=f"{path_of(self.pod)}/{container.spec['name']}")
        self._supervisors.append(task)
        return task

    async def _end(self, grace_s: float) -> None:
        """SIGTERM to the apps, then to the sidecars from the last; SIGKILL when grace is over."""
        deadline = monotonic() + grace_s
        first = [c for c in self.containers if c.role != "sidecar"]
        await asyncio.gather(*(c.stop(grace_s) for c in first))
        left_s = deadline - monotonic()
        await self._end_sidecars(left_s if grace_s <= 0 else max(_SHORTEST_SIDECAR_GRACE_S, left_s))
        await stop(self._life, *self._supervisors)
        self._drop_sandbox()
        shutil.rmtree(self._root, ignore_errors=True)
        self._node.api.finalise(resources.PODS, self.pod)

    async def _end_sidecars(self, grace_s: float) -> None:
        deadline = monotonic() + grace_s
        for container in reversed([c for c in self.containers if c.role == "sidecar"]):
            await container.stop(max(0.0, deadline - monotonic()))

    def _drop_sandbox(self) -> None:
        if self._pause is not None:
            self._pause.send(signal.SIGKILL)
            self._pause = None
        if self._address is not None:
            self._node.network.release(self._address)
            self._address = None

    def _publish(self) -> None:
        states = [c.state for c in self.containers]
        status = pod_status(self._state, states, utcnow())
        self._node.api.set_status(resources.PODS, self.pod, status)

    def _write_etc(self) -> tuple[Mount, ...]:
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        hostname = spec.get("hostname") or metadata["name"]
        names = [hostname]
        if subdomain := spec.get("subdomain"):
            names.insert(0, f"{hostname}.{subdomain}.{metadata['namespace']}.svc.{dns.DOMAIN}")
        hosts = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
        hosts += [f"{ip}\t{' '.join(names)}" for ip in self._state.ips]
        for alias in spec.get("hostAliases") or ():
            hosts.append(f"{alias['ip']}\t{' '.join(alias.get('hostnames') or ())}")
        written: list[Mount] = []
        texts = {
            "hosts": "\n".join(hosts) + "\n",
            "hostname": f"{hostname}\n",
            "resolv.conf": dns.resolv_conf(metadata["namespace"]),
        }
        for name, text in texts.items():
            path = self._root / "etc" / name
            path.write_text(text)
            path.chmod(0o644)
            written.append({"source": str(path), "target": f"/etc/{name}", "read_only": True})
        return tuple(written)


def _role(spec: Object) -> Role:
    return "sidecar" if dig(spec, "restartPolicy") == "Always" else "init"
