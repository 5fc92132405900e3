"""Kubernetes Events about the CA: what an operator must see even without reading logs.

The same word within REPEAT_S is said once; an event that cannot be written is only logged, for it
must never hold up what it tells of.
"""

import logging
import secrets

from certs.names import CA_SECRET
from kit.clock import Clock, Monotonic, monotonic, utcnow
from kit.kube import Kube, KubeError, Object

REPEAT_S = 600.0
_MAX_MESSAGE = 1000
_log = logging.getLogger(__name__)


class Events:
    """Tells of the Secret that holds the CA's key. `reason` is CamelCase, as Kubernetes has it."""

    def __init__(
        self, kube: Kube, namespace: str, clock: Clock = utcnow, monotonic: Monotonic = monotonic
    ) -> None:
        self._kube, self._namespace = kube, namespace
        self._clock, self._monotonic = clock, monotonic
        self._said: dict[tuple[str, str], float] = {}

    async def warn(self, reason: str, message: str) -> None:
        await self._say("Warning", reason, message)

    async def tell(self, reason: str, message: str) -> None:
        await self._say("Normal", reason, message)

    async def _say(self, kind: str, reason: str, message: str) -> None:
        now = self._monotonic()
        key = (reason, message)
        if now - self._said.get(key, -REPEAT_S) < REPEAT_S:
            return
        self._said = {k: at for k, at in self._said.items() if now - at < REPEAT_S} | {key: now}
        level = logging.WARNING if kind == "Warning" else logging.INFO
        _log.log(level, "event", extra={"reason": reason, "text": message})
        try:
            await self._kube.create(
                f"/api/v1/namespaces/{self._namespace}/events", self._event(kind, reason, message)
            )
        except KubeError as e:
            _log.warning("event not written", extra={"reason": reason, "error": str(e)})

    def _event(self, kind: str, reason: str, message: str) -> Object:
        at = self._clock().replace(microsecond=0).isoformat().replace("+00:00", "Z")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{CA_SECRET}.{secrets.token_hex(8)}",
                "namespace": self._namespace,
            },
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Secret",
                "namespace": self._namespace,
                "name": CA_SECRET,
            },
            "type": kind,
            "reason": reason,
            "message": message[:_MAX_MESSAGE],
            "source": {"component": "podlink-ca"},
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
