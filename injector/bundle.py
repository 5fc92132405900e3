"""Keeps the caBundle of our own webhook configuration equal to the trust bundle.

The object itself comes from the manifests; only its caBundle fields are written here, each guarded
by a test of the webhook's name, so that a changed order of the list is noticed and not overwritten.
"""

import asyncio
import base64
import logging

from kit.backoff import Backoff
from kit.kube import JSON_PATCH, Kube, KubeError, Object

NAME = "podlink-injector"
PATH = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{NAME}"
_RECHECK_S = 10.0
_log = logging.getLogger(__name__)


def bundle_patch(configuration: Object, bundle_pem: bytes) -> list[Object]:
    """The JSON patch that gives every webhook of `configuration` the bundle; [] if all have it."""
    wanted = base64.b64encode(bundle_pem).decode("ascii")
    patch: list[Object] = []
    for number, webhook in enumerate(configuration.get("webhooks") or ()):
        if webhook["clientConfig"].get("caBundle") != wanted:
            path = f"/webhooks/{number}"
            patch.append({"op": "test", "path": f"{path}/name", "value": webhook["name"]})
            patch.append({"op": "add", "path": f"{path}/clientConfig/caBundle", "value": wanted})
    return patch


class BundleKeeper:
    """Writes the bundle at start, when told of a change, and when somebody else undid it."""

    def __init__(self, kube: Kube, backoff: Backoff | None = None) -> None:
        self._kube, self._backoff = kube, backoff or Backoff()
        self._bundle_pem = b""
        self._changed = asyncio.Event()
        self.written = asyncio.Event()

    def use(self, bundle_pem: bytes) -> None:
        """Have this bundle written."""
        if bundle_pem != self._bundle_pem:
            self._bundle_pem = bundle_pem
            self._changed.set()

    async def run(self) -> None:
        """Keep it written until cancelled; a failure is logged and tried again."""
        await self._changed.wait()
        while True:
            self._changed.clear()
            try:
                await self.write()
            except (KubeError, KeyError, TypeError) as error:
                _log.warning("caBundle not written", extra={"error": str(error)})
                await asyncio.sleep(self._backoff.next_s())
                continue
            self._backoff.reset()
            self.written.set()
            try:
                async with asyncio.timeout(_RECHECK_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def write(self) -> None:
        """Write the bundle now. Raises KubeError, and KeyError or TypeError for an odd object."""
        patch = bundle_patch(await self._kube.get(PATH), self._bundle_pem)
        if patch:
            await self._kube.patch(PATH, patch, JSON_PATCH)
            _log.info("caBundle written", extra={"webhooks": len(patch) // 2})
