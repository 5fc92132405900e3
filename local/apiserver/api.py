"""Create, update, patch and delete, with all that the API server does on the way.

HTTP handlers and controllers both come through here, so nothing skips admission or validation. The
order is the real one: defaults, mutating webhooks, validation, store.
"""

import ipaddress
import uuid
from typing import Any

from kit.clock import Clock, utcnow
from local.apiserver import defaults, podsecurity, resources, schemas, validation
from local.apiserver.admission import Admission, Review
from local.apiserver.patch import json_patch, merge_patch, strategic_merge
from local.apiserver.resources import Registry, Resource
from local.apiserver.store import Store
from local.apiserver.tokens import ADMIN, Tokens, User
from local.errors import ApiError
from local.objects import Object, dig, is_terminating, timestamp

SERVICE_CIDRS: dict[str, ipaddress.IPv4Network | ipaddress.IPv6Network] = {
    "IPv4": ipaddress.IPv4Network("10.96.0.0/16"),
    "IPv6": ipaddress.IPv6Network("fd96::/112"),
}
NODE_IP, NODE_IP6 = "10.244.0.1", "fd44::1"
"""The node's addresses; a load balancer's as well."""
_NODE_PORTS = range(30000, 32768)
_KEPT = (
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_FIRST_FREE = 100  # the addresses below are for those that ask for one by name
PATCHES = {
    "application/json-patch+json": json_patch,
    "application/merge-patch+json": merge_patch,
    "application/strategic-merge-patch+json": strategic_merge,
}


class Api:
    """The API server without its wire. Objects that it returns are shared: never change one."""

    def __init__(self, clock: Clock = utcnow) -> None:
        self.store = Store()
        self.registry = Registry()
        self.tokens = Tokens(self.store, clock)
        self.admission = Admission(self.store)
        self._clock = clock
        self._next_ip = dict.fromkeys(SERVICE_CIDRS, _FIRST_FREE)
        self.root_ca = ""
        """PEM of the serving CA, published in every namespace."""

    def find(self, resource: Resource, namespace: str, name: str) -> Object:
        """The object; raises ApiError NotFound."""
        found = self.store.get(resource.key, namespace, name)
        if found is None:
            raise ApiError(404, "NotFound", f'{resource.qualified} "{name}" not found')
        return found

    async def create(
        self,
        resource: Resource,
        namespace: str,
        obj: Object,
        *,
        user: User = ADMIN,
        dry_run: bool = False,
        warnings: list[str] | None = None,
    ) -> Object:
        """Admit and store a new object. Raises ApiError."""
        obj = self._typed(resource, namespace, obj)
        metadata = obj["metadata"]
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = f"{metadata['generateName'][:57]}{defaults.random_suffix()}"
        metadata.update(
            uid=str(uuid.uuid4()), creationTimestamp=timestamp(self._clock()), generation=1
        )
        for field in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"):
            metadata.pop(field, None)
        if resource.namespaced:
            self._check_namespace(resource, namespace, metadata)
        if resource.key != resources.PODS.key:
            validation.check(resource, obj)  # so that defaults may rely on its shape
        obj = self._fill_in(resource, obj)
        review = Review(resource, "CREATE", namespace, user, dry_run)
        obj = await self.admission.admit(review, obj, warnings if warnings is not None else [])
        validation.check(resource, obj)
        if resource.key == resources.PODS.key:
            self._check_security(namespace, obj)
            # The scheduler has one node to choose from.
            obj = {**obj, "spec": {**obj["spec"], "nodeName": defaults.NODE_NAME}}
        if dry_run:
            return obj
        stored = self.store.add(resource.key, obj)
        self._after_create(resource, stored)
        return stored

    async def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        obj: Object,
        *,
        subresource: str = "",
        user: User = ADMIN,
        dry_run: bool = False,
        warnings: list[str] | None = None,
    ) -> Object:
        """Admit and store a new version. `subresource` "status" changes the status only."""
        old = self.find(resource, namespace, name)
        obj = self._typed(resource, namespace, obj)
        if obj["metadata"].get("name") != name:
            raise ApiError(400, "BadRequest", "metadata.name: must be the name in the URL")
        if obj["metadata"].get("uid") not in (None, "", old["metadata"]["uid"]):
            raise ApiError(409, "Conflict", "metadata.uid: the object was deleted and made anew")
        new = _merged(resource, old, obj, subresource)
        if not subresource:
            review = Review(resource, "UPDATE", namespace, user, dry_run, old)
            new = await self.admission.admit(review, new, warnings if warnings is not None else [])
            self._check_change(resource, old, new)
            validation.check(resource, new)
        if dry_run:
            return new
        if is_terminating(old) and not new["metadata"].get("finalizers") and not _graceful(old):
            return self.store.remove(resource.key, namespace, name) or new
        stored = self.store.replace(resource.key, new)
        if resource.key == resources.CRDS.key and not subresource:
            self.registry.add_custom(stored)
        return stored

    async def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        content_type: str,
        change: Any,
        *,
        subresource: str = "",
        user: User = ADMIN,
        dry_run: bool = False,
        warnings: list[str] | None = None,
    ) -> Object:
        """Apply a patch of one of the types in PATCHES and store the result."""
        apply = PATCHES.get(content_type)
        if apply is None or (resource.custom and apply is strategic_merge):
            raise ApiError(
                415, "UnsupportedMediaType", f"patches of type {content_type!r} are not supported"
            )
        old = self.find(resource, namespace, name)
        return await self.update(
            resource,
            namespace,
            name,
            apply(old, change),
            subresource=subresource,
            user=user,
            dry_run=dry_run,
            warnings=warnings,
        )

    def set_status(self, resource: Resource, obj: Object, status: Object) -> None:
        """Replace the status of what is now stored under this object's name and UID."""
        namespace = obj["metadata"].get("namespace", "")
        present = self.store.get(resource.key, namespace, obj["metadata"]["name"])
        if present is not None and present["metadata"]["uid"] == obj["metadata"]["uid"]:
            self.store.replace(resource.key, {**present, "status": status})

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        grace_s: int | None = None,
        uid: str | None = None,
        user: User = ADMIN,
        dry_run: bool = False,
    ) -> Object:
        """Delete at once, or mark as terminating what ends gracefully or has finalizers."""
        obj = self.find(resource, namespace, name)
        if uid not in (None, obj["metadata"]["uid"]):
            raise ApiError(409, "Conflict", "preconditions.uid: the object has another UID")
        await self.admission.admit(Review(resource, "DELETE", namespace, user, dry_run), obj, [])
        if dry_run:
            return obj
        if resource.key == resources.PODS.key:
            own_s = dig(obj, "spec", "terminationGracePeriodSeconds", default=30)
            grace_s = own_s if grace_s is None else grace_s
        elif not _ends_later(resource, obj):
            self.finalise(resource, obj)
            return obj
        else:
            grace_s = 0
        metadata = obj["metadata"]
        if is_terminating(obj) and metadata.get("deletionGracePeriodSeconds", 0) <= grace_s:
            return obj
        marks: Object = {"deletionTimestamp": timestamp(self._clock())}
        if resource.key == resources.PODS.key:
            marks["deletionGracePeriodSeconds"] = grace_s
        marked: Object = {**obj, "metadata": {**metadata, **marks}}
        if resource.key == resources.NAMESPACES.key:
            marked["status"] = {"phase": "Terminating"}
        return self.store.replace(resource.key, marked)

    def finalise(self, resource: Resource, obj: Object) -> None:
        """Take the object away for good, unless it was replaced by one of the same name."""
        namespace, name = obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
        present = self.store.get(resource.key, namespace, name)
        if present is not None and present["metadata"]["uid"] == obj["metadata"]["uid"]:
            self.store.remove(resource.key, namespace, name)
            if resource.key == resources.CRDS.key:
                self._forget_custom(present)

    def _typed(self, resource: Resource, namespace: str, obj: Any) -> Object:
        """A copy whose envelope is right: kind, apiVersion, metadata, namespace."""
        if not isinstance(obj, dict):
            raise ApiError(400, "BadRequest", "the body must be an object")
        for field, value in (("apiVersion", resource.api_version), ("kind", resource.kind)):
            if obj.get(field) not in (None, value):
                raise ApiError(400, "BadRequest", f"{field}: {obj[field]!r} is not {value!r}")
        metadata = obj.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise ApiError(400, "BadRequest", "metadata: must be a map")
        if metadata.get("namespace") not in (None, "", namespace):
            raise ApiError(
                400,
                "BadRequest",
                "metadata.namespace: the namespace of the object does not match the request",
            )
        validation.check_texts(resource, metadata)
        metadata = {key: value for key, value in metadata.items() if key != "managedFields"}
        if resource.namespaced:
            metadata["namespace"] = namespace
        else:
            metadata.pop("namespace", None)
        if resource.schema:
            obj = schemas.conform(resource.schema, obj)
        return {
            **obj,
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": metadata,
        }

    def _check_namespace(self, resource: Resource, namespace: str, metadata: Object) -> None:
        found = self.find(resources.NAMESPACES, "", namespace)
        if is_terminating(found):
            raise ApiError(
                403,
                "Forbidden",
                f'{resource.qualified} "{metadata.get("name")}" is forbidden: unable to create new '
                f"content in namespace {namespace} because it is being terminated",
            )

    def _check_security(self, namespace: str, pod: Object) -> None:
        """What the pod is after every webhook has seen it must keep to its namespace's level."""
        labels = self.find(resources.NAMESPACES, "", namespace)["metadata"].get("labels") or {}
        level = labels.get(podsecurity.ENFORCE, "privileged")
        found = podsecurity.violations(
            pod["spec"], level if level in podsecurity.LEVELS else "restricted"
        )
        if found:
            raise ApiError(
                403,
                "Forbidden",
                f'pods "{pod["metadata"].get("name")}" is forbidden: violates PodSecurity '
                f'"{level}:latest": {", ".join(found)}',
            )

    def _fill_in(self, resource: Resource, obj: Object) -> Object:
        if resource.key == resources.PODS.key:
            return self._fill_in_pod(obj)
        if resource.key == resources.SERVICES.key:
            return self._fill_in_service(obj)
        if resource.key == resources.NAMESPACES.key:
            metadata = obj["metadata"]
            own = {"kubernetes.io/metadata.name": metadata["name"]}
            labels = {**(metadata.get("labels") or {}), **own}
            metadata = {**metadata, "labels": labels}
            spec = {"finalizers": ["kubernetes"]}
            return {**obj, "metadata": metadata, "spec": spec, "status": {"phase": "Active"}}
        if resource.group == "apps":
            return defaults.workload(obj)
        if resource.key in (resources.MUTATING.key, resources.VALIDATING.key):
            return defaults.webhooks(obj)
        if resource.key == resources.CRDS.key:
            return _established(obj)
        if resource.key == resources.SECRETS.key:
            return _encoded(obj)
        return obj

    def _fill_in_pod(self, obj: Object) -> Object:
        if not isinstance(obj.get("spec"), dict):
            validation.check(resources.PODS, obj)
        namespace, name = obj["metadata"]["namespace"], obj["metadata"].get("name")
        account = dig(obj, "spec", "serviceAccountName", default="default")
        found = self.store.get(resources.SERVICE_ACCOUNTS.key, namespace, account)
        if found is None:
            raise ApiError(
                403,
                "Forbidden",
                f'pods "{name}" is forbidden: error looking up service account '
                f'{namespace}/{account}: serviceaccount "{account}" not found',
            )
        return defaults.pod(obj, found)

    def _fill_in_service(self, obj: Object) -> Object:
        validation.check(resources.SERVICES, obj)
        services = self.store.select(resources.SERVICES.key)
        used = {p.get("nodePort") for s in services for p in s["spec"].get("ports") or ()}
        free = (number for number in _NODE_PORTS if number not in used)
        addresses = self._cluster_ips(obj["spec"], obj["metadata"].get("name", ""), services)
        return defaults.service(obj, addresses, free, [NODE_IP, NODE_IP6])

    def _cluster_ips(self, spec: Object, name: str, services: list[Object]) -> list[str]:
        """A free address of each family of the Service; checks those that are asked for."""
        if spec.get("clusterIP") == "None" or spec.get("type") == "ExternalName":
            return ["None"]
        used = {ip for s in services for ip in s["spec"].get("clusterIPs") or ()}
        asked = list(spec.get("clusterIPs") or filter(None, [spec.get("clusterIP")]))
        found = []
        for family in defaults.families(spec):
            cidr = SERVICE_CIDRS[family]
            wanted = next((ip for ip in asked if (":" in ip) == (family == "IPv6")), "")
            if wanted:
                try:
                    usable = ipaddress.ip_address(wanted) in cidr and wanted not in used
                except ValueError:
                    usable = False
                if not usable:
                    raise validation.Invalid(
                        resources.SERVICES,
                        name,
                        "spec.clusterIP",
                        f"Invalid value: {wanted!r}: not a free address of {cidr}",
                    )
            found.append(wanted or self._free_ip(family, used))
        return found

    def _free_ip(self, family: str, used: set[str]) -> str:
        cidr = SERVICE_CIDRS[family]
        for _ in range(cidr.num_addresses):
            address = str(cidr[self._next_ip[family]])
            self._next_ip[family] += 1
            if self._next_ip[family] >= cidr.num_addresses - 1:
                self._next_ip[family] = _FIRST_FREE
            if address not in used:
                return address
        raise ApiError(500, "InternalError", f"no free address in {cidr}")

    def _after_create(self, resource: Resource, obj: Object) -> None:
        name = obj["metadata"]["name"]
        if resource.key == resources.CRDS.key:
            self.registry.add_custom(obj)
        if resource.key != resources.NAMESPACES.key:
            return
        # At once, not by a controller: the next request may already create a pod.
        self._plain(resources.SERVICE_ACCOUNTS, name, "default", {})
        self._plain(
            resources.CONFIG_MAPS, name, defaults.ROOT_CA, {"data": {"ca.crt": self.root_ca}}
        )

    def _plain(self, resource: Resource, namespace: str, name: str, body: Object) -> None:
        metadata = {
            "name": name,
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": timestamp(self._clock()),
        }
        head = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        self.store.add(resource.key, {**head, **body})

    def _check_change(self, resource: Resource, old: Object, new: Object) -> None:
        if resource.key == resources.PODS.key and old["spec"] != new["spec"]:
            raise validation.Invalid(
                resource, new["metadata"]["name"], "spec", "Forbidden: a pod's spec cannot change"
            )
        if resource.key == resources.SERVICES.key:
            before, after = dig(old, "spec", "clusterIP"), dig(new, "spec", "clusterIP")
            if before is not None and after not in (before, None, ""):
                raise validation.Invalid(
                    resource,
                    new["metadata"]["name"],
                    "spec.clusterIP",
                    f"Invalid value: {after!r}: field is immutable",
                )

    def _forget_custom(self, definition: Object) -> None:
        spec = definition["spec"]
        key = spec["group"], spec["names"]["plural"]
        self.registry.remove_custom(definition)
        for obj in self.store.select(key):
            self.store.remove(key, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])


def _merged(resource: Resource, old: Object, obj: Object, subresource: str) -> Object:
    """What an update leaves of `old`: always its identity, and all but the status for that one."""
    kept = {field: old["metadata"][field] for field in _KEPT if field in old["metadata"]}
    if subresource in ("status", "finalize"):
        claimed = obj["metadata"].get("resourceVersion")
        new = {**old, "metadata": {**old["metadata"]}}
        if claimed:
            new["metadata"]["resourceVersion"] = claimed
        else:
            new["metadata"].pop("resourceVersion", None)
        if subresource == "status":
            new["status"] = obj.get("status", {})
        return new
    new = {**obj, "metadata": {**obj["metadata"], **kept}}
    if "status" in resource.subresources:
        new.pop("status", None)
        if "status" in old:
            new["status"] = old["status"]
    if resource.key == resources.SERVICES.key and isinstance(new.get("spec"), dict):
        new = {**_service_kept(old, new), "status": old.get("status", {})}
    if new.get("spec") != old.get("spec") and "generation" in kept:
        new["metadata"]["generation"] = kept["generation"] + 1
    return new


def _service_kept(old: Object, new: Object) -> Object:
    """An updated Service with the addresses and ports of the node that it has."""
    was = old["spec"]
    kept = {field: was[field] for field in ("ipFamilies", "ipFamilyPolicy") if field in was}
    had = {p.get("name", ""): p["nodePort"] for p in was.get("ports") or () if "nodePort" in p}
    new = {**new, "spec": {**kept, **new["spec"]}}
    if defaults.is_outside(new["spec"]):
        new["spec"]["ports"] = [
            {"nodePort": had[p.get("name", "")], **p} if p.get("name", "") in had else p
            for p in new["spec"].get("ports") or ()
        ]
    free = (n for n in _NODE_PORTS if n not in had.values())
    return defaults.service(new, was.get("clusterIPs") or ["None"], free, [])


def _graceful(obj: Object) -> bool:
    return obj["kind"] in ("Pod", "Namespace") and not obj["metadata"].get("finalizers")


def _ends_later(resource: Resource, obj: Object) -> bool:
    return resource.key == resources.NAMESPACES.key or bool(obj["metadata"].get("finalizers"))


def _established(obj: Object) -> Object:
    names = obj["spec"]["names"]
    conditions = [
        {"type": kind, "status": "True", "reason": kind, "message": ""}
        for kind in ("NamesAccepted", "Established")
    ]
    stored = [v["name"] for v in obj["spec"]["versions"] if v.get("storage")]
    status = {"conditions": conditions, "acceptedNames": names, "storedVersions": stored}
    return {**obj, "status": status}


def _encoded(obj: Object) -> Object:
    """A Secret's stringData, moved into data as base64 (it is write-only in the real API too)."""
    import base64

    plain = obj.get("stringData") or {}
    data = {key: base64.b64encode(str(text).encode()).decode() for key, text in plain.items()}
    rest = {key: value for key, value in obj.items() if key != "stringData"}
    return {"type": "Opaque", **rest, "data": {**(obj.get("data") or {}), **data}}
