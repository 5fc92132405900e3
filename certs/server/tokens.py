"""Asks the API server who a token belongs to, and whether that pod still lives."""

import asyncio
from collections.abc import Collection
from typing import Any
from urllib.parse import quote

from certs.names import TOKEN_AUDIENCE
from certs.server.members import lets_any_pod
from certs.server.pods import PodSeen, read_pod
from certs.server.refusals import CallerForbidden, CannotAnswer
from certs.server.review import Caller, read_review
from kit.kube import Kube, KubeError

TIMEOUT_S = 8.0


class TokenDesk:
    """Both questions, each asked anew for every call: nothing is remembered here.

    The API server may itself remember a review for some seconds, so the token of a deleted pod can
    live a little longer than the pod; the second question closes that gap.
    """

    def __init__(self, kube: Kube, trust_domain: str, images: Collection[str] = ()) -> None:
        """`images`: what a pod's proxy may be an image of; empty: any."""
        self._kube, self._trust_domain, self._images = kube, trust_domain, images

    async def who(self, token: str) -> Caller:
        """Raises TokenRefused, or CannotAnswer if the API server does not help."""
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [TOKEN_AUDIENCE]},
        }
        answer = await self._ask("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)
        return read_review(answer, audience=TOKEN_AUDIENCE, trust_domain=self._trust_domain)

    async def pod_of(self, caller: Caller) -> PodSeen:
        """Raises CallerForbidden if the pod is gone, another or finished; or CannotAnswer."""
        namespace, name = quote(caller.identity.namespace, ""), quote(caller.pod_name, "")
        pod = await self._ask("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
        return read_pod(pod, caller, self._images)

    async def any_pod_in(self, namespace: str) -> bool:
        """Whether the namespace lets pods without a proxy have a leaf; no if we may not look. Raises
        CannotAnswer."""
        found = await self._look(f"/api/v1/namespaces/{quote(namespace, '')}")
        try:
            return found is not None and lets_any_pod(found["metadata"].get("labels") or {})
        except (AttributeError, KeyError, TypeError):
            return False

    async def _look(self, path: str) -> Any:
        """What is there; None where nothing is, or where RBAC does not let us look. Raises
        CannotAnswer."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._kube.get(path)
        except KubeError as e:
            if e.status in (403, 404):
                return None
            raise CannotAnswer("api_server", str(e)) from e
        except (TimeoutError, ValueError) as e:
            raise CannotAnswer("api_server", f"{type(e).__name__}: {e}") from e

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if method == "POST":
                    return await self._kube.create(path, body)
                return await self._kube.get(path)
        except KubeError as e:
            if method == "GET" and e.status == 404:
                raise CallerForbidden("pod_gone") from e
            raise CannotAnswer("api_server", str(e)) from e
        except (TimeoutError, ValueError) as e:
            raise CannotAnswer("api_server", f"{type(e).__name__}: {e}") from e
