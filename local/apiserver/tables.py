"""Lists as kubectl prints them: columns are chosen by the server (meta.k8s.io/v1 Table). Pure."""

import datetime as dt
from collections.abc import Callable

from local.apiserver import resources
from local.apiserver.resources import Resource
from local.objects import Object, dig, name_of
from policy.linkpolicy import GROUP, PLURAL

Cells = Callable[[Object, dt.datetime], list[object]]

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def age(obj: Object, now: dt.datetime) -> str:
    """How long ago it was made, in the two coarsest words of kubectl."""
    made = obj["metadata"].get("creationTimestamp")
    if not made:
        return "<unknown>"
    seconds = int((now - dt.datetime.fromisoformat(made)).total_seconds())
    if seconds < 2 * _MINUTE:
        return f"{max(0, seconds)}s"
    if seconds < 3 * _HOUR:
        return f"{seconds // _MINUTE}m"
    return f"{seconds // _HOUR}h" if seconds < 2 * _DAY else f"{seconds // _DAY}d"


def _pod(obj: Object, now: dt.datetime) -> list[object]:
    statuses = dig(obj, "status", "containerStatuses", default=[])
    sidecars = [
        s
        for s, spec in zip(
            dig(obj, "status", "initContainerStatuses", default=[]),
            dig(obj, "spec", "initContainers", default=[]),
            strict=False,
        )
        if spec.get("restartPolicy") == "Always"
    ]
    counted = [*sidecars, *statuses]
    total = len(obj["spec"]["containers"]) + sum(
        c.get("restartPolicy") == "Always" for c in dig(obj, "spec", "initContainers", default=[])
    )
    ready = sum(bool(s.get("ready")) for s in counted)
    restarts = sum(int(s.get("restartCount", 0)) for s in counted)
    return [
        name_of(obj),
        f"{ready}/{total}",
        _pod_word(obj),
        restarts,
        age(obj, now),
        dig(obj, "status", "podIP", default="<none>"),
        dig(obj, "spec", "nodeName", default="<none>"),
    ]


def _pod_word(obj: Object) -> str:
    if "deletionTimestamp" in obj["metadata"]:
        return "Terminating"
    for index, status in enumerate(dig(obj, "status", "initContainerStatuses", default=[])):
        waiting = dig(status, "state", "waiting", "reason")
        if waiting and waiting != "PodInitializing":
            return f"Init:{waiting}"
        if dig(status, "state", "terminated", "exitCode", default=0) != 0:
            return "Init:Error"
        if dig(status, "state", "running") and not status.get("started", True):
            return f"Init:{index}/{len(obj['spec']['initContainers'])}"
    for status in dig(obj, "status", "containerStatuses", default=[]):
        for state in ("waiting", "terminated"):
            if reason := dig(status, "state", state, "reason"):
                return str(reason)
    return str(dig(obj, "status", "phase", default="Unknown"))


def _service(obj: Object, now: dt.datetime) -> list[object]:
    ports = ",".join(
        f"{p['port']}/{p.get('protocol', 'TCP')}" for p in dig(obj, "spec", "ports", default=[])
    )
    return [
        name_of(obj),
        dig(obj, "spec", "type", default="ClusterIP"),
        dig(obj, "spec", "clusterIP", default="<none>"),
        "<none>",
        ports or "<none>",
        age(obj, now),
    ]


def _deployment(obj: Object, now: dt.datetime) -> list[object]:
    status = obj.get("status", {})
    ready, wanted = status.get("readyReplicas", 0), obj["spec"].get("replicas", 1)
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    return [name_of(obj), f"{ready}/{wanted}", updated, available, age(obj, now)]


def _replica_set(obj: Object, now: dt.datetime) -> list[object]:
    status = obj.get("status", {})
    wanted = obj["spec"].get("replicas", 1)
    return [
        name_of(obj),
        wanted,
        status.get("replicas", 0),
        status.get("readyReplicas", 0),
        age(obj, now),
    ]


def _stateful_set(obj: Object, now: dt.datetime) -> list[object]:
    ready, wanted = dig(obj, "status", "readyReplicas", default=0), obj["spec"].get("replicas", 1)
    return [name_of(obj), f"{ready}/{wanted}", age(obj, now)]


def _slice(obj: Object, now: dt.datetime) -> list[object]:
    addresses = [a for e in obj.get("endpoints") or () for a in e["addresses"]]
    ports = ",".join(str(p.get("port")) for p in obj.get("ports") or ())
    return [
        name_of(obj),
        obj.get("addressType"),
        ports or "<unset>",
        ",".join(addresses) or "<unset>",
        age(obj, now),
    ]


def _event(obj: Object, now: dt.datetime) -> list[object]:
    about = obj.get("involvedObject") or {}
    return [
        age(obj, now),
        obj.get("type", ""),
        obj.get("reason", ""),
        f"{about.get('kind', '').lower()}/{about.get('name', '')}",
        obj.get("message", ""),
    ]


def _link_policy(obj: Object, now: dt.datetime) -> list[object]:
    """As the CRD's additionalPrinterColumns say."""
    conditions = {one["type"]: one for one in dig(obj, "status", "conditions", default=[])}
    return [
        name_of(obj),
        dig(obj, "spec", "mode", default=""),
        dig(obj, "status", "selectedPods", default=""),
        conditions.get("Accepted", {}).get("status", ""),
        conditions.get("InForce", {}).get("reason", ""),
        age(obj, now),
        conditions.get("Accepted", {}).get("message", ""),
    ]


_COLUMNS: dict[tuple[str, str], tuple[str, Cells]] = {
    resources.PODS.key: ("Name Ready Status Restarts Age IP* Node*", _pod),
    resources.SERVICES.key: ("Name Type Cluster-IP External-IP Port(s) Age", _service),
    resources.DEPLOYMENTS.key: ("Name Ready Up-to-date Available Age", _deployment),
    resources.REPLICA_SETS.key: ("Name Desired Current Ready Age", _replica_set),
    resources.STATEFUL_SETS.key: ("Name Ready Age", _stateful_set),
    (GROUP, PLURAL): ("Name Mode Pods Accepted InForce Age Message*", _link_policy),
    resources.SLICES.key: ("Name AddressType Ports Endpoints Age", _slice),
    resources.EVENTS.key: ("LastSeen Type Reason Object Message", _event),
    resources.NAMESPACES.key: (
        "Name Status Age",
        lambda o, now: [name_of(o), dig(o, "status", "phase", default=""), age(o, now)],
    ),
    resources.NODES.key: (
        "Name Status Roles Age Version",
        lambda o, now: [name_of(o), "Ready", "<none>", age(o, now), "podlink-local"],
    ),
    resources.CONFIG_MAPS.key: (
        "Name Data Age",
        lambda o, now: [
            name_of(o),
            len(o.get("data") or {}) + len(o.get("binaryData") or {}),
            age(o, now),
        ],
    ),
    resources.SECRETS.key: (
        "Name Type Data Age",
        lambda o, now: [
            name_of(o),
            o.get("type", "Opaque"),
            len(o.get("data") or {}),
            age(o, now),
        ],
    ),
}
_PLAIN: tuple[str, Cells] = ("Name Age", lambda o, now: [name_of(o), age(o, now)])


def table(resource: Resource, found: list[Object], version: str, now: dt.datetime) -> Object:
    """The Table of some objects. A column marked * is shown by `-o wide` only."""
    heads, cells = _COLUMNS.get(resource.key, _PLAIN)
    columns = [
        {
            "name": head.rstrip("*"),
            "type": "string",
            "format": "name" if head == "Name" else "",
            "description": "",
            "priority": int(head.endswith("*")),
        }
        for head in heads.split()
    ]
    rows = [
        {
            "cells": cells(obj, now),
            "object": {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": obj["metadata"],
            },
        }
        for obj in found
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version},
        "columnDefinitions": columns,
        "rows": rows,
    }
