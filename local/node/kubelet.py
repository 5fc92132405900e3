"""Starts a worker for every pod, ends it when the pod is deleted, and shows the pods' logs."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kit.tasks import spawn, stop
from local.apiserver import resources
from local.apiserver.http import Write
from local.apiserver.store import Event
from local.errors import ApiError
from local.node.podcontainer import Container
from local.node.podworker import Node, PodWorker
from local.node.spawner import Process
from local.objects import Object, is_terminating, namespace_of, uid_of

_FOLLOW_EVERY_S = 0.1
_CHUNK_BYTES = 65536
_LARGEST_LOG_BYTES = 16 << 20
_TRIM_EVERY_S = 5.0


class Kubelet:
    """The pods of the node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._workers: dict[str, PodWorker] = {}
        self._trimmer: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._node.api.store.listen(self._hear)
        self._trimmer = spawn(self._trim_logs(), name="log trimmer")

    async def stop(self) -> None:
        await stop(self._trimmer)

    def _hear(self, event: Event) -> None:
        if event.key in (resources.CONFIG_MAPS.key, resources.SECRETS.key):
            for each in self._workers.values():
                if namespace_of(each.pod) == namespace_of(event.object):
                    each.sources_changed()
        if event.key != resources.PODS.key:
            return
        pod, uid = event.object, uid_of(event.object)
        worker = self._workers.get(uid)
        if event.type == "DELETED":
            self._workers.pop(uid, None)
        elif worker is None and event.type == "ADDED":
            worker = self._workers[uid] = PodWorker(self._node, pod)
        elif worker is not None:
            worker.update(pod)
        if worker is not None and is_terminating(pod):
            worker.terminate(float(pod["metadata"].get("deletionGracePeriodSeconds", 0)))

    def container(self, namespace: str, name: str, container: str = "") -> Container:
        """A running container, the first app of its pod by default. Raises ApiError NotFound."""
        for worker in self._workers.values():
            metadata = worker.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, name):
                wanted = container or worker.pod["spec"]["containers"][0]["name"]
                for found in worker.containers:
                    if found.spec["name"] == wanted:
                        return found
                raise ApiError(404, "NotFound", f"container {wanted!r} is not in pod {name!r}")
        raise ApiError(
            404,
            "NotFound",
            f"no pod {name!r} runs in namespace {namespace!r}; name a pod as NAMESPACE/POD",
        )

    async def start_command(
        self, pod: Object, container: str, argv: Sequence[str], stdio: tuple[int, int, int]
    ) -> Process:
        """Start a command in a running container. Raises ApiError or SpawnFailed."""
        found = self.container(namespace_of(pod), pod["metadata"]["name"], container)
        if found.process is None:
            raise ApiError(409, "NotRunning", f"container {found.spec['name']!r} is not running")
        return await self._node.spawner.run_inside(
            found.command(list(argv)), stdio, found.process.pid
        )

    async def stream(
        self, pod: Object, container: str, options: dict[str, str], write: Write
    ) -> None:
        """Write a container's log as `kubectl logs` asks: previous, tailLines, follow."""
        worker = self._workers.get(uid_of(pod))
        if worker is None:
            return
        suffix = ".previous" if options.get("previous") == "true" else ".log"
        path = worker.logs / f"{container}{suffix}"
        follow = options.get("follow") == "true"
        at = _tail_offset(path, options.get("tailLines", ""))
        while True:
            running = self._is_running(worker, container)
            at = await _copy_from(path, at, write)
            if not follow or not running:
                return
            await asyncio.sleep(_FOLLOW_EVERY_S)

    def _is_running(self, worker: PodWorker, container: str) -> bool:
        if uid_of(worker.pod) not in self._workers:
            return False
        return any(c.spec["name"] == container and not c.state.finished for c in worker.containers)

    async def _trim_logs(self) -> None:
        """Logs lie in memory: one that has grown too large begins anew."""
        while True:
            await asyncio.sleep(_TRIM_EVERY_S)
            for worker in self._workers.values():
                for log in worker.logs.glob("*.log") if worker.logs.exists() else ():
                    with suppress(FileNotFoundError):
                        if log.stat().st_size > _LARGEST_LOG_BYTES:
                            os.truncate(log, 0)


async def _copy_from(path: Path, at: int, write: Write) -> int:
    """Write what the file holds from `at` on; returns where it ended."""
    try:
        with path.open("rb") as f:
            if at > os.fstat(f.fileno()).st_size:
                at = 0
            f.seek(at)
            while chunk := f.read(_CHUNK_BYTES):
                await write(chunk)
                at += len(chunk)
    except FileNotFoundError:
        pass
    return at


def _tail_offset(path: Path, lines: str) -> int:
    if not lines.isdigit() or not path.exists():
        return 0
    data = path.read_bytes()
    kept = data.splitlines(keepends=True)[-int(lines) :] if int(lines) else []
    return len(data) - sum(len(line) for line in kept)
