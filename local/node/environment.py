"""A container's environment, command and credentials, out of its spec. Pure."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local import linux
from local.errors import LocalError
from local.node.container import Credentials
from local.objects import Object, annotations_of, dig, labels_of

SOURCE_ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULT_UID = 65534
"""Whom a container runs as if its spec does not say: nobody."""
PATH = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PYTHONS = frozenset({"python", "python3"})
_REFERENCE = re.compile(r"\$(\$|\((?P<name>[A-Za-z_.-][\w.-]*)\))")
_KEYED = re.compile(r"metadata\.(?P<kind>labels|annotations)\['(?P<key>[^']+)'\]")
_ROOT_NAMES = """
CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT
MKNOD AUDIT_WRITE SETFCAP
"""
_ROOT_CAPABILITIES = frozenset(_ROOT_NAMES.split())
"""What container runtimes leave to root (containerd's default set)."""


class ConfigMissing(LocalError):
    """A ConfigMap, Secret or key that the container needs is not there (yet)."""

    reason = "CreateContainerConfigError"


Lookup = Callable[[str, str], Mapping[str, str] | None]
"""(kind, name) of a ConfigMap or Secret in the pod's namespace -> its decoded text values."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the node knows of a pod beyond its object."""

    ips: tuple[str, ...]
    host_ip: str
    api_host: str
    api_port: int


def field_value(pod: Object, facts: PodFacts, path: str) -> str:
    """A downward API field. Raises ConfigMissing for one that is not supported."""
    metadata, spec = pod["metadata"], pod["spec"]
    known: dict[str, str] = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
        "status.podIP": facts.ips[0],
        "status.podIPs": ",".join(facts.ips),
        "metadata.labels": _lines(labels_of(pod)),
        "metadata.annotations": _lines(annotations_of(pod)),
    }
    if path in known:
        return known[path]
    if (found := _KEYED.fullmatch(path)) is not None:
        values = labels_of(pod) if found["kind"] == "labels" else annotations_of(pod)
        return values.get(found["key"], "")
    raise ConfigMissing(f"fieldRef.fieldPath: {path!r} is not supported")


def _lines(values: Mapping[str, str]) -> str:
    """Labels or annotations as the downward API writes them to a file."""
    quoted = ((k, v.replace("\\", "\\\\").replace('"', '\\"')) for k, v in sorted(values.items()))
    return "".join(f'{key}="{value}"\n' for key, value in quoted)


def build(pod: Object, container: Object, facts: PodFacts, lookup: Lookup) -> dict[str, str]:
    """The whole environment: nothing of the host's own gets in. Raises ConfigMissing."""
    env = {
        "PATH": PATH,
        "HOME": "/",
        "HOSTNAME": dig(pod, "spec", "hostname", default=pod["metadata"]["name"]),
        "LANG": "C.UTF-8",
        "KUBERNETES_SERVICE_HOST": facts.api_host,
        "KUBERNETES_SERVICE_PORT": str(facts.api_port),
        "KUBERNETES_SERVICE_PORT_HTTPS": str(facts.api_port),
        "KUBERNETES_PORT": f"tcp://{facts.api_host}:{facts.api_port}",
    }
    for source in container.get("envFrom") or ():
        env.update(_from_source(source, lookup))
    for entry in container.get("env") or ():
        if "valueFrom" in entry:
            value = _resolve(pod, container, facts, entry, lookup)
            if value is not None:
                env[entry["name"]] = value
        else:
            env[entry["name"]] = expand(str(entry.get("value", "")), env)
    if runs_python(container):
        own = str(SOURCE_ROOT)
        env["PYTHONPATH"] = f"{env['PYTHONPATH']}:{own}" if env.get("PYTHONPATH") else own
    return env


def _from_source(source: Object, lookup: Lookup) -> dict[str, str]:
    for field in ("configMapRef", "secretRef"):
        if (ref := source.get(field)) is not None:
            values = lookup(field.removesuffix("Ref"), ref["name"])
            if values is None:
                if ref.get("optional"):
                    return {}
                raise ConfigMissing(
                    f'envFrom: {field.removesuffix("Ref")} "{ref["name"]}" not found'
                )
            return {f"{source.get('prefix', '')}{k}": v for k, v in values.items()}
    return {}


def _resolve(
    pod: Object, container: Object, facts: PodFacts, entry: Object, lookup: Lookup
) -> str | None:
    source = entry["valueFrom"]
    if "fieldRef" in source:
        return field_value(pod, facts, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return resource_value(container, source["resourceFieldRef"])
    for field in ("configMapKeyRef", "secretKeyRef"):
        if (ref := source.get(field)) is not None:
            kind = field.removesuffix("KeyRef")
            values = lookup(kind, ref["name"])
            value = (values or {}).get(ref["key"])
            if value is None and not ref.get("optional"):
                what = f'{kind} "{ref["name"]}"'
                lacks = "not found" if values is None else f"has no key {ref['key']!r}"
                raise ConfigMissing(f"env {entry['name']}: {what} {lacks}")
            return value
    raise ConfigMissing(f"env {entry['name']}: valueFrom names no source")


_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9, "m": 0.001}


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: "100m" is 0.1, "64Mi" is 67108864."""
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)


def resource_value(container: Object, ref: Object) -> str:
    """A resourceFieldRef: the amount over the divisor, rounded up; 0 where there is none."""
    kind, _, name = ref["resource"].partition(".")
    amount = dig(container, "resources", kind, name, default="0")
    divisor = quantity(str(ref.get("divisor", "1"))) or 1.0
    return str(int(-(-quantity(str(amount)) // divisor)))


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` by its value, if it has one; `$$` by `$` (Kubernetes "dependent variables")."""

    def replace(found: re.Match[str]) -> str:
        if found[1] == "$":
            return "$"
        return env.get(found["name"], found[0])

    return _REFERENCE.sub(replace, text)


def runs_python(container: Object) -> bool:
    return bool(container.get("command")) and container["command"][0] in _PYTHONS


def argv(container: Object, env: Mapping[str, str]) -> list[str]:
    """What to run. `python` is the interpreter that runs podlink, as it is the image's there."""
    words = [expand(w, env) for w in (*container["command"], *(container.get("args") or ()))]
    return interpreted(words)


def interpreted(words: Sequence[str]) -> list[str]:
    if words[0] in _PYTHONS:
        return [sys.executable, *words[1:]]
    return list(words)


def credentials(pod: Object, container: Object, *, single_uid: bool) -> Credentials:
    """Whom a container runs as: its own securityContext beats the pod's.

    Capabilities that the spec adds for a user other than root are ambient, so that they work
    without file capabilities; where one user id is all there is, everybody is that one, and
    capabilities are what sets them apart.
    """
    own = container.get("securityContext") or {}
    shared = dig(pod, "spec", "securityContext", default={})
    uid = _first(own.get("runAsUser"), shared.get("runAsUser"), DEFAULT_UID)
    gid = _first(own.get("runAsGroup"), shared.get("runAsGroup"), 0 if uid == 0 else uid)
    groups = [*(shared.get("supplementalGroups") or ())]
    if (fs_group := shared.get("fsGroup")) is not None:
        groups.append(fs_group)
    added = _names(dig(own, "capabilities", "add", default=[]))
    dropped = _names(dig(own, "capabilities", "drop", default=[]))
    base = set(_ROOT_CAPABILITIES) if uid == 0 else set()
    kept = sorted((base - dropped) | added)
    privileged = bool(own.get("privileged"))
    if privileged:
        kept = list(linux.CAPABILITIES)
    return {
        "uid": None if single_uid else uid,
        "gid": None if single_uid else gid,
        "groups": groups,
        "capabilities": kept,
        "ambient": [] if uid == 0 or single_uid else kept,
        "no_new_privileges": not privileged,
    }


def _first(*choices: Any) -> int:
    return int(next(c for c in choices if c is not None))


def _names(raw: Sequence[str]) -> set[str]:
    names = {name.upper().removeprefix("CAP_") for name in raw}
    if "ALL" in names:
        return set(linux.CAPABILITIES)
    return names & set(linux.CAPABILITIES)
