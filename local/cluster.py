"""The Python API of a cluster on one machine, for tests, the demo and the CLI. Synchronous.

with Cluster.up(name="test", manifests=["shop.yaml"]) as cluster:
    cluster.wait_ready("shop/web")
    done = cluster.exec("shop/web", ["curl", "-s", "http://api.shop"])
    assert done.returncode == 0
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from kit.clock import monotonic
from kit.settings import Settings
from local import control, readiness
from local.client import Client
from local.errors import ApiError, BadManifest, NotRunning, StartFailed, TimedOut
from local.manifests import Manifest, in_order, read
from local.node import tools
from local.objects import Object, condition, dig, name_of, namespace_of, path_of
from local.state import DEFAULT_NAME, StateDir
from local.supervisor import RELEASE, SOURCE_ROOT, Plan, launch_argument

_START_S = 30.0
_END_S = 20.0
_STARTING_S = 20.0
_POLL_S = 0.05
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Cluster:
    """A running cluster: `up` starts one, `find` is one that runs already."""

    def __init__(self, state: StateDir, facts: Mapping[str, Any], tie: int = -1) -> None:
        self._state, self._tie = state, tie
        self.name = state.name
        self.facts = dict(facts)
        self.single_uid = bool(facts["single_uid"])
        self.kubeconfig = state.kubeconfig
        self.client = Client(state.kubeconfig)
        self._supervisor: subprocess.Popen[bytes] | None = None

    @classmethod
    def up(
        cls,
        name: str = DEFAULT_NAME,
        manifests: Iterable[str | Path] = (),
        *,
        publish: Mapping[int, str] | None = None,
        tied: bool = True,
    ) -> Self:
        """Start a cluster and apply `manifests` (paths, directories or YAML text).

        `publish` maps ports of the host's 127.0.0.1 to "namespace/service:port". `tied`: it ends
        with this process, whatever happens to it; otherwise `release` is called at the end. Raises
        LocalError. However this call fails, by an interrupt as well, nothing then keeps running.
        """
        wanted = [m for source in manifests for m in read(source)]
        tools.require(Settings().text("PATH", os.defpath))
        state = StateDir.of(name)
        report_read, report_write = os.pipe()
        # Until it is released, the end of this process is the end of the cluster, at any moment.
        tie_read, tie_write = os.pipe()
        ports = {str(port): target for port, target in (publish or {}).items()}
        supervisor = None
        try:
            supervisor = _launch(Plan(name, report_write, tie_read, ports))
            cluster = cls(state, _wait_for_report(report_read, supervisor), tie_write)
            cluster._supervisor = supervisor
            cluster.apply_read(wanted)
            if not tied:
                cluster.release()
        except BaseException:
            with suppress(OSError):
                os.close(tie_write)
            if supervisor is not None:
                supervisor.wait(_END_S)
            raise
        return cluster

    @classmethod
    def find(cls, name: str = DEFAULT_NAME) -> Self:
        """A cluster that runs already. Raises NotRunning."""
        state = StateDir.of(name)
        return cls(state, state.facts())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def release(self) -> None:
        """Let the cluster outlive this process. Raises NotRunning if it has ended."""
        if self._tie >= 0:
            try:
                os.write(self._tie, RELEASE)
            except BrokenPipeError as e:
                raise NotRunning(f"the cluster {self.name!r} went away") from e
            os.close(self._tie)
            self._tie = -1

    def down(self, timeout_s: float = _END_S) -> None:
        """End the cluster and wait until nothing of it is left. May be called again."""
        with suppress(ProcessLookupError):
            if self._state.is_running():
                os.kill(int(self.facts["supervisor_pid"]), signal.SIGTERM)
        if self._supervisor is not None:
            self._supervisor.wait(timeout_s)
        deadline = monotonic() + timeout_s
        while self._state.is_running():
            if monotonic() > deadline:
                raise TimedOut(f"cluster {self.name!r} did not end within {timeout_s:g} s")
            time.sleep(_POLL_S)
        self._state.remove()
        if self._tie >= 0:
            os.close(self._tie)
            self._tie = -1

    def wait(self) -> int:
        """Wait until the cluster has ended, for the one who started it; returns its status."""
        assert self._supervisor is not None
        return self._supervisor.wait()

    def apply(self, source: str | Path) -> list[Object]:
        """Create or change objects as `kubectl apply` does; paths, directories or YAML text."""
        return self.apply_read(read(source))

    def apply_read(self, manifests: Iterable[Manifest]) -> list[Object]:
        """The same with manifests that were read before."""
        return [self._apply_one(m) for m in in_order(manifests)]

    def _apply_one(self, manifest: Manifest) -> Object:
        obj = manifest.object
        metadata = obj["metadata"]
        namespace = metadata.get("namespace") or "default"
        try:
            collection = self.client.path(obj["apiVersion"], obj["kind"], namespace)
            name = metadata.get("name")
            body = _with_last_applied(obj)
            try:
                return self.client.call("POST", collection, body)
            except ApiError as e:
                if e.reason != "AlreadyExists":
                    raise
            patch = "application/merge-patch+json"
            return self.client.call("PATCH", f"{collection}/{name}", body, patch)
        except ApiError as e:
            raise BadManifest(f"{manifest.source}: {e}") from e

    def delete(self, source: str | Path, *, missing_ok: bool = True) -> list[Object]:
        """Delete the objects of a manifest, the last first; returns those that were there."""
        gone = []
        for manifest in reversed(in_order(read(source))):
            obj = manifest.object
            metadata = obj["metadata"]
            namespace = metadata.get("namespace") or "default"
            if "name" not in metadata:
                raise BadManifest(f"{manifest.source}: metadata.name is missing")
            path = self.client.path(obj["apiVersion"], obj["kind"], namespace, metadata["name"])
            try:
                self.client.call("DELETE", path)
                gone.append(obj)
            except ApiError as e:
                if e.code != 404 or not missing_ok:
                    raise
        return gone

    def get(self, kind: str, path: str, api_version: str = "v1") -> Object:
        """One object: `get("Pod", "shop/web")`, `get("Node", "podlink-node")`. Raises ApiError."""
        namespace, _, name = path.rpartition("/")
        return self.client.call("GET", self.client.path(api_version, kind, namespace, name))

    def select(
        self, kind: str, namespace: str, api_version: str = "v1", **query: str
    ) -> list[Object]:
        """The objects of a kind in a namespace; `labelSelector`, `fieldSelector` as in the API."""
        answer = self.client.call("GET", self.client.path(api_version, kind, namespace), **query)
        found: list[Object] = answer["items"]
        return found

    def wait_ready(self, *pods: str, timeout_s: float = 30.0) -> None:
        """Wait until each "namespace/pod" is Ready; raises TimedOut saying what it lacks."""
        deadline = monotonic() + timeout_s
        for path in pods:
            while not (found := self._ready(path))[0]:
                if monotonic() > deadline:
                    raise TimedOut(f"pod {path} is not ready after {timeout_s:g} s: {found[1]}")
                time.sleep(_POLL_S)

    def _ready(self, path: str) -> tuple[bool, str]:
        try:
            pod = self.get("Pod", path)
        except ApiError as e:
            return False, str(e)
        return condition(pod, "Ready"), readiness.why_not_ready(pod)

    def wait_applied(
        self,
        applied: Sequence[Object],
        *,
        timeout_s: float = 120.0,
        tell: Callable[[list[str], str], None] = lambda _ready, _lack: None,
    ) -> None:
        """Wait until what was applied can be used: pods and workloads are ready, Services lead to
        them. Other kinds need no waiting.

        `tell` is given the names of what has become ready since it was called last, and what the
        first of the others lacks ("" at the end). Raises TimedOut, at once where waiting is in vain.
        """
        deadline = monotonic() + timeout_s
        # Services last: while pods are replaced, those that leave are still their endpoints.
        for kinds in (("Pod", *readiness.WORKLOADS), ("Service",)):
            left = [obj for kind in kinds for obj in applied if obj["kind"] == kind]
            while left:
                left = self._still_open(left, deadline, timeout_s, tell)
                if left:
                    time.sleep(_POLL_S * 4)

    def _still_open(
        self,
        left: Sequence[Object],
        deadline: float,
        timeout_s: float,
        tell: Callable[[list[str], str], None],
    ) -> list[Object]:
        found = [(obj, readiness.called(obj), self._lack(obj)) for obj in left]
        lacking = [(name, lack) for _, name, lack in found if lack is not None]
        first = f"{lacking[0][0]}: {lacking[0][1].words}" if lacking else ""
        tell([name for _, name, lack in found if lack is None], first)
        over = monotonic() > deadline
        for name, lack in lacking:
            if over or lack.final:
                late = "" if lack.final else f" after {timeout_s:g} s"
                raise TimedOut(f"{name} is not ready{late}: {lack.words}")
        return [obj for obj, _, lack in found if lack is not None]

    def _lack(self, applied: Object) -> readiness.Lack | None:
        """What an applied object lacks now; nothing, if it is there no more."""
        kind, namespace = applied["kind"], namespace_of(applied)
        try:
            obj = self.get(kind, path_of(applied), applied["apiVersion"])
        except ApiError as e:
            if e.code != 404:
                raise
            return readiness.Lack("it was deleted meanwhile", final=True)
        if kind == "Pod":
            return readiness.lack_of_pod(obj)
        pods = self.select("Pod", namespace)
        if kind != "Service":
            lack = readiness.lack_of_workload(obj, pods)
            return lack and self._with_event(obj, lack)
        slices = self.select("EndpointSlice", namespace, "discovery.k8s.io/v1")
        return readiness.lack_of_service(obj, pods, slices) or self._lack_of_rules(obj, slices)

    def _lack_of_rules(self, service: Object, slices: list[Object]) -> readiness.Lack | None:
        """The node's own rules follow an EndpointSlice a moment later."""
        for ip, port in readiness.addresses(service, slices):
            table = "ip6" if ":" in ip else "ip"
            key = f"{{ {ip} . tcp . {port} }}"
            argv = ["nft", "get", "element", table, "podlink_services", "services", key]
            if self.node_exec(argv).returncode != 0:
                return readiness.Lack("the node has no rule for it yet")
        return None

    def _with_event(self, owner: Object, lack: readiness.Lack) -> readiness.Lack:
        """With the reason why pods could not be made, where that was the last thing heard of it."""
        for event in reversed(self.select("Event", namespace_of(owner))):
            about = event.get("involvedObject") or {}
            made_by = str(about.get("name", "")).startswith(name_of(owner))
            if event.get("reason") == "FailedCreate" and made_by:
                return readiness.Lack(f"{lack.words}; {event['message']}", lack.final)
        return lack

    def wait_gone(self, kind: str, path: str, timeout_s: float = 30.0) -> None:
        """Wait until there is no such object any more."""
        deadline = monotonic() + timeout_s
        while monotonic() < deadline:
            try:
                self.get(kind, path)
            except ApiError as e:
                if e.code == 404:
                    return
                raise
            time.sleep(_POLL_S)
        raise TimedOut(f"{kind} {path} is still there after {timeout_s:g} s")

    def exec(
        self,
        pod: str,
        argv: Sequence[str],
        *,
        container: str = "",
        feed: bytes = b"",
        timeout_s: float = 60.0,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in "namespace/pod"; its output is text. Raises TimedOut, ApiError."""
        namespace, _, name = pod.rpartition("/")
        request = control.pod_request(namespace or "default", name, argv, container)
        return self._run(request, argv, feed, timeout_s)

    def node_exec(
        self, argv: Sequence[str], *, feed: bytes = b"", timeout_s: float = 60.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in the node's own namespaces, as its root: nft, tcpdump..."""
        return self._run(control.node_request(argv), argv, feed, timeout_s)

    def _run(
        self, request: dict[str, Any], argv: Sequence[str], feed: bytes, timeout_s: float
    ) -> "subprocess.CompletedProcess[str]":
        # Files, not pipes: nobody has to read while the command writes.
        with (
            tempfile.TemporaryFile() as stdin,
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
        ):
            stdin.write(feed)
            stdin.seek(0)
            stdio = (stdin.fileno(), stdout.fileno(), stderr.fileno())
            code = control.execute(self._state, request, stdio, timeout_s)
            for output in (stdout, stderr):
                output.seek(0)
            return subprocess.CompletedProcess(
                list(argv),
                code,
                stdout.read().decode("utf-8", "replace"),
                stderr.read().decode("utf-8", "replace"),
            )

    def exec_attached(self, pod: str, argv: Sequence[str], container: str = "") -> int:
        """Run a command in a pod on this process's own stdin, stdout and stderr.

        A pod that is still starting is waited for. Raises ApiError if it does not come that far.
        """
        namespace, _, name = pod.rpartition("/")
        namespace = namespace or "default"
        request = control.pod_request(namespace, name, argv, container)
        deadline = monotonic() + _STARTING_S
        while True:
            try:
                return control.execute(self._state, request, (0, 1, 2))
            except ApiError as e:
                if e.reason != "NotRunning" or monotonic() > deadline:
                    raise
                if dig(self.get("Pod", f"{namespace}/{name}"), "status", "phase") != "Pending":
                    raise
            time.sleep(_POLL_S)

    def node_exec_attached(self, argv: Sequence[str]) -> int:
        return control.execute(self._state, control.node_request(argv), (0, 1, 2))

    def logs(self, pod: str, container: str = "", *, previous: bool = False) -> str:
        """What a container has written so far."""
        query = {"container": container, "previous": str(previous).lower()}
        return self.client.raw("GET", _log_path(pod), **query).decode("utf-8", "replace")

    def follow_logs(self, pod: str, container: str = "") -> Iterator[bytes]:
        """What a container writes, as it comes, until it has ended."""
        query = {"container": container, "follow": "true"}
        return self.client.stream("GET", _log_path(pod), **query)


def _log_path(pod: str) -> str:
    namespace, _, name = pod.rpartition("/")
    return f"/api/v1/namespaces/{namespace or 'default'}/pods/{name}/log"


def _with_last_applied(obj: Object) -> Object:
    """Marked as kubectl marks it, so that `kubectl apply` can take over without a warning."""
    metadata = {k: v for k, v in obj["metadata"].items() if k != "annotations"}
    annotations = dict(obj["metadata"].get("annotations") or {})
    annotations.pop(_LAST_APPLIED, None)
    plain = {**obj, "metadata": {"annotations": annotations, **metadata}}
    marked = {**annotations, _LAST_APPLIED: json.dumps(plain) + "\n"}
    return {**obj, "metadata": {**metadata, "annotations": marked}}


def _launch(plan: Plan) -> "subprocess.Popen[bytes]":
    passed = [plan.report_fd, plan.tied_fd]
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "local.supervisor", launch_argument(plan)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=passed,
            start_new_session=True,
            cwd="/",
            env=_environment(),
        )
    finally:
        for fd in passed:
            os.close(fd)


def _environment() -> dict[str, str]:
    """What the supervisor needs of this process's environment, and no more."""
    settings = Settings()
    names = ("PATH", "HOME", "XDG_RUNTIME_DIR", "TMPDIR")
    kept = {name: value for name in names if (value := settings.optional(name)) is not None}
    return {**kept, "PYTHONPATH": str(SOURCE_ROOT), "LANG": "C.UTF-8"}


def _wait_for_report(fd: int, supervisor: "subprocess.Popen[bytes]") -> dict[str, Any]:
    deadline, data = monotonic() + _START_S, b""
    try:
        while not data.endswith(b"\n"):
            left_s = deadline - monotonic()
            if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
                supervisor.terminate()
                supervisor.wait()
                raise StartFailed(f"the cluster was not ready within {_START_S:g} s")
            chunk = os.read(fd, 65536)
            if not chunk:
                raise StartFailed("the supervisor ended before the cluster was ready")
            data += chunk
    finally:
        os.close(fd)
    answer = json.loads(data)
    if "error" in answer:
        supervisor.wait()
        raise _as_raised(answer)
    ready: dict[str, Any] = answer["ready"]
    return ready


def _as_raised(answer: Mapping[str, str]) -> Exception:
    from local import errors

    for kind in (errors.AlreadyRunning, errors.Unusable, errors.BadManifest):
        if answer.get("reason") == kind.reason:
            return kind(answer["error"])
    return StartFailed(answer["error"])


__all__ = ["Cluster", "NotRunning"]
