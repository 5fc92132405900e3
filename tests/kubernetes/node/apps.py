"""Objects that the tests put onto the node, and small questions about them."""

import json
import time
from collections.abc import Callable
from typing import Any

from tests.kubernetes.node.cluster import NodeUnusable, RealNode
from tests.kubernetes.node.images import CURL, PYTHON

Object = dict[str, Any]
_PATIENCE_S = 120.0

SERVER = """
import http.server, os, signal, socket, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        code = 200
        if self.path == "/health":
            code = 200 if os.path.exists("/tmp/well") else 503
        body = (os.environ.get("HOSTNAME", "") + "\\n").encode()
        if self.path == "/slow":
            self.send_response(200)
            self.send_header("Content-Length", str(20 * len(body)))
            self.end_headers()
            for _ in range(20):
                self.wfile.write(body); self.wfile.flush(); time.sleep(0.25)
            return
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
open("/tmp/well", "w").close()
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    answering = set()
    def process_request(self, request, address):
        self.answering.add(request)
        super().process_request(request, address)
    def shutdown_request(self, request):
        super().shutdown_request(request)
        self.answering.discard(request)
def leave():
    deadline = time.monotonic() + 3
    while Server.answering and time.monotonic() < deadline:
        time.sleep(0.01)
    os._exit(0)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=leave).start())
Server(("::", 8080), Handler).serve_forever()
"""
"""Says its pod's name; /health fails once /tmp/well is gone; /slow takes five seconds. Told to end, it
answers what it has begun and exits: what comes after that finds nobody, and is for the mesh."""


def namespace(name: str, **labels: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def enrolled(name: str, **labels: str) -> Object:
    return namespace(name, **{"podlink.dev/inject": "enabled", **labels})


def account(space: str, name: str) -> Object:
    metadata = {"name": name, "namespace": space}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def server(**more: Any) -> Object:
    return {
        "name": "app", "image": PYTHON, "command": ["python3", "-c", SERVER],
        "ports": [{"containerPort": 8080, "name": "http"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1,
                           "failureThreshold": 1},
        **more,
    }  # fmt: skip


def client(**more: Any) -> Object:
    return {"name": "app", "image": CURL, "command": ["sleep", "86400"], **more}


def pod(space: str, name: str, container: Object, **spec: Any) -> Object:
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": space, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 10, "containers": [container], **spec},
    }  # fmt: skip


def deployment(space: str, name: str, container: Object, replicas: int = 1, **spec: Any) -> Object:
    return {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": space},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 20, "containers": [container], **spec},
            },
        },
    }  # fmt: skip


def service(space: str, name: str) -> Object:
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": space},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }  # fmt: skip


def job(space: str, name: str, container: Object) -> Object:
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": space},
        "spec": {"backoffLimit": 0, "template": {
            "spec": {"restartPolicy": "Never", "containers": [container]}}},
    }  # fmt: skip


def apply(node: RealNode, *objects: Object) -> None:
    whole = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    node.kubectl("apply", "-f", "-", text=json.dumps(whole))


def wait_ready(node: RealNode, space: str, *which: str) -> None:
    """`which`: names as `pod/name`, or a selector; else every pod of the namespace."""
    named = [] if which and which[0].startswith("pod/") else ["pod"]
    node.kubectl(
        "-n", space, "wait", "--for=condition=Ready", "--timeout=150s", *named, *(which or ("--all",)),
        timeout=170,
    )  # fmt: skip


def pods(node: RealNode, space: str, label: str) -> list[Object]:
    found = json.loads(node.kubectl("-n", space, "get", "pods", "-l", label, "-o", "json"))
    return [one for one in found["items"] if "deletionTimestamp" not in one["metadata"]]


def get(node: RealNode, space: str, name: str, url: str, *more: str) -> str:
    """What curl in that pod says: the body, or its error."""
    return node.kubectl(
        "-n", space, "exec", name, "-c", "app", "--", "curl", "-sS", "-m", "15", *more, url, check=False
    )  # fmt: skip


def until(true: Callable[[], Any], what: str, patience_s: float = _PATIENCE_S) -> Any:
    """The first true answer. Raises NodeUnusable with the last one."""
    deadline = time.monotonic() + patience_s
    answer: Any = None
    while time.monotonic() < deadline:
        if answer := true():
            return answer
        time.sleep(0.5)
    raise NodeUnusable(f"{what}: not within {patience_s:g} s")
