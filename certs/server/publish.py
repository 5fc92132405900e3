"""Keeps the ConfigMap `podlink-bundle` in the system namespace and wherever a pod may need it: in
every enrolled namespace, and where a pod is enrolled by its own label.

Pods mount it to know the CA before they have a certificate. A namespace that leaves the mesh keeps
its ConfigMap: pods that mounted it may still run. Once in a while everything is looked at again, so
that a ConfigMap changed or deleted by hand heals.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from certs.names import BUNDLE_CONFIG_MAP, BUNDLE_KEY, INJECT_LABEL
from kit.backoff import Backoff
from kit.kube import Kube, KubeError, Object
from kit.tasks import spawn, stop

RESYNC_S = 300.0
BETWEEN_WATCHES_S = 1.0
"""So that a server which ends every watch at once makes no hot loop."""
_ENROLLED = {"labelSelector": f"{INJECT_LABEL}=enabled"}
_NAMESPACES, _PODS = "/api/v1/namespaces", "/api/v1/pods"
_NAMES_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_log = logging.getLogger(__name__)


class BundlePublisher:
    """`bundle_pem` is asked for each time, so a rotated bundle is what gets written."""

    def __init__(self, kube: Kube, system_namespace: str, bundle_pem: Callable[[], bytes]) -> None:
        self._kube, self._system_namespace, self._bundle_pem = kube, system_namespace, bundle_pem
        self._wanted = {system_namespace}
        self._written: dict[str, str] = {}
        """Namespace -> the text that its ConfigMap held when we last looked."""
        self._changed = asyncio.Event()
        self._pods_version = ""
        self._sees_pods = True
        """Whether RBAC lets us; an install for single namespaces does not."""

    def bundle_changed(self) -> None:
        """Write everywhere now."""
        self._changed.set()

    def unpublished(self) -> tuple[str, ...]:
        """The namespaces whose ConfigMap does not hold the present bundle, as far as we know."""
        text = self._text()
        return tuple(sorted(n for n in self._wanted if self._written.get(n) != text))

    async def publish_everywhere(self) -> str:
        """Write to every namespace that needs it; returns the resourceVersion of namespaces to watch
        from.

        Raises KubeError if a list fails; a single namespace that refuses is logged and left for the
        next round.
        """
        self._changed.clear()  # before the first write: a change in the midst begins another round
        listed = await self._kube.get(_NAMESPACES, **_ENROLLED)
        names = {item["metadata"]["name"] for item in listed.get("items") or ()}
        self._wanted = names | await self._labelled() | {self._system_namespace}
        self._written = {n: text for n, text in self._written.items() if n in self._wanted}
        for name in sorted(self._wanted):
            await self._publish_or_log(name)
        return str(listed["metadata"]["resourceVersion"])

    async def follow(self, resource_version: str) -> None:
        """Watch for enrolled namespaces and pods until the bundle changes, for one resync period at
        most. Raises KubeError (410 included)."""
        watching = [
            spawn(self._follow(_NAMESPACES, resource_version), name="watch enrolled namespaces"),
            spawn(_wait(self._changed), name="wait for another bundle"),
        ]
        if self._sees_pods:
            watching.append(
                spawn(self._follow(_PODS, self._pods_version), name="watch enrolled pods")
            )
        try:
            done, _ = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await stop(*watching)

    async def publish(self, namespace: str) -> bool:
        """Make the ConfigMap of `namespace` hold the bundle; says whether it had to change."""
        path = f"/api/v1/namespaces/{quote(namespace, '')}/configmaps"
        text = self._text()
        changed = await self._write(path, namespace, text)
        self._written[namespace] = text
        return changed

    async def _write(self, path: str, namespace: str, text: str) -> bool:
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

    async def _follow(self, path: str, resource_version: str) -> None:
        events = self._kube.watch(path, resource_version, RESYNC_S, RESYNC_S, **_ENROLLED)
        async with aclosing(events):
            async for event in events:
                if event["type"] not in ("ADDED", "MODIFIED"):
                    continue
                metadata = event["object"]["metadata"]
                name = metadata["namespace"] if path == _PODS else metadata["name"]
                if path == _NAMESPACES or name not in self._wanted:
                    self._wanted.add(name)
                    await self._publish_or_log(name)

    async def _labelled(self) -> set[str]:
        try:
            found = await self._with_own_label()
        except KubeError as e:
            if e.status != 403:
                raise
            if self._sees_pods:
                _log.warning("pods enrolled by their own label are not looked for: not allowed")
            self._sees_pods = False
            return set()
        self._sees_pods = True
        return found

    async def _with_own_label(self) -> set[str]:
        """The namespaces of pods that carry the label themselves; names only, whatever their specs."""
        found: set[str] = set()
        query = {**_ENROLLED, "limit": "500"}
        while True:
            raw = await self._kube.request_raw("GET", _PODS, {"Accept": _NAMES_ONLY}, **query)
            page: Any = json.loads(raw)
            found.update(item["metadata"]["namespace"] for item in page.get("items") or ())
            metadata = page.get("metadata") or {}
            if not (more := metadata.get("continue")):
                self._pods_version = str(metadata.get("resourceVersion", ""))
                return found
            query["continue"] = more

    async def _publish_or_log(self, namespace: str) -> None:
        try:
            if await self.publish(namespace):
                _log.info("bundle published", extra={"namespace": namespace})
        except KubeError as e:
            # A namespace on its way out answers 403 or 404; the others must not wait for it.
            _log.warning("bundle not published", extra={"namespace": namespace, "error": str(e)})

    def _text(self) -> str:
        return self._bundle_pem().decode("ascii")


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def keep_published(publisher: BundlePublisher) -> None:
    """List, write, watch, again and again; an error makes it start over with a pause."""
    backoff = Backoff(first_s=0.5, longest_s=60.0)
    while True:
        try:
            resource_version = await publisher.publish_everywhere()
            backoff.reset()
            await publisher.follow(resource_version)
            wait_s = 0.0 if publisher.unpublished() else BETWEEN_WATCHES_S
        except KubeError as e:
            wait_s = max(e.retry_after_s or 0.0, backoff.next_s())
            if e.status != 410:  # expired is how a long watch normally ends
                _log.warning("watching namespaces failed", extra={"error": str(e)})
        except (KeyError, TypeError, ValueError) as e:
            wait_s = backoff.next_s()
            error = f"{type(e).__name__}: {e}"
            _log.warning("the API server's answer is unreadable", extra={"error": error})
        await asyncio.sleep(max(wait_s, 0.05))


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
