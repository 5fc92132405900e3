"""Keeps the ConfigMap `podlink-bundle` in the system namespace and in every enrolled one.

Pods mount it to know the CA before they have a certificate. A namespace that leaves the mesh keeps
its ConfigMap: pods that mounted it may still run. Once in a while everything is looked at again, so
that a ConfigMap changed or deleted by hand heals.
"""

import logging
from collections.abc import Callable
from urllib.parse import quote

from certs.names import BUNDLE_CONFIG_MAP, BUNDLE_KEY, INJECT_LABEL
from kit.kube import Kube, KubeError, Object

RESYNC_S = 300.0
_ENROLLED = {"labelSelector": f"{INJECT_LABEL}=enabled"}
_log = logging.getLogger(__name__)


class BundlePublisher:
    """`bundle_pem` is asked for each time, so a rotated bundle is what gets written."""

    def __init__(self, kube: Kube, system_namespace: str, bundle_pem: Callable[[], bytes]) -> None:
        self._kube, self._system_namespace, self._bundle_pem = kube, system_namespace, bundle_pem

    async def publish_everywhere(self) -> str:
        """Write to every enrolled namespace; returns the resourceVersion to watch from.

        Raises KubeError if the list fails; a single namespace that refuses is logged and left for
        the next round.
        """
        listed = await self._kube.get("/api/v1/namespaces", **_ENROLLED)
        names = {item["metadata"]["name"] for item in listed.get("items") or ()}
        for name in sorted(names | {self._system_namespace}):
            await self._publish_or_log(name)
        return str(listed["metadata"]["resourceVersion"])

    async def follow(self, resource_version: str) -> None:
        """Watch for enrolled namespaces for one resync period. Raises KubeError (410 included)."""
        watching = self._kube.watch(
            "/api/v1/namespaces", resource_version, RESYNC_S, RESYNC_S, **_ENROLLED
        )
        async for event in watching:
            if event["type"] in ("ADDED", "MODIFIED"):
                await self._publish_or_log(event["object"]["metadata"]["name"])

    async def publish(self, namespace: str) -> bool:
        """Make the ConfigMap of `namespace` hold the bundle; says whether it had to change."""
        path = f"/api/v1/namespaces/{quote(namespace, '')}/configmaps"
        text = self._bundle_pem().decode("ascii")
        try:
            found = await self._kube.get(f"{path}/{BUNDLE_CONFIG_MAP}")
            if (found.get("data") or {}).get(BUNDLE_KEY) == text:
                return False
        except KubeError as e:
            if e.status != 404:
                raise
            try:
                await self._kube.create(path, _config_map(namespace, text))
                return True
            except KubeError as raced:
                if raced.status != 409:
                    raise
        await self._kube.patch(f"{path}/{BUNDLE_CONFIG_MAP}", {"data": {BUNDLE_KEY: text}})
        return True

    async def _publish_or_log(self, namespace: str) -> None:
        try:
            if await self.publish(namespace):
                _log.info("bundle published", extra={"namespace": namespace})
        except KubeError as e:
            # A namespace on its way out answers 403 or 404; the others must not wait for it.
            _log.warning("bundle not published", extra={"namespace": namespace, "error": str(e)})


def _config_map(namespace: str, text: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": BUNDLE_CONFIG_MAP,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "podlink"},
        },
        "data": {BUNDLE_KEY: text},
    }
