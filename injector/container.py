"""The specs of what is put into a pod: two containers and three volumes. Pure.

Everything here is podlink's own but the few values of `PodSettings`, which were checked. In a pod
this runs as: `podlink-capture`, root with NET_ADMIN and nothing else, once; then `podlink-proxy`,
its own UID without any capability, for the pod's life (Kubernetes "Sidecar containers":
an init container with restartPolicy Always).
"""

import json
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import PurePosixPath
from typing import Any

from injector.annotations import PodSettings
from injector.kinds import cpu_text, memory_text
from kit import contract

Spec = dict[str, Any]

TOKEN_LIFETIME_S = 3600
TOKEN_VOLUME, BUNDLE_VOLUME, RUN_VOLUME = "podlink-token", "podlink-bundle", "podlink-run"
OTLP_VOLUME = "podlink-otlp"
_HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
_TOKEN, _BUNDLE = PurePosixPath(contract.TOKEN_PATH), PurePosixPath(contract.BUNDLE_PATH)
_RUN = PurePosixPath(contract.ADMIN_SOCKET).parent
API_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a path
NO_API_TOKEN: Spec = {"name": BUNDLE_VOLUME, "mountPath": API_TOKEN_PATH, "readOnly": True}
"""Where the API server mounts a token of the app's ServiceAccount for each container that has nothing
there (admission plugin ServiceAccount). Ours never talk to the API: they get the roots once more."""
_DOWNWARD = (
    ("POD_NAME", "metadata.name"),
    ("POD_NAMESPACE", "metadata.namespace"),
    ("POD_UID", "metadata.uid"),
    ("POD_IPS", "status.podIPs"),
    ("NODE_NAME", "spec.nodeName"),
    ("POD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSettings:
    """What every injected pod of a mesh shares; only the operator sets it, never an annotation."""

    image: str
    trust_domain: str
    ca_address: str
    registry_address: str
    otlp_endpoint: str
    cluster_cidrs: str
    exempt_by: str
    """`uid`, or `mark` where only one UID exists: then the proxy needs NET_ADMIN for SO_MARK."""
    telemetry: tuple[tuple[str, str], ...] = ()
    """Settings among `contract.TELEMETRY_SETTINGS` for every proxy."""
    otlp_secret: str = ""
    """Name of a Secret in the pod's own namespace for the proxy's way to a collector; empty: none."""
    otlp_secret_keys: tuple[str, ...] = ()
    """Which of its keys there are: of `contract.OTLP_SECRET_FILES` and `OTLP_SECRET_HEADERS`."""
    capture_by: str = "init"
    """`init`: an init container with NET_ADMIN. `cni`: the plugin on the node; then a container without
    any privilege fails the pod where the plugin has not done its work."""
    defaults: tuple[tuple[str, str], ...] = ()
    """Checked settings by annotation key, where neither pod nor namespace says anything."""
    native_sidecars: bool = True
    """Whether the cluster knows init containers with restartPolicy Always (Kubernetes 1.29)."""


@dataclass(frozen=True, slots=True)
class Injected:
    """What goes before the pod's own init containers and before its own containers."""

    init_containers: list[Spec]
    containers: list[Spec]


_LINGER = "5s"
"""A plain container gets its SIGTERM together with the app, whose last calls are still to come."""


def sidecar_containers(mesh: MeshSettings, pod: PodSettings, probes: str = "") -> Injected:
    """`probes` is what the proxy is to run instead of the kubelet (`injector.probes`)."""
    capture = []
    if pod.mode == "redirect":
        capture = [_capture(mesh, pod) if mesh.capture_by == "init" else _validate(mesh, pod)]
    proxy = _proxy(mesh, pod, probes)
    if mesh.native_sidecars:
        return Injected([*capture, proxy], [])
    del proxy["restartPolicy"]
    # Containers start in order, and the next one waits for this hook: the app meets a working proxy.
    proxy["env"].append({"name": "PODLINK_DRAIN_LINGER", "value": _LINGER})
    proxy["lifecycle"] = {"postStart": {"exec": {"command": list(contract.WAIT_COMMAND)}}}
    return Injected(capture, [proxy])


def _otlp_files(mesh: MeshSettings) -> list[str]:
    return [key for key in mesh.otlp_secret_keys if key in contract.OTLP_SECRET_FILES]


def _otlp_env(mesh: MeshSettings) -> list[Spec]:
    found: list[Spec] = [
        {"name": contract.OTLP_SECRET_FILES[key], "value": f"{contract.OTLP_SECRET_PATH}/{key}"}
        for key in _otlp_files(mesh)
    ]
    if contract.OTLP_SECRET_HEADERS in mesh.otlp_secret_keys:
        key = {"name": mesh.otlp_secret, "key": contract.OTLP_SECRET_HEADERS, "optional": True}
        found.append({"name": _HEADERS, "valueFrom": {"secretKeyRef": key}})
    return found


def sidecar_volumes(mesh: MeshSettings) -> list[Spec]:
    """Nothing about a collector keeps a pod from starting: its Secret is optional."""
    otlp = []
    if mesh.otlp_secret and (files := _otlp_files(mesh)):
        items = [{"key": key, "path": key} for key in files]
        secret = {"secretName": mesh.otlp_secret, "items": items, "optional": True}
        otlp.append({"name": OTLP_VOLUME, "secret": secret})
    return [*_own_volumes(), *otlp]


def _own_volumes() -> list[Spec]:
    token = {
        "audience": contract.TOKEN_AUDIENCE,
        "expirationSeconds": TOKEN_LIFETIME_S,
        "path": _TOKEN.name,
    }
    return [
        {"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}},
        {
            "name": BUNDLE_VOLUME,
            "configMap": {
                "name": contract.BUNDLE_CONFIG_MAP,
                "items": [{"key": contract.BUNDLE_KEY, "path": _BUNDLE.name}],
            },
        },
        {"name": RUN_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]


def fitting(mesh: MeshSettings, pod: PodSettings) -> PodSettings:
    """The pod's settings, as far as the cluster lets them be: where its addresses are those that would
    stand for peers inside the pod, the app sees the pod's own."""
    networks = [ip_network(item) for item in filter(None, mesh.cluster_cidrs.split(","))]
    for version, text in contract.STAND_INS.items():
        stand_ins = ip_network(text)
        if any(one.version == version and one.overlaps(stand_ins) for one in networks):
            return replace(pod, source_address="pod")
    return pod


def capture_annotation(pod: PodSettings) -> str:
    """What the CNI plugin on the node is to know of this pod: what it must not capture."""
    said = {
        "skip-inbound-ports": pod.skip_inbound_ports,
        "skip-outbound-ports": pod.skip_outbound_ports,
        "skip-subnets": pod.skip_subnets,
        "source-address": _unless_default(pod),
    }
    return json.dumps({key: value for key, value in said.items() if value}, sort_keys=True)


def _validate(mesh: MeshSettings, pod: PodSettings) -> Spec:
    """It proves what the plugin did, so it must itself be captured: any UID but the proxy's."""
    capture = _capture(mesh, pod)
    return {
        **capture,
        "name": contract.VALIDATE_CONTAINER,
        "command": list(contract.VALIDATE_COMMAND),
        "securityContext": {
            "runAsUser": contract.VALIDATE_UID,
            "runAsGroup": contract.VALIDATE_UID,
            "runAsNonRoot": True,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _capture(mesh: MeshSettings, pod: PodSettings) -> Spec:
    return {
        "name": contract.CAPTURE_CONTAINER,
        "image": mesh.image,
        "command": list(contract.CAPTURE_COMMAND),
        "env": _plain(
            PODLINK_EXEMPT_BY=mesh.exempt_by,
            PODLINK_SKIP_INBOUND_PORTS=pod.skip_inbound_ports,
            PODLINK_SKIP_OUTBOUND_PORTS=pod.skip_outbound_ports,
            PODLINK_SKIP_SUBNETS=pod.skip_subnets,
        )
        + _source_address(pod),
        "resources": _resources(pod),
        "volumeMounts": [dict(NO_API_TOKEN)],
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _proxy(mesh: MeshSettings, pod: PodSettings, probes: str) -> Spec:
    env = _plain(
        PODLINK_TRUST_DOMAIN=mesh.trust_domain,
        PODLINK_CA_ADDRESS=mesh.ca_address,
        PODLINK_REGISTRY_ADDRESS=mesh.registry_address,
        PODLINK_OTLP_ENDPOINT=mesh.otlp_endpoint,
        PODLINK_CLUSTER_CIDRS=mesh.cluster_cidrs,
        PODLINK_MODE=pod.mode,
        PODLINK_UPSTREAMS=pod.upstreams,
        PODLINK_PLAINTEXT=pod.plaintext,
        PODLINK_EXTERNAL=pod.external,
        PODLINK_EXEMPT_BY=_exempt_by(mesh, pod),
        PODLINK_SKIP_INBOUND_PORTS=pod.skip_inbound_ports,
        PODLINK_LOG_LEVEL=pod.proxy_log_level,
        PODLINK_PROBES=probes,
    )
    asked = {
        "PODLINK_HTTP_PORTS": pod.http_ports,
        "PODLINK_EXPOSE_LOOPBACK_PORTS": pod.expose_loopback_ports,
        "PODLINK_WORKERS": pod.workers,
        "PODLINK_SHUTDOWN_GRACE_PERIOD": pod.shutdown_grace_period,
    }
    env += _plain(**{name: value for name, value in asked.items() if value})
    env += _source_address(pod)
    env += _plain(**dict(mesh.telemetry))
    if mesh.otlp_secret:
        env += _otlp_env(mesh)
    env += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": p}}} for name, p in _DOWNWARD]
    if pod.proxy_memory_limit:  # it sheds links before the kernel ends it
        limit = {"resource": "limits.memory", "divisor": "1"}
        env.append({"name": "PODLINK_MEMORY_LIMIT", "valueFrom": {"resourceFieldRef": limit}})
    capabilities: Spec = {"drop": ["ALL"]}
    if _exempt_by(mesh, pod) == "mark":
        capabilities["add"] = ["NET_ADMIN"]
    return {
        "name": contract.PROXY_CONTAINER,
        "image": mesh.image,
        "command": list(contract.PROXY_COMMAND),
        "restartPolicy": "Always",
        "env": env,
        "startupProbe": {
            "httpGet": {"path": "/startup", "port": contract.HEALTH_PORT},
            "periodSeconds": 1,
            "failureThreshold": 120,
        },
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": contract.HEALTH_PORT},
            "periodSeconds": 5,
            "failureThreshold": 2,
        },
        "ports": [{"name": contract.HEALTH_PORT_NAME, "containerPort": contract.HEALTH_PORT}],
        "resources": _resources(pod),
        "securityContext": {
            "runAsUser": contract.PROXY_UID,
            "runAsGroup": contract.PROXY_GID,
            "runAsNonRoot": True,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": capabilities,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": TOKEN_VOLUME, "mountPath": str(_TOKEN.parent), "readOnly": True},
            {"name": BUNDLE_VOLUME, "mountPath": str(_BUNDLE.parent), "readOnly": True},
            {"name": RUN_VOLUME, "mountPath": str(_RUN)},
            dict(NO_API_TOKEN),
            *(
                [{"name": OTLP_VOLUME, "mountPath": contract.OTLP_SECRET_PATH, "readOnly": True}]
                if mesh.otlp_secret and _otlp_files(mesh)
                else []
            ),
        ],
    }


def _source_address(pod: PodSettings) -> list[Spec]:
    said = _unless_default(pod)
    return _plain(PODLINK_SOURCE_ADDRESS=said) if said else []


def _unless_default(pod: PodSettings) -> str:
    return "" if pod.source_address == "peer" else pod.source_address


def _exempt_by(mesh: MeshSettings, pod: PodSettings) -> str:
    """Where nothing is captured there is nothing to be exempt from: no mark, and no capability."""
    return mesh.exempt_by if pod.mode == "redirect" else "uid"


def _plain(**values: str) -> list[Spec]:
    # An empty value is left out, as the API server itself does: a second look must find the same.
    return [{"name": n, "value": v} if v else {"name": n} for n, v in values.items()]


def _resources(pod: PodSettings) -> Spec:
    limits = {}
    if pod.proxy_cpu_limit:
        limits["cpu"] = cpu_text(pod.proxy_cpu_limit)
    if pod.proxy_memory_limit:
        limits["memory"] = memory_text(pod.proxy_memory_limit)
    requests = {
        "cpu": cpu_text(pod.proxy_cpu_request),
        "memory": memory_text(pod.proxy_memory_request),
    }
    return {"requests": requests, "limits": limits}
