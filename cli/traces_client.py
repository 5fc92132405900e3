"""Asks the trace store, through the API server's service proxy, as the operator's kubeconfig may.

No port-forward and no address of the store: whoever may read the token's Secret and use the proxy
may review links, and RBAC says who that is.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from cli.cluster import ClusterUnavailable, open_kube, unreachable
from kit.contract import REVIEW_PORT, SYSTEM_NAMESPACE
from kit.kube import Kube, KubeError

SERVICE = "podlink-traces"
SECRET = "podlink-traces-token"  # noqa: S105 - the name of a Secret
TOKEN_HEADER = "X-Podlink-Token"  # noqa: S105 - the name of a header
Item = dict[str, Any]


class TracesUnavailable(Exception):
    """The store cannot be asked; one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class TracesClient:
    """Which cluster to ask: as kubectl would choose, unless told."""

    kubeconfig: str | None = None
    context: str | None = None
    system_namespace: str = SYSTEM_NAMESPACE

    async def links(self, **query: str) -> list[Item]:
        """Links, newest first; the parameters are those of GET /api/links, none may be empty."""
        answer = await self._ask("/api/links", query)
        return [item for item in answer.get("links", ()) if isinstance(item, dict)]

    async def traffic(self, **query: str) -> list[Item]:
        """Links added up by who, to whom and how; the parameters are those of GET /api/traffic."""
        answer = await self._ask("/api/traffic", query)
        return [item for item in answer.get("traffic", ()) if isinstance(item, dict)]

    async def trace(self, trace_id: str) -> list[Item]:
        """The spans of one trace."""
        answer = await self._ask(f"/api/traces/{trace_id}", {})
        return [item for item in answer.get("spans", ()) if isinstance(item, dict)]

    async def view(self, name: str, **query: str) -> Item:
        """A view of the review page as JSON, with all its rows."""
        return await self._ask(f"/{name}.json", query)

    async def report(self, cluster: Item, since: str) -> Item:
        """A signed report of this long, with what was read of the cluster in it."""
        async with await self._connect() as kube:
            headers = {TOKEN_HEADER: await self.token(kube), "Content-Type": "application/json"}
            path = (
                f"/api/v1/namespaces/{self.system_namespace}/services/"
                f"{SERVICE}:{REVIEW_PORT}/proxy/api/report?since={since}"
            )
            try:
                status, _, body = await kube.forward(
                    "POST", path, headers, json.dumps({"cluster": cluster}).encode()
                )
            except KubeError as e:
                raise self._explained(e) from e
        try:
            answer = json.loads(body)
        except ValueError as e:
            raise TracesUnavailable(f"{SERVICE} gave an answer that is not JSON") from e
        if status != 200 or not isinstance(answer, dict):
            said = answer if isinstance(answer, dict) else {}
            if said.get("reason") == "no_certificate":
                raise TracesUnavailable(f"{SERVICE} cannot sign: {said.get('message')}")
            raise self._explained(
                KubeError(status, str(said.get("reason")), str(said.get("message")))
            )
        return answer

    async def _ask(self, path: str, query: dict[str, str]) -> Item:
        async with await self._connect() as kube:
            token = await self.token(kube)
            proxied = (
                f"/api/v1/namespaces/{self.system_namespace}/services/"
                f"{SERVICE}:{REVIEW_PORT}/proxy{path}"
            )
            try:
                body = await kube.request_raw("GET", proxied, {TOKEN_HEADER: token}, **query)
            except KubeError as e:
                raise self._explained(e) from e
        try:
            answer = json.loads(body)
        except ValueError as e:
            raise TracesUnavailable(f"{SERVICE} gave an answer that is not JSON") from e
        if not isinstance(answer, dict):
            raise TracesUnavailable(f"{SERVICE} gave an answer of an unknown form")
        return answer

    async def _connect(self) -> Kube:
        try:
            return await open_kube(self.kubeconfig, self.context)
        except ClusterUnavailable as e:
            raise TracesUnavailable(str(e)) from e

    async def token(self, kube: Kube) -> str:
        """The token of the review page. Raises TracesUnavailable."""
        in_namespace = f"/api/v1/namespaces/{self.system_namespace}"
        try:
            secret = await kube.get(f"{in_namespace}/secrets/{SECRET}")
        except KubeError as e:
            if e.status == 404 and not await self._is_installed(kube):
                raise TracesUnavailable(
                    f"the trace store is not installed: namespace {self.system_namespace} "
                    f"has no Service {SERVICE}"
                ) from e
            if e.status == 404:
                raise TracesUnavailable(
                    f"Secret {self.system_namespace}/{SECRET} is missing; install podlink again"
                ) from e
            raise self._explained(e) from e
        try:
            return base64.b64decode(secret["data"]["token"], validate=True).decode("ascii").strip()
        except (KeyError, TypeError, binascii.Error, UnicodeDecodeError) as e:
            raise TracesUnavailable(
                f"Secret {self.system_namespace}/{SECRET} has no usable key `token`"
            ) from e

    async def _is_installed(self, kube: Kube) -> bool:
        try:
            await kube.get(f"/api/v1/namespaces/{self.system_namespace}/services/{SERVICE}")
        except KubeError as e:
            return e.status != 404
        return True

    def _explained(self, error: KubeError) -> TracesUnavailable:
        namespace = self.system_namespace
        if error.status == 0:
            return TracesUnavailable(unreachable(error))
        if error.reason == "token_refused":
            return TracesUnavailable(
                f"{SERVICE} refused the token of Secret {namespace}/{SECRET}; "
                f"if it was just changed, try again in a minute"
            )
        if error.reason in ("query_malformed", "query_too_slow", "trace_unknown"):
            return TracesUnavailable(str(error).partition(": ")[2])
        if error.status == 401:
            return TracesUnavailable("the API server does not know you; renew your credentials")
        if error.status == 403:
            return TracesUnavailable(
                f"you may not ask the trace store; it takes `get` on Secret {SECRET} and on "
                f"services/proxy in namespace {namespace} ({error})"
            )
        return TracesUnavailable(
            f"{SERVICE} does not answer ({error}); see kubectl -n {namespace} get pods"
        )
