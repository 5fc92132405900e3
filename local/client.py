"""A small synchronous client for the API server stand-in; for the CLI and for tests."""

import base64
import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

from local.errors import ApiError, NotRunning
from local.objects import Object

_TIMEOUT_S = 60.0
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


class Client:
    """One API server, as the admin of its kubeconfig. Every call is a connection of its own."""

    def __init__(self, kubeconfig: Path) -> None:
        try:
            config = yaml.safe_load(kubeconfig.read_text())
        except OSError as e:
            raise NotRunning(f"cannot read {kubeconfig}: {e.strerror}") from e
        cluster = config["clusters"][0]["cluster"]
        self._token = config["users"][0]["user"]["token"]
        self._where = urlsplit(cluster["server"])
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._context = ssl.create_default_context(cadata=authority)
        self._kinds: dict[tuple[str, str], Object] = {}

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        **query: str,
    ) -> Object:
        """One request; returns the JSON of its answer. Raises ApiError or NotRunning."""
        data = self.raw(method, path, body, content_type, **query)
        found: Object = json.loads(data)
        return found

    def raw(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        **query: str,
    ) -> bytes:
        """One request; returns the bytes of its answer."""
        return b"".join(self.stream(method, path, body, content_type, **query))

    def stream(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        **query: str,
    ) -> Iterator[bytes]:
        """One request; yields its answer as it comes."""
        assert self._where.hostname is not None
        connection = http.client.HTTPSConnection(
            self._where.hostname,
            self._where.port,
            context=self._context,
            timeout=None if "follow" in query or "watch" in query else _TIMEOUT_S,
        )
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": content_type,
            "Accept": accept,
        }
        target = path + ("?" + urlencode(query) if query else "")
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, target, data, headers)
            answer = connection.getresponse()
            if answer.status >= 400:
                raise _error(answer.status, answer.read())
            while chunk := answer.read1(65536):
                yield chunk
        except OSError as e:
            raise NotRunning(f"cannot reach the API server: {e}") from e
        finally:
            connection.close()

    def table(self, path: str) -> Object:
        """The objects at a path as the server would have them printed."""
        found: Object = json.loads(b"".join(self.stream("GET", path, accept=_TABLE)))
        return found

    def resource(self, api_version: str, kind: str) -> Object | None:
        """The discovery entry of a kind (`name`, `namespaced`), or None if it is not known."""
        if (api_version, kind) not in self._kinds:
            root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
            try:
                listed = self.call("GET", root)["resources"]
            except ApiError:
                return None
            for entry in listed:
                if "/" not in entry["name"]:
                    self._kinds[api_version, entry["kind"]] = {**entry, "root": root}
        return self._kinds.get((api_version, kind))

    def path(self, api_version: str, kind: str, namespace: str, name: str = "") -> str:
        """The path of an object or a collection. Raises ApiError NotFound for an unknown kind."""
        found = self.resource(api_version, kind)
        if found is None:
            raise ApiError(404, "NotFound", f"no kind {kind!r} in {api_version!r}")
        scope = f"/namespaces/{namespace}" if found["namespaced"] else ""
        tail = f"/{name}" if name else ""
        return f"{found['root']}{scope}/{found['name']}{tail}"


def _error(status: int, body: bytes) -> ApiError:
    try:
        said = json.loads(body)
        return ApiError(status, str(said.get("reason", "")), str(said.get("message", "")))
    except ValueError:
        return ApiError(status, "Unknown", body[:200].decode("utf-8", "replace"))
