"""Events: what happened to an object, as `kubectl describe` shows it."""

import uuid
from contextlib import suppress

from kit.clock import utcnow
from local.apiserver import resources
from local.apiserver.api import Api
from local.errors import LocalError
from local.objects import Object, namespace_of, timestamp, uid_of


def record(api: Api, about: Object, kind: str, reason: str, message: str) -> None:
    """Store an Event about an object, or count the same one up.

    One that cannot be stored is not worth an error.
    """
    now, namespace = timestamp(utcnow()), namespace_of(about) or "default"
    message = message[:1024]
    said = uid_of(about), reason, message
    with suppress(LocalError):
        for old in api.store.select(resources.EVENTS.key, namespace):
            subject = old.get("involvedObject") or {}
            if (subject.get("uid"), old.get("reason"), old.get("message")) == said:
                again = {**old, "lastTimestamp": now, "count": old.get("count", 1) + 1}
                api.store.replace(resources.EVENTS.key, again)
                return
        api.store.add(resources.EVENTS.key, _event(about, namespace, kind, reason, message, now))


def _event(about: Object, namespace: str, kind: str, reason: str, message: str, now: str) -> Object:
    name = about["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{name[:200]}.{uuid.uuid4().hex[:16]}",
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now,
        },
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "namespace": namespace_of(about),
            "name": name,
            "uid": uid_of(about),
        },
        "type": kind,
        "reason": reason,
        "message": message,
        "source": {"component": "podlink-local"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
