"""EndpointSlices of Services with a selector. `slice_of` is pure."""

from collections.abc import Iterable

from kit.clock import utcnow
from local.apiserver import resources
from local.apiserver.api import Api
from local.apiserver.defaults import random_suffix
from local.objects import (
    Object,
    condition,
    dig,
    is_terminating,
    labels_of,
    name_of,
    namespace_of,
    timestamp,
    uid_of,
)

_OWNER_LABEL = "kubernetes.io/service-name"
_MANAGER = "endpointslice-controller.k8s.io"
_MANAGER_LABEL = "endpointslice.kubernetes.io/managed-by"
_FAMILIES = ("IPv4", "IPv6")


def slices_of(service: Object, pods: Iterable[Object], family: str) -> list[Object]:
    """What the slices of a Service should say: address type, ports and endpoints. There is one at
    least.

    A named target port is looked up in each pod; pods that give it different numbers are in
    different slices.
    """
    slices: list[Object] = []
    publish_all = bool(dig(service, "spec", "publishNotReadyAddresses"))
    for pod in pods:
        address = next((a for a in pod_addresses(pod) if (":" in a) == (family == "IPv6")), None)
        if address is None or dig(pod, "status", "phase") in ("Succeeded", "Failed"):
            continue
        ports = _ports(service, pod)
        serving, leaving = condition(pod, "Ready"), is_terminating(pod)
        endpoint: Object = {
            "addresses": [address],
            "conditions": {
                "ready": publish_all or (serving and not leaving),
                "serving": publish_all or serving,
                "terminating": leaving,
            },
            "nodeName": pod["spec"].get("nodeName"),
            "targetRef": {
                "kind": "Pod",
                "namespace": namespace_of(pod),
                "name": name_of(pod),
                "uid": uid_of(pod),
            },
        }
        hostname, subdomain = (dig(pod, "spec", field) for field in ("hostname", "subdomain"))
        if hostname and subdomain == name_of(service):
            endpoint["hostname"] = hostname
        for one in slices:
            if one["ports"] == ports:
                one["endpoints"].append(endpoint)
                break
        else:
            slices.append({"addressType": family, "endpoints": [endpoint], "ports": ports})
    return slices or [{"addressType": family, "endpoints": [], "ports": []}]


def pod_addresses(pod: Object) -> list[str]:
    return [entry["ip"] for entry in dig(pod, "status", "podIPs", default=[])]


def _ports(service: Object, pod: Object) -> list[Object]:
    found = []
    for port in dig(service, "spec", "ports", default=[]):
        target = port.get("targetPort", port["port"])
        number = target if isinstance(target, int) else _named_port(pod, target)
        if number is None:
            continue
        entry = {
            "name": port.get("name", ""),
            "port": number,
            "protocol": port.get("protocol", "TCP"),
        }
        if "appProtocol" in port:
            entry["appProtocol"] = port["appProtocol"]
        found.append(entry)
    return found


def _named_port(pod: Object, name: str) -> int | None:
    if name.isdigit():
        return int(name)
    containers = [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or ())]
    for container in containers:
        for port in container.get("ports") or ():
            if port.get("name") == name:
                return int(port["containerPort"])
    return None


class EndpointController:
    """Keeps the slices of every Service in step with its pods."""

    LOOKS_AT = (resources.SERVICES, resources.PODS, resources.SLICES)

    def __init__(self, api: Api) -> None:
        self._api = api

    async def reconcile(self) -> None:
        store = self._api.store
        pods: dict[str, list[Object]] = {}
        for pod in store.select(resources.PODS.key):
            pods.setdefault(namespace_of(pod), []).append(pod)
        wanted = set()
        for service in store.select(resources.SERVICES.key):
            if dig(service, "spec", "selector"):
                selected = self._selected(service, pods.get(namespace_of(service), []))
                for family in _FAMILIES:
                    if family in dig(service, "spec", "ipFamilies", default=["IPv4"]):
                        wanted |= self._keep(service, selected, family)
        for found in store.select(resources.SLICES.key):
            managed = labels_of(found).get(_MANAGER_LABEL) == _MANAGER
            if managed and (namespace_of(found), name_of(found)) not in wanted:
                store.remove(resources.SLICES.key, namespace_of(found), name_of(found))

    def _selected(self, service: Object, pods: Iterable[Object]) -> list[Object]:
        selector = service["spec"]["selector"]
        return [p for p in pods if all(labels_of(p).get(k) == v for k, v in selector.items())]

    def _keep(self, service: Object, pods: list[Object], family: str) -> set[tuple[str, str]]:
        """Bring the slices of one family up to date; returns their namespace and names."""
        store, namespace = self._api.store, namespace_of(service)
        had = [
            found
            for found in store.select(resources.SLICES.key, namespace)
            if labels_of(found).get(_MANAGER_LABEL) == _MANAGER
            and (found["metadata"].get("ownerReferences") or [{}])[0].get("uid") == uid_of(service)
            and found["addressType"] == family
        ]
        wanted = slices_of(service, pods, family)
        names = set()
        for body in wanted:
            # The slice with the same ports stays the same object, whoever else comes or goes.
            same = next((one for one in had if one["ports"] == body["ports"]), None)
            if same is None and had and len(wanted) == len(had) == 1:
                same = had[0]
            if same is not None:
                had.remove(same)
                store.replace(resources.SLICES.key, {**same, **body})
                names.add((namespace, name_of(same)))
            else:
                names.add((namespace, self._add(service, body, family)))
        return names

    def _add(self, service: Object, body: Object, family: str) -> str:
        suffix = random_suffix()
        name = f"{name_of(service)}-{suffix}"
        metadata = {
            "name": name,
            "namespace": namespace_of(service),
            "uid": f"{uid_of(service)}-{family.lower()}-{suffix}",
            "creationTimestamp": timestamp(utcnow()),
            "labels": {
                **labels_of(service),
                _OWNER_LABEL: name_of(service),
                _MANAGER_LABEL: _MANAGER,
            },
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": name_of(service),
                    "uid": uid_of(service),
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        }
        head = {"apiVersion": resources.SLICES.api_version, "kind": "EndpointSlice"}
        self._api.store.add(resources.SLICES.key, {**head, "metadata": metadata, **body})
        return name
