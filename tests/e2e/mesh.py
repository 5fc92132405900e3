"""What the end-to-end tests use of a running mesh: objects, commands in pods, and link records."""

import asyncio
import json
import os
import select
import threading
import time
from contextlib import suppress
from typing import Any

import yaml

from cli.traces_client import TracesClient
from local import control
from local.cluster import Cluster
from local.errors import LocalError
from local.state import StateDir
from tests.e2e.objects import MESH, Object
from tests.patience import PATIENCE_S

DEADLINE_S = PATIENCE_S
SOON_S = 8.0
"""What is answered at once is not held until a time limit of ours ends (10 s for a question to the
registry or a certificate); a slow machine takes a part of this."""
_POLL_S = 0.1

Item = dict[str, Any]


class Mesh:
    """podlink, installed on a local cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._traces = TracesClient(kubeconfig=str(cluster.kubeconfig))

    # --- objects ----------------------------------------------------------------------------

    def apply(self, *objects: Object) -> None:
        """Apply the objects and wait until the pods among them are ready."""
        self.cluster.apply(yaml.safe_dump_all(objects))
        self.cluster.wait_ready(
            *(_path(o) for o in objects if o["kind"] == "Pod"), timeout_s=2 * DEADLINE_S
        )

    def delete(self, *objects: Object) -> None:
        self.cluster.delete(yaml.safe_dump_all(objects))
        for one in objects:
            self.cluster.wait_gone(one["kind"], _path(one))

    def ip(self, pod: str, version: int = 4) -> str:
        """The pod's address of that IP version."""
        addresses = [a["ip"] for a in self.cluster.get("Pod", pod)["status"]["podIPs"]]
        return str(next(a for a in addresses if (":" in a) == (version == 6)))

    def proxy_pid(self, pod: str) -> int:
        """The pid of a pod's proxy as the node sees it."""
        return self.pid(pod, "podlink-proxy", "initContainerStatuses")

    def pid(self, pod: str, name: str = "app", kind: str = "containerStatuses") -> int:
        """The pid of a container's program: the child of the container's first process."""
        statuses = self.cluster.get("Pod", pod)["status"][kind]
        status = next(s for s in statuses if s["name"] == name)
        first = status["containerID"].removeprefix("podlink://")
        path = f"/proc/{first}/task/{first}/children"
        return int(self.node("cat", path).split()[0])

    def system_pid(self, program: str) -> str:
        """The pid, as the node sees it, of one of podlink's own programs: `registry`, `ca`..."""
        pods = self.cluster.select("Pod", "podlink-system")
        names = (p["metadata"]["name"] for p in pods)
        name = next(n for n in names if n.startswith(f"podlink-{program}"))
        return str(self.pid(f"podlink-system/{name}", program))

    # --- commands ---------------------------------------------------------------------------

    def run(self, pod: str, *argv: str, feed: bytes = b"", timeout_s: float = 60.0) -> str:
        """Run a command in a pod; it must succeed. Returns what it printed."""
        done = self.cluster.exec(pod, argv, feed=feed, timeout_s=timeout_s)
        assert done.returncode == 0, f"{pod}: {' '.join(argv)}: {done.stderr or done.stdout}"
        return done.stdout

    def node(self, *argv: str) -> str:
        """Run a command on the node; it must succeed."""
        done = self.cluster.node_exec(argv)
        assert done.returncode == 0, f"node: {' '.join(argv)}: {done.stderr or done.stdout}"
        return done.stdout

    def app(self, pod: str, *argv: object, timeout_s: float = 60.0) -> Item:
        """Run a client of tests/e2e/apps.py in a pod; returns what it says."""
        words = ("python", "-m", "tests.e2e.apps", *map(str, argv))
        answer: Item = json.loads(self.run(pod, *words, timeout_s=timeout_s))
        return answer

    def admin(self, pod: str, path: str) -> Item:
        """A page of a proxy's admin socket."""
        argv = ["python", "-m", "sidecar.admin", path]
        done = self.cluster.exec(pod, argv, container="podlink-proxy")
        assert done.returncode == 0, done.stderr
        page: Item = json.loads(done.stdout)
        return page

    def attempt(
        self, pod: str, host: str, port: int, word: str = "", patience_s: float = DEADLINE_S / 2
    ) -> Item:
        """One connection from `pod`: {"got": ..., "error": ..., "seconds": ...}.

        The error is a TimeoutError where nothing comes for `patience_s`.
        """
        return self.app(pod, "try", host, port, word, patience_s)

    def talk(self, pod: str, host: str, port: int, word: str = "hello") -> None:
        """One connection from `pod` to an echo server; it must bring `word` back."""
        since = now()
        done = self.attempt(pod, host, port, word)
        if done["got"] != word:
            links = self.eventually_links(since, 1, verdict=lambda verdict: verdict != "allowed")
            reasons = [_short(link) for link in links]
            raise AssertionError(f"{pod} to {host} port {port}: {done}; on record: {reasons}")

    def in_pod(self, pod: str, *argv: object) -> "Running":
        """Start a command in a pod and let it run."""
        namespace, _, name = pod.partition("/")
        words = [str(word) for word in argv]
        return Running(self.cluster, control.pod_request(namespace, name, words))

    def on_node(self, *argv: object) -> "Running":
        return Running(self.cluster, control.node_request([str(word) for word in argv]))

    # --- what apps saw ----------------------------------------------------------------------

    def seen(self, pod: str) -> list[str]:
        """What the server of tests/e2e/apps.py in `pod` has logged: its connections and their bytes."""
        return self.cluster.logs(pod, "app").splitlines()

    # --- link records -----------------------------------------------------------------------

    def links(self, **query: str) -> list[Item]:
        """What `podlink links` would list, newest first."""
        return asyncio.run(self._traces.links(**{"since": "3600", "limit": "1000", **query}))

    def trace(self, trace_id: str) -> list[Item]:
        """Every span of a trace, oldest first."""
        return asyncio.run(self._traces.trace(trace_id))

    def link(self, since: int, sides: int = 0, **wanted: Any) -> Item:
        """The newest link since then (Unix nanoseconds) that is as `wanted`; polls with a deadline.

        `source` and `destination` are pods, `service` what was asked for, else names of the record;
        a wanted value may be a predicate.
        `sides`: how many sides must have reported, if it matters.
        """
        deadline = time.monotonic() + DEADLINE_S
        recent: list[Item] = []
        while time.monotonic() < deadline:
            recent = [i for i in self.links() if int(i["start_unix_ns"]) >= since]
            for item in recent:
                if len(item["sides"]) >= sides and _fits(item, wanted):
                    return item
            time.sleep(_POLL_S)
        raise AssertionError(f"no link fits {wanted}; there are: {[_short(i) for i in recent]}")

    def eventually_links(self, since: int, count: int, sides: int = 0, **wanted: Any) -> list[Item]:
        """All links since then that are as `wanted`, once there are at least `count`."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            found = [
                item
                for item in self.links()
                if int(item["start_unix_ns"]) >= since
                and len(item["sides"]) >= sides
                and _fits(item, wanted)
            ]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(_POLL_S)


class Running:
    """A command that runs in a pod or on the node while the test goes on."""

    def __init__(self, cluster: Cluster, request: Item) -> None:
        stdin, self._stdin = os.pipe()
        self._stdout, stdout = os.pipe()
        self._buffer = b""
        self.status: int | None = None

        def wait() -> None:
            with suppress(LocalError):
                stdio = (stdin, stdout, stdout)
                self.status = control.execute(StateDir.of(cluster.name), request, stdio, 300.0)
            os.close(stdin)
            os.close(stdout)

        self._thread = threading.Thread(target=wait, name=" ".join(request["argv"]))
        self._thread.start()

    def line(self, timeout_s: float = DEADLINE_S) -> str:
        """The next line that it prints; "" when it has ended."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._stdout], [], [], left)[0]:
                raise AssertionError(f"no line from {self._thread.name!r} within {timeout_s:g} s")
            chunk = os.read(self._stdout, 1 << 16)
            if not chunk:
                break
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def end_input(self) -> None:
        """End its standard input: for these programs, the sign to stop."""
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def close(self, timeout_s: float = DEADLINE_S) -> None:
        """End its input and wait for its end."""
        self.end_input()
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"{self._thread.name!r} does not end"
        os.close(self._stdout)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def now() -> int:
    """Where a test begins, for the link records."""
    return time.time_ns()


def until(ready: Any, what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Poll `ready()` until it is true; fails saying `what` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not (found := ready()):
        assert time.monotonic() < deadline, f"after {timeout_s:g} s still not: {what}"
        time.sleep(0.05)
    return found


def identity(account: str, namespace: str = MESH) -> str:
    return f"spiffe://cluster.local/ns/{namespace}/sa/{account}"


def _path(one: Object) -> str:
    metadata = one["metadata"]
    return (
        f"{metadata['namespace']}/{metadata['name']}"
        if "namespace" in metadata
        else metadata["name"]
    )


_NESTED = {
    "source": ("source", "pod"),
    "source_address": ("source", "address"),
    "source_identity": ("source", "identity"),
    "destination": ("destination", "pod"),
    "destination_address": ("destination", "address"),
    "destination_port": ("destination", "port"),
    "destination_identity": ("destination", "identity"),
    "service": ("asked", "service"),
    "asked_address": ("asked", "address"),
    "asked_port": ("asked", "port"),
}


def _value(item: Item, name: str) -> Any:
    if name in _NESTED:
        outer, inner = _NESTED[name]
        return (item.get(outer) or {}).get(inner)
    return item.get(name)


def _fits(item: Item, wanted: Item) -> bool:
    return all(
        value(_value(item, name)) if callable(value) else _value(item, name) == value
        for name, value in wanted.items()
    )


def _short(item: Item) -> Item:
    names = ("source", "destination", "service", "security", "verdict", "reason", "error", "sides")
    return {name: _value(item, name) for name in names}
