"""As much of an API server as `podlink links` speaks to: a Secret, a Service and the service proxy,
which goes to a real trace store.
"""

import base64
import json
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_S
from tests.traces.process import TOKEN, StoreProcess

NAMESPACE = "/api/v1/namespaces/podlink-system"
PROXY = f"{NAMESPACE}/services/podlink-traces:24114/proxy"


class FakeApiServer:
    """Tests change its attributes to break it."""

    def __init__(self, store: StoreProcess) -> None:
        self.store = store
        self.token: str | None = TOKEN
        self.installed = True
        self.status: int | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = outer.answer(self.path, self.headers.get("X-Podlink-Token"))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def kubeconfig(self, folder: Path) -> Path:
        path = folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "clusters": [
                {
                    "name": "it",
                    "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"},
                }
            ],
            "users": [{"name": "it", "user": {"token": "t"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }
        path.write_text(json.dumps(config))
        return path

    def answer(self, path: str, token: str | None) -> tuple[int, bytes]:
        if self.status is not None:
            return _status(self.status, "Whatever")
        if path == f"{NAMESPACE}/secrets/podlink-traces-token" and self.token is not None:
            encoded = base64.b64encode(self.token.encode()).decode()
            return 200, json.dumps({"kind": "Secret", "data": {"token": encoded}}).encode()
        if path == f"{NAMESPACE}/services/podlink-traces" and self.installed:
            return 200, b"{}"
        if path.startswith(PROXY) and self.installed:
            return self._proxied(path.removeprefix(PROXY), token)
        return _status(404, "NotFound")

    def _proxied(self, path: str, token: str | None) -> tuple[int, bytes]:
        request = urllib.request.Request(self.store.url(path))
        if token is not None:
            request.add_header("X-Podlink-Token", token)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read()
        except OSError:
            return _status(503, "ServiceUnavailable")


def _status(code: int, reason: str) -> tuple[int, bytes]:
    status: dict[str, Any] = {"kind": "Status", "code": code, "reason": reason, "message": reason}
    return code, json.dumps(status).encode()
