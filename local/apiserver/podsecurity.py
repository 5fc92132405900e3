"""Pod Security admission: what the levels `baseline` and `restricted` forbid in a pod. Pure.

(Kubernetes "Pod Security Standards", as of 1.34; Linux pods. Only the mode `enforce` acts here: audit
and warn say what it would do, and the stand-in has nobody to say it to.)
"""

from collections.abc import Iterator
from typing import Any

from local.objects import Object, dig

ENFORCE = "pod-security.kubernetes.io/enforce"
LEVELS = ("privileged", "baseline", "restricted")
_BASELINE_CAPABILITIES = frozenset(
    [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]
)
_RESTRICTED_VOLUMES = frozenset(
    [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ]
)
_SECCOMP = ("RuntimeDefault", "Localhost")
_SELINUX_TYPES = (None, "", "container_t", "container_init_t", "container_kvm_t")
_SAFE_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)
_HANDLERS = ("livenessProbe", "readinessProbe", "startupProbe")


def violations(spec: Object, level: str) -> list[str]:
    """What the pod's `spec` does that `level` forbids, one line each; empty if it may run."""
    if level == "privileged":
        return []
    found = list(_baseline(spec))
    if level == "restricted":
        found += _restricted(spec)
    return found


def containers(spec: Object) -> Iterator[Object]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(kind) or ()


def _baseline(spec: Object) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"host namespaces ({field}=true)"
    for volume in spec.get("volumes") or ():
        if "hostPath" in volume:
            yield f'hostPath volumes (volume "{volume["name"]}")'
    for sysctl in dig(spec, "securityContext", "sysctls", default=[]):
        if sysctl["name"] not in _SAFE_SYSCTLS:
            yield f"forbidden sysctls ({sysctl['name']})"
    yield from _profiles(spec.get("securityContext") or {}, "pod")
    for container in containers(spec):
        who = f'container "{container["name"]}"'
        context = container.get("securityContext") or {}
        if context.get("privileged"):
            yield f"privileged ({who} must not set securityContext.privileged=true)"
        added = set(dig(context, "capabilities", "add", default=[]))
        if added - _BASELINE_CAPABILITIES:
            yield f"non-default capabilities ({who}: {', '.join(sorted(added))})"
        if any(port.get("hostPort") for port in container.get("ports") or ()):
            yield f"hostPort ({who})"
        if context.get("procMount") not in (None, "Default"):
            yield f"procMount ({who})"
        if any(_names_a_host(container)):
            yield f"probe or lifecycle host ({who})"
        yield from _profiles(context, who)


def _profiles(context: Object, who: str) -> Iterator[str]:
    if dig(context, "seccompProfile", "type") == "Unconfined":
        yield f"seccompProfile ({who} must not set it to Unconfined)"
    if dig(context, "appArmorProfile", "type") == "Unconfined":
        yield f"appArmorProfile ({who} must not set it to Unconfined)"
    selinux = context.get("seLinuxOptions") or {}
    if (
        selinux.get("type") not in _SELINUX_TYPES
        or selinux.get("user") not in (None, "")
        or selinux.get("role") not in (None, "")
    ):
        yield f"seLinuxOptions ({who})"
    if dig(context, "windowsOptions", "hostProcess"):
        yield f"hostProcess ({who})"


def _names_a_host(container: Object) -> Iterator[bool]:
    handlers: list[Any] = [container.get(name) for name in _HANDLERS]
    handlers += (container.get("lifecycle") or {}).values()
    for handler in handlers:
        for action in ("httpGet", "tcpSocket"):
            yield bool(dig(handler or {}, action, "host"))


def _restricted(spec: Object) -> Iterator[str]:
    for volume in spec.get("volumes") or ():
        kinds = set(volume) - {"name"}
        if not kinds <= _RESTRICTED_VOLUMES:
            yield f'restricted volume types (volume "{volume["name"]}": {", ".join(sorted(kinds))})'
    pod = spec.get("securityContext") or {}
    if pod.get("runAsUser") == 0:
        yield "runAsUser=0 (pod)"
    for container in containers(spec):
        who = f'container "{container["name"]}"'
        context = container.get("securityContext") or {}
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"allowPrivilegeEscalation != false ({who})"
        if "ALL" not in dig(context, "capabilities", "drop", default=[]):
            yield f'unrestricted capabilities ({who} must drop ["ALL"])'
        if set(dig(context, "capabilities", "add", default=[])) - {"NET_BIND_SERVICE"}:
            yield f"unrestricted capabilities ({who} may add NET_BIND_SERVICE alone)"
        if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
            yield f"runAsNonRoot != true (pod or {who})"
        if context.get("runAsUser") == 0:
            yield f"runAsUser=0 ({who})"
        profile = dig(context, "seccompProfile", "type") or dig(pod, "seccompProfile", "type")
        if profile not in _SECCOMP:
            yield f"seccompProfile (pod or {who} must set RuntimeDefault or Localhost)"
