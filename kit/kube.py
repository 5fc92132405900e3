"""One small client for the Kubernetes API: raw JSON in and out, by path.

It rests on the official client's transport (`kubernetes.aio`), which knows kubeconfig files,
in-cluster tokens and their renewal. The typed models are left alone: they cost a second and 160 MB
for 2,000 pods (docs/performance.md).
"""

import asyncio
import errno
import os
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import ApiClient, Configuration
from yarl import URL

from kit.json_text import loads
from kit.settings import Settings

Object = dict[str, Any]
"""One Kubernetes object or status as the API sends it."""

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
_CONNECT_TIMEOUT_S = 5.0
_TLS_END_S = 0.1
SILENCE_S = 90.0
"""A watch without a word for so long is opened anew: an API server sends each a bookmark about once
a minute, so the silence is more likely a dead path than a quiet cluster."""
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
)
"""A watch only reads, so nothing but probes tells it that the machine at the other end has gone: they
do so within 25 s."""
_EVERYWHERE = re.compile(
    r"(?P<base>/api/v1|/apis/discovery\.k8s\.io/v1|/apis/podlink\.dev/[a-z0-9]+)"
    r"/(?P<plural>pods|services|configmaps|events|endpointslices|linkpolicies)"
)
_UNREACHABLE = "Unreachable"
_MAX_MESSAGE = 256  # bodies of errors may hold what the caller sent, secrets included


class KubeError(Exception):
    """The API server answered with an error, or could not be reached (status 0).

    `status` is the HTTP code, `reason` the API's CamelCase word ("NotFound", "Conflict"...), and
    `retry_after_s` what the server asked for with a 429 or 503.
    """

    def __init__(
        self, status: int, reason: str, message: str, retry_after_s: float | None = None
    ) -> None:
        told = message[:_MAX_MESSAGE]
        super().__init__(told if reason == _UNREACHABLE else f"{status} {reason}: {told}")
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s


def unreachable(host: str, error: Exception) -> KubeError:
    """`error` kept a request from the API server at `host`: which, in plain words. Pure."""
    cause: BaseException = getattr(error, "os_error", error)
    if isinstance(error, aiohttp.ClientConnectorDNSError | socket.gaierror):
        why = "its name does not resolve"
    elif isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = f"its certificate is not trusted: {error.certificate_error}"
    elif isinstance(error, TimeoutError):
        why = "no answer in time"
    elif isinstance(cause, ssl.SSLError):
        why = f"no TLS with it: {cause.reason or cause}"
    elif isinstance(cause, OSError) and cause.errno and cause.errno in errno.errorcode:
        why = os.strerror(cause.errno).lower()
    else:
        why = f"{type(error).__name__}: {error}"
    return KubeError(0, _UNREACHABLE, f"cannot reach the API server at {host}: {why}")


def within(
    namespace: str, method: str, path: str, query: Mapping[str, str]
) -> tuple[str, Mapping[str, str]]:
    """The same question of one namespace, for lists and watches of all; "" leaves it as it is. Pure."""
    if not namespace or method != "GET":
        return path, query
    if path == "/api/v1/namespaces":
        return path, {**query, "fieldSelector": f"metadata.name={namespace}"}
    found = _EVERYWHERE.fullmatch(path)
    if found is None:
        return path, query
    return f"{found['base']}/namespaces/{namespace}/{found['plural']}", query


class Kube:
    """A connection to one API server. Close it with `await kube.close()`."""

    def __init__(self, configuration: Configuration, only_namespace: str = "") -> None:
        """With `only_namespace`, lists and watches of all namespaces are asked of this one: a podlink
        that serves a single namespace has no right to more."""
        # Python 3.13 takes certificates by the letter of RFC 5280 (VERIFY_X509_STRICT), which the API
        # servers of several distributions do not meet: no Authority Key Identifier, no key usage. Who
        # signed, for which name and until when is verified all the same.
        configuration.disable_strict_ssl_verification = True
        self._configuration, self._only = configuration, only_namespace
        self._api = ApiClient(configuration)
        self._had_websocket = False

    @classmethod
    def in_cluster(cls) -> Self:
        """As the pod's own service account; raises ConfigException outside a pod."""
        configuration = Configuration()
        kubernetes_config.load_incluster_config(client_configuration=configuration)
        return cls(configuration, Settings().optional("PODLINK_ONLY_NAMESPACE") or "")

    @classmethod
    async def from_kubeconfig(cls, path: str | None = None, context: str | None = None) -> Self:
        """As kubectl would: `path`, else $KUBECONFIG, else ~/.kube/config."""
        configuration = Configuration()
        await kubernetes_config.load_kube_config(
            config_file=path, context=context, client_configuration=configuration
        )
        return cls(configuration)

    async def close(self) -> None:
        await self._api.close()
        if self._had_websocket:
            # aiohttp lets its TLS end in the background: a loop that stops now would leave it open.
            await asyncio.sleep(_TLS_END_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, path: str, **query: str) -> Object:
        return await self._call("GET", path, query)

    async def create(self, path: str, body: Mapping[str, Any]) -> Object:
        return await self._call("POST", path, body=body)

    async def replace(self, path: str, body: Mapping[str, Any]) -> Object:
        return await self._call("PUT", path, body=body)

    async def patch(self, path: str, body: Any, content_type: str = MERGE_PATCH) -> Object:
        return await self._call("PATCH", path, body=body, content_type=content_type)

    async def delete(self, path: str, **query: str) -> Object:
        return await self._call("DELETE", path, query)

    async def watch(
        self,
        path: str,
        resource_version: str,
        timeout_s: float = 300.0,
        silence_s: float = SILENCE_S,
        **query: str,
    ) -> AsyncGenerator[Object, None]:
        """Yield watch events ({"type": ..., "object": ...}) until the server ends the stream, or
        says nothing at all for `silence_s`.

        An ERROR event is raised as the KubeError that its status describes, so 410 has one form.
        """
        asked = {
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(timeout_s)),
            **query,
        }
        async with self._request(
            "GET", path, asked, timeout_s=timeout_s + 30, silence_s=silence_s
        ) as response:
            _probe(response)
            lines = response.content
            while True:
                try:
                    line = await lines.readline()
                except aiohttp.SocketTimeoutError:
                    return
                if not line:
                    return
                yield _event(line)

    async def request_raw(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **query: str
    ) -> bytes:
        """The body of the answer as it came; for subresources such as logs and service proxies."""
        async with self._request(method, path, query, headers=headers) as response:
            return bytes(await response.read())

    async def forward(
        self, method: str, path_and_query: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Whatever the API server answers (status, headers, body), errors and redirects included; for
        handing a browser's request on to a service proxy. Raises KubeError if it cannot be reached."""
        sent = dict(headers)
        rest = self._api.rest_client
        try:
            await self._authorise(sent)
            if rest.pool_manager is None:
                rest.pool_manager = rest._create_pool_manager()
            # Already encoded, as the browser sent it: decoding and encoding anew might change it.
            url = URL(self._configuration.host + path_and_query, encoded=True)
            async with rest.pool_manager.request(
                method, url, headers=sent, data=body, allow_redirects=False, timeout=_timeout(60.0)
            ) as response:
                return response.status, response.headers, await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as e:
            raise unreachable(self._configuration.host, e) from e

    @asynccontextmanager
    async def websocket(
        self, path: str, protocols: Sequence[str], query: Sequence[tuple[str, str]] = ()
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket to a subresource such as exec; raises KubeError if the upgrade is refused."""
        headers: dict[str, str] = {}
        url = self._configuration.host + path + ("?" + urlencode(query) if query else "")
        rest = self._api.rest_client
        self._had_websocket = True
        try:
            await self._authorise(headers)
            if rest.pool_manager is None:
                rest.pool_manager = rest._create_pool_manager()
            async with rest.pool_manager.ws_connect(
                "ws" + url.removeprefix("http"), headers=headers, protocols=protocols
            ) as socket:
                yield socket
        except aiohttp.WSServerHandshakeError as e:
            raise KubeError(e.status, "NoUpgrade", e.message) from e
        except (aiohttp.ClientError, OSError, TimeoutError) as e:
            raise unreachable(self._configuration.host, e) from e

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Object:
        async with self._request(method, path, query, body, content_type) as response:
            answer = loads(await response.read())
            if not isinstance(answer, dict):
                raise ValueError("no JSON object")
            return answer

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
        silence_s: float | None = None,
    ) -> AsyncIterator[Any]:
        sent = {"Accept": "application/json", "Content-Type": content_type, **(headers or {})}
        path, query = within(self._only, method, path, query or {})
        url = self._configuration.host + path + ("?" + urlencode(query) if query else "")
        response = None
        try:
            await self._authorise(sent)
            answer = await self._api.rest_client.request(
                method,
                url,
                headers=sent,
                body=body,
                _request_timeout=_timeout(timeout_s, silence_s),
            )
            response = answer.response
            if response.status >= 400:
                raise _error(response.status, await response.read(), response.headers)
            yield response
        except (aiohttp.ClientError, OSError, TimeoutError) as e:
            raise unreachable(self._configuration.host, e) from e
        except ValueError as e:  # no JSON, or a line longer than the client's buffer
            raise KubeError(0, "Malformed", f"{type(e).__name__}: {e}") from e
        finally:
            if response is not None:
                response.release()

    async def _authorise(self, headers: dict[str, str]) -> None:
        auth = (await self._configuration.auth_settings()).get("BearerToken")
        if auth is not None and auth["value"] is not None:
            headers[auth["key"]] = auth["value"]


def _timeout(total_s: float, silence_s: float | None = None) -> aiohttp.ClientTimeout:
    """A whole request may take `total_s`; a server that does not even accept is given up sooner."""
    return aiohttp.ClientTimeout(
        total=total_s, sock_connect=min(total_s, _CONNECT_TIMEOUT_S), sock_read=silence_s
    )


def _probe(response: Any) -> None:
    """Let the kernel ask now and then whether the other end of a long answer is still there."""
    connection = response.connection
    sock = connection.transport.get_extra_info("socket") if connection is not None else None
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        for level, option, value in _KEEPALIVE:
            sock.setsockopt(level, option, value)


def _event(line: bytes) -> Object:
    event = loads(line)
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        raise ValueError("no watch event")
    if event.get("type") == "ERROR":
        status = event["object"]
        raise KubeError(
            _code(status.get("code")),
            str(status.get("reason", "Unknown")),
            str(status.get("message", "")),
        )
    return event


def _code(raw: object) -> int:
    return raw if isinstance(raw, int) else 500


def _error(status: int, body: bytes, headers: Mapping[str, str]) -> KubeError:
    after = headers.get("Retry-After", "")
    retry_after_s = float(after) if after.isdigit() else None
    try:
        said = loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):  # a proxy or load balancer in between answered for the server
        return KubeError(status, "Unknown", body.decode("utf-8", "replace"), retry_after_s)
    reason, message = str(said.get("reason", "")), str(said.get("message", ""))
    return KubeError(status, reason, message, retry_after_s)
