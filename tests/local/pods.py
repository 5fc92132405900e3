"""Manifests that the tests of `local` build their pods from."""

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

SAY_NAME = textwrap.dedent(
    """
    import http.server, os, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            body = f"{os.environ['HOSTNAME']} {self.client_address[0]}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *a): pass
    http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
    """
)
"""A web server that answers with its pod's name and the address it was called from."""


def pod(
    name: str,
    *containers: Mapping[str, Any],
    namespace: str = "default",
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> str:
    """A pod as YAML text; by default it sleeps."""
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {})},
        "spec": {"containers": list(containers) or [sleeper()], **spec},
    }
    return yaml.safe_dump(body) + "---\n"


def sleeper(**more: Any) -> dict[str, Any]:
    return {"name": "app", "command": ["sleep", "3600"], **more}


def web(port: int = 80, **more: Any) -> dict[str, Any]:
    return {
        "name": "app",
        "command": ["python", "-c", SAY_NAME, str(port)],
        "ports": [{"name": "http", "containerPort": port}],
        "readinessProbe": {"httpGet": {"path": "/", "port": port}, "periodSeconds": 1},
        **more,
    }


def service(name: str, app: str, *, namespace: str = "default", **spec: Any) -> str:
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"app": app},
            "ports": [{"port": 80, "targetPort": "http"}],
            **spec,
        },
    }
    return yaml.safe_dump(body) + "---\n"


def namespace(name: str) -> str:
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n"
