"""Says which field of an object is wrong, before anything is done with it. Pure.

The rules are those of Kubernetes for the fields that this cluster acts on; what it would silently
not do (hostPID, a volume type it lacks) is refused by name as well.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Any

from local.apiserver import resources, schemas
from local.apiserver.resources import Resource
from local.errors import ApiError
from local.objects import Object, dig

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
)
_PATH_SEGMENT = re.compile(r"(?!\.{1,2}$)[^/%]{1,253}")
_LABEL_KEY = re.compile(
    r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_VOLUME_TYPES = frozenset(
    {"emptyDir", "configMap", "secret", "projected", "downwardAPI", "hostPath"}
)
_PROBE_KINDS = frozenset({"httpGet", "tcpSocket", "grpc", "exec"})
_FREE_NAMES = frozenset({"rbac.authorization.k8s.io"})


class Invalid(ApiError):
    """422: `message` names the field by its path."""

    def __init__(self, resource: Resource, name: str, field: str, problem: str) -> None:
        where = f"{resource.kind}{'.' + resource.group if resource.group else ''}"
        super().__init__(422, "Invalid", f'{where} "{name}" is invalid: {field}: {problem}')


Refuse = Callable[[str, str], ApiError]


def check(resource: Resource, obj: Object) -> None:
    """Raise Invalid for the first field that is wrong."""
    name = str(obj["metadata"].get("name", ""))

    def refuse(field: str, problem: str) -> ApiError:
        return Invalid(resource, name, field, problem)

    _check_metadata(resource, obj["metadata"], refuse)
    checker = _CHECKS.get(resource.key)
    if checker is not None:
        checker(obj, refuse)
    for field, problem in schemas.faults(resource.schema, obj, ""):
        raise refuse(field, problem)


def _check_metadata(resource: Resource, metadata: Object, refuse: Refuse) -> None:
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        raise refuse("metadata.name", "Required value: name or generateName is required")
    pattern = _SUBDOMAIN
    if resource.key in (resources.NAMESPACES.key, resources.SERVICES.key):
        pattern = DNS_LABEL
    elif resource.group in _FREE_NAMES:
        pattern = _PATH_SEGMENT
    if pattern.fullmatch(name) is None:
        raise refuse(
            "metadata.name",
            f"Invalid value: {name[:80]!r}: must be lower case letters, digits and dashes",
        )
    _check_texts(metadata, "metadata", refuse)


def check_texts(resource: Resource, metadata: Object) -> None:
    """Labels and annotations, before anybody relies on their values being strings."""

    def refuse(field: str, problem: str) -> ApiError:
        return Invalid(resource, str(metadata.get("name", "")), field, problem)

    _check_texts(metadata, "metadata", refuse)


def _check_texts(metadata: Object, path: str, refuse: Refuse) -> None:
    for field in ("labels", "annotations"):
        entries = metadata.get(field)
        if entries is None:
            continue
        _need(entries, dict, f"{path}.{field}", refuse)
        for key, value in entries.items():
            where = f"{path}.{field}[{str(key)[:317]}]"
            if not isinstance(key, str) or not isinstance(value, str):
                raise refuse(where, "must be a string, quote it")
            if _LABEL_KEY.fullmatch(key) is None:
                raise refuse(f"{path}.{field}", f"Invalid value: {key[:80]!r}: not a key")
            if field == "labels" and _LABEL_VALUE.fullmatch(value) is None:
                raise refuse(where, f"Invalid value: {value[:80]!r}")


def _need(value: Any, kind: type, field: str, refuse: Refuse) -> None:
    if not isinstance(value, kind):
        words = {dict: "a map", list: "a list", str: "a string", int: "a whole number"}
        problem = "Required value" if value is None else f"Invalid value: {value!r}"
        raise refuse(field, f"{problem}: must be {words.get(kind, kind.__name__)}")


def _entries(parent: Any, key: str, field: str, refuse: Refuse) -> Iterable[tuple[str, Object]]:
    """The maps in a list, each with its path; a list that is absent has none."""
    items = parent.get(key)
    if items is None:
        return
    _need(items, list, f"{field}.{key}", refuse)
    for number, item in enumerate(items):
        path = f"{field}.{key}[{number}]"
        _need(item, dict, path, refuse)
        yield path, item


def check_pod_spec(spec: Any, field: str, refuse: Refuse) -> None:
    """A pod's spec, or that of a template at `field`."""
    _need(spec, dict, field, refuse)
    if not spec.get("containers"):
        raise refuse(f"{field}.containers", "Required value")
    for flag in ("hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(flag):
            raise refuse(f"{field}.{flag}", "not supported by podlink local")
    if spec.get("restartPolicy", "Always") not in ("Always", "OnFailure", "Never"):
        raise refuse(f"{field}.restartPolicy", f"Unsupported value: {spec['restartPolicy']!r}")
    volumes = set()
    for path, volume in _entries(spec, "volumes", field, refuse):
        _need(volume.get("name"), str, f"{path}.name", refuse)
        volumes.add(volume["name"])
        kinds = set(volume) - {"name"}
        if kinds and not kinds <= _VOLUME_TYPES:
            unknown = sorted(kinds - _VOLUME_TYPES)[0]
            raise refuse(f"{path}.{unknown}", "not supported by podlink local")
        if len(kinds) > 1:
            raise refuse(path, "may not specify more than 1 volume type")
    names: set[str] = set()
    for kind in ("initContainers", "containers"):
        for path, container in _entries(spec, kind, field, refuse):
            _check_container(container, path, volumes, refuse)
            if container["name"] in names:
                raise refuse(f"{path}.name", f"Duplicate value: {container['name']!r}")
            names.add(container["name"])
            policy = container.get("restartPolicy")
            if policy is not None and (kind != "initContainers" or policy != "Always"):
                raise refuse(f"{path}.restartPolicy", f"Unsupported value: {policy!r}")


def _check_container(container: Object, path: str, volumes: set[str], refuse: Refuse) -> None:
    name = container.get("name")
    _need(name, str, f"{path}.name", refuse)
    if DNS_LABEL.fullmatch(str(name)) is None:
        raise refuse(f"{path}.name", f"Invalid value: {str(name)[:80]!r}")
    for key in ("command", "args"):
        words = container.get(key)
        if words is not None and not (
            isinstance(words, list) and all(isinstance(w, str) for w in words)
        ):
            raise refuse(f"{path}.{key}", "Invalid value: must be a list of strings")
    if not container.get("command"):
        raise refuse(
            f"{path}.command",
            "Required value: podlink local runs programs of this machine, not images",
        )
    for where, entry in _entries(container, "env", path, refuse):
        _need(entry.get("name"), str, f"{where}.name", refuse)
        if not isinstance(entry.get("value", ""), str):
            raise refuse(f"{where}.value", f"Invalid value: {entry['value']!r}: must be a string")
    for where, entry in _entries(container, "volumeMounts", path, refuse):
        if entry.get("name") not in volumes:
            raise refuse(f"{where}.name", f"Not found: {entry.get('name')!r}")
        if not str(entry.get("mountPath", "")).startswith("/"):
            raise refuse(f"{where}.mountPath", "Required value: an absolute path")
    for where, entry in _entries(container, "ports", path, refuse):
        _check_port(entry.get("containerPort"), f"{where}.containerPort", refuse)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if (found := container.get(probe)) is not None:
            _need(found, dict, f"{path}.{probe}", refuse)
            if len(_PROBE_KINDS & set(found)) != 1:
                raise refuse(f"{path}.{probe}", "must have one of httpGet, tcpSocket, grpc, exec")
    for key in ("runAsUser", "runAsGroup"):
        if (value := dig(container, "securityContext", key)) is not None:
            _need(value, int, f"{path}.securityContext.{key}", refuse)


def _check_port(value: Any, field: str, refuse: Refuse) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
        raise refuse(field, f"Invalid value: {value!r}: must be between 1 and 65535, inclusive")


def _check_pod(obj: Object, refuse: Refuse) -> None:
    check_pod_spec(obj.get("spec"), "spec", refuse)


def _check_service(obj: Object, refuse: Refuse) -> None:
    spec = obj.get("spec")
    _need(spec, dict, "spec", refuse)
    assert isinstance(spec, dict)
    kind = spec.get("type", "ClusterIP")
    if kind not in ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"):
        raise refuse("spec.type", f"Unsupported value: {kind!r}")
    if kind == "ExternalName":
        if not isinstance(name := spec.get("externalName"), str) or not _SUBDOMAIN.fullmatch(name):
            raise refuse("spec.externalName", f"Invalid value: {name!r}: must be a DNS name")
        return
    address = spec.get("clusterIP")
    _check_addresses(spec, refuse)
    ports = list(_entries(spec, "ports", "spec", refuse))
    if not ports and address != "None":
        raise refuse("spec.ports", "Required value")
    for path, port in ports:
        _check_port(port.get("port"), f"{path}.port", refuse)
        if port.get("protocol", "TCP") not in ("TCP", "UDP"):
            raise refuse(f"{path}.protocol", f"Unsupported value: {port['protocol']!r}")
        if isinstance(target := port.get("targetPort"), int):
            _check_port(target, f"{path}.targetPort", refuse)
        if len(ports) > 1 and not port.get("name"):
            raise refuse(f"{path}.name", "Required value")


def _check_addresses(spec: Object, refuse: Refuse) -> None:
    asked = [*(spec.get("clusterIPs") or ()), *filter(None, [spec.get("clusterIP")])]
    for field, texts in (("clusterIP", asked), ("externalIPs", spec.get("externalIPs") or ())):
        for text in texts:
            if field == "clusterIP" and text == "None":
                continue
            try:
                ipaddress.ip_address(text)
            except ValueError as e:
                raise refuse(f"spec.{field}", f"Invalid value: {text!r}") from e
    families = spec.get("ipFamilies") or []
    if [f for f in families if f not in ("IPv4", "IPv6")] or len(set(families)) < len(families):
        raise refuse("spec.ipFamilies", f"Invalid value: {families!r}: IPv4, IPv6, each once")
    policy = spec.get("ipFamilyPolicy", "SingleStack")
    if policy not in ("SingleStack", "PreferDualStack", "RequireDualStack"):
        raise refuse("spec.ipFamilyPolicy", f"Unsupported value: {policy!r}")
    if "ipFamilyPolicy" in spec and policy == "SingleStack" and len(families) > 1:
        raise refuse("spec.ipFamilyPolicy", "must be RequireDualStack for two families")


def _check_workload(obj: Object, refuse: Refuse) -> None:
    spec = obj.get("spec")
    _need(spec, dict, "spec", refuse)
    assert isinstance(spec, dict)
    replicas = spec.get("replicas", 1)
    if not isinstance(replicas, int) or replicas < 0:
        raise refuse("spec.replicas", f"Invalid value: {replicas!r}: must be 0 or more")
    selector = dig(spec, "selector", "matchLabels", default={})
    if not selector and not dig(spec, "selector", "matchExpressions"):
        raise refuse("spec.selector", "Required value")
    metadata = dig(spec, "template", "metadata", default={})
    _need(metadata, dict, "spec.template.metadata", refuse)
    _check_texts(metadata, "spec.template.metadata", refuse)
    labels = metadata.get("labels") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        raise refuse(
            "spec.template.metadata.labels",
            "Invalid value: `selector` does not match template `labels`",
        )
    check_pod_spec(dig(spec, "template", "spec"), "spec.template.spec", refuse)


def _check_definition(obj: Object, refuse: Refuse) -> None:
    spec = obj.get("spec")
    _need(spec, dict, "spec", refuse)
    assert isinstance(spec, dict)
    for key in ("group", "scope"):
        _need(spec.get(key), str, f"spec.{key}", refuse)
    for key in ("plural", "kind"):
        _need(dig(spec, "names", key), str, f"spec.names.{key}", refuse)
    if not list(_entries(spec, "versions", "spec", refuse)):
        raise refuse("spec.versions", "Required value")
    expected = f"{spec['names']['plural']}.{spec['group']}"
    if obj["metadata"]["name"] != expected:
        raise refuse("metadata.name", f"Invalid value: must be {expected!r}")


def _check_webhooks(obj: Object, refuse: Refuse) -> None:
    for path, webhook in _entries(obj, "webhooks", "", refuse):
        path = path.lstrip(".")
        _need(webhook.get("name"), str, f"{path}.name", refuse)
        _need(webhook.get("clientConfig"), dict, f"{path}.clientConfig", refuse)
        if webhook.get("matchConditions"):
            raise refuse(f"{path}.matchConditions", "not supported by podlink local")
        if not isinstance(webhook.get("timeoutSeconds", 10), int) or not (
            1 <= webhook.get("timeoutSeconds", 10) <= 30
        ):
            raise refuse(f"{path}.timeoutSeconds", "must be between 1 and 30")
        if "service" in webhook["clientConfig"]:
            for key in ("name", "namespace"):
                value = webhook["clientConfig"]["service"].get(key)
                _need(value, str, f"{path}.clientConfig.service.{key}", refuse)


_CHECKS: dict[tuple[str, str], Callable[[Object, Refuse], None]] = {
    resources.PODS.key: _check_pod,
    resources.SERVICES.key: _check_service,
    resources.DEPLOYMENTS.key: _check_workload,
    resources.REPLICA_SETS.key: _check_workload,
    resources.STATEFUL_SETS.key: _check_workload,
    resources.CRDS.key: _check_definition,
    resources.MUTATING.key: _check_webhooks,
    resources.VALIDATING.key: _check_webhooks,
}
