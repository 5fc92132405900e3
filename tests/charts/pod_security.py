"""The Pod Security Standards, baseline and restricted, as checks of one pod's spec.

(kubernetes.io/docs/concepts/security/pod-security-standards, as of 1.34.) Each finding names the field.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Raw = Mapping[str, Any]

_BASELINE_CAPABILITIES = frozenset(
    [
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD",
        "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
    ]
)  # fmt: skip
_SYSCTLS = frozenset(
    [
        "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
    ]
)  # fmt: skip
_VOLUMES = frozenset(
    [
        "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
        "projected", "secret",
    ]
)  # fmt: skip


def baseline(spec: Raw) -> list[str]:
    """What keeps the pod out of a namespace that enforces baseline; empty if nothing does."""
    return list(_baseline(spec))


def restricted(spec: Raw) -> list[str]:
    """What keeps the pod out of a namespace that enforces restricted; empty if nothing does."""
    return [*_baseline(spec), *_restricted(spec)]


def _containers(spec: Raw) -> Iterator[tuple[str, Raw]]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for number, one in enumerate(spec.get(kind) or ()):
            yield f"{kind}[{number}]", one


def _baseline(spec: Raw) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes") or ():
        if "hostPath" in volume:
            yield f"volumes: hostPath {volume['name']}"
    pod = spec.get("securityContext") or {}
    yield from _profiles("securityContext", pod)
    for sysctl in pod.get("sysctls") or ():
        if sysctl["name"] not in _SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    for where, one in _containers(spec):
        security = one.get("securityContext") or {}
        if security.get("privileged"):
            yield f"{where}: privileged"
        added = (security.get("capabilities") or {}).get("add") or ()
        for capability in added:
            if capability not in _BASELINE_CAPABILITIES:
                yield f"{where}: capability {capability}"
        for port in one.get("ports") or ():
            if port.get("hostPort"):
                yield f"{where}: hostPort {port['hostPort']}"
        if security.get("procMount", "Default") != "Default":
            yield f"{where}: procMount"
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            for action in ("httpGet", "tcpSocket"):
                if ((one.get(probe) or {}).get(action) or {}).get("host"):
                    yield f"{where}: {probe} with a host"
        yield from _profiles(where, security)


def _profiles(where: str, security: Raw) -> Iterator[str]:
    for field in ("seccompProfile", "appArmorProfile"):
        if (security.get(field) or {}).get("type") == "Unconfined":
            yield f"{where}: {field} Unconfined"
    selinux = security.get("seLinuxOptions") or {}
    allowed = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
    if selinux.get("type", "") not in allowed or selinux.get("user") or selinux.get("role"):
        yield f"{where}: seLinuxOptions"


def _restricted(spec: Raw) -> Iterator[str]:
    for volume in spec.get("volumes") or ():
        if not (set(volume) - {"name"}) <= _VOLUMES:
            yield f"volumes: {volume['name']} is of another type"
    pod = spec.get("securityContext") or {}
    for where, one in _containers(spec):
        security = one.get("securityContext") or {}
        if security.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: allowPrivilegeEscalation is not false"
        if security.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
            yield f"{where}: runAsNonRoot is not true"
        if security.get("runAsUser", pod.get("runAsUser")) == 0:
            yield f"{where}: runAsUser 0"
        profile = security.get("seccompProfile") or pod.get("seccompProfile") or {}
        if profile.get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{where}: no seccompProfile"
        capabilities = security.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or ()):
            yield f"{where}: does not drop ALL capabilities"
        if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
            yield f"{where}: adds capabilities"
