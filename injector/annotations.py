"""Reads and checks every `config.podlink.dev/` annotation of pods and namespaces. Pure.

The list is closed: an unknown key is refused, so that a mistyped annotation never passes for a
setting, and so that no annotation can ever name an image, a command, a capability or a variable.
Every refusal names the annotation and the form that is allowed.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from ipaddress import ip_network

from kit import contract

MAX_VALUE = 4096
MAX_ITEMS = 64
_MAX_GRACE_S = 3600
_MAX_WORKERS = 16

_PLAIN_PREFIX = contract.CONFIG_PREFIX.removeprefix("config.")
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"({_LABEL}\.){{1,2}}{_LABEL}"
_PORT_RANGE = re.compile(r"(?P<low>[0-9]{1,5})(-(?P<high>[0-9]{1,5}))?", re.ASCII)
_UPSTREAM = re.compile(rf"(?P<near>[0-9]{{1,5}})=(?P<host>{_HOST}):(?P<far>[0-9]{{1,5}})", re.ASCII)
_DURATION = re.compile(r"(?P<number>[0-9]{1,5})(?P<unit>s|m)", re.ASCII)
_CPU = re.compile(r"(?P<whole>[0-9]{1,6}(\.[0-9]{1,3})?)|(?P<milli>[0-9]{1,9})m", re.ASCII)
_MEMORY = re.compile(r"(?P<number>[0-9]{1,15})(?P<unit>|k|M|G|Ki|Mi|Gi)", re.ASCII)
_DECIMAL_UNITS = ("", "k", "M", "G", "T", "P")
_BINARY_UNITS = ("", "Ki", "Mi", "Gi", "Ti", "Pi")


class AnnotationRefused(Exception):
    """An annotation is unknown or has no allowed form. The text is one line for whoever applied
    the pod; `where` is "pod" or "namespace".
    """

    reason = "annotation_refused"

    def __init__(
        self, where: str, key: str, wanted: str, prefix: str = contract.CONFIG_PREFIX
    ) -> None:
        super().__init__(f"{where} annotation {prefix}{key[:64]}: {wanted[:512]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """What the annotations ask for, checked, in canonical text; each default is podlink's own."""

    skip_inbound_ports: str = ""
    skip_outbound_ports: str = ""
    skip_subnets: str = ""
    upstreams: str = ""
    mode: str = "redirect"
    plaintext: str = "deny"
    plaintext_ports: str = ""
    external: str = "allow"
    http_ports: str = ""
    expose_loopback_ports: str = ""
    proxy_cpu_request: str = "10m"
    proxy_cpu_limit: str = ""
    proxy_memory_request: str = "48Mi"
    proxy_memory_limit: str = "256Mi"
    proxy_log_level: str = "info"
    workers: str = ""
    shutdown_grace_period: str = ""
    source_address: str = "peer"


def read_settings(
    pod_annotations: Mapping[str, str],
    namespace_annotations: Mapping[str, str],
    defaults: Mapping[str, str] | None = None,
) -> PodSettings:
    """The settings of one pod: its own annotations, else its namespace's, else the mesh's `defaults`
    (by keys without prefix), else podlink's.

    Raises AnnotationRefused for the first annotation, on either, that is not as it must be, and for
    one of the pod's that is a setting without `config.` before it.
    """
    for key in astray(pod_annotations):
        wanted = f"counts for nothing; write {contract.CONFIG_PREFIX}{key}"
        raise AnnotationRefused("pod", key, wanted, _PLAIN_PREFIX)
    read = {key.replace("-", "_"): value for key, value in (defaults or {}).items()}
    origin: dict[str, str] = {}
    for where, annotations in (("namespace", namespace_annotations), ("pod", pod_annotations)):
        for full, value in sorted(annotations.items()):
            if full.startswith(contract.CONFIG_PREFIX):
                key = full.removeprefix(contract.CONFIG_PREFIX)
                name = key.replace("-", "_")
                read[name] = _read(where, key, value)
                origin[name] = where
    settings = PodSettings(**read)
    _check_limit(settings, "cpu", _cpu, origin)
    _check_limit(settings, "memory", _memory, origin)
    return settings


def astray(annotations: Mapping[str, str]) -> list[str]:
    """The settings that stand under `podlink.dev/`, where none is read, without that prefix."""
    found = (
        key.removeprefix(_PLAIN_PREFIX) for key in annotations if key.startswith(_PLAIN_PREFIX)
    )
    return sorted(key for key in found if key in _CHECKS)


def check_default(key: str, value: str) -> str:
    """One of the mesh's defaults, in canonical text. Raises ValueError with what is wrong.

    Whom a pod lets in and where it goes is no default of sidecars: LinkPolicy and the mesh's own
    default say that, and the registry reads those annotations from pods and namespaces alone.
    """
    if key in _NO_DEFAULTS:
        raise ValueError(f"{key} has no default for the whole mesh")
    try:
        return _read("default", key, value)
    except AnnotationRefused as refused:
        raise ValueError(str(refused)) from refused


def _read(where: str, key: str, value: str) -> str:
    check = _CHECKS.get(key)
    if check is None:
        raise AnnotationRefused(where, key, f"unknown; known are {', '.join(sorted(_CHECKS))}")
    wanted, read = check
    try:
        if len(value) > MAX_VALUE:
            raise ValueError
        if not value.strip() and key in _LISTS:
            return ""  # a pod may empty a list that its namespace sets
        return read(value.strip())
    except ValueError as error:
        more = f" ({error})" if error.args else ""
        raise AnnotationRefused(where, key, f"must be {wanted}{more}") from None


def _items(value: str) -> list[str]:
    items = [item.strip() for item in value.split(",")]
    if len(items) > MAX_ITEMS:
        raise ValueError(f"more than {MAX_ITEMS} items")
    return items


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is no port")
    if port in contract.OWN_PORTS:
        raise ValueError(f"{port} is podlink's own")
    return port


def _http_ports(value: str) -> str:
    return value if value == contract.NO_HTTP_PORTS else _ports(value)


def _ports(value: str) -> str:
    covered, texts = 0, []
    for item in _items(value):
        found = _PORT_RANGE.fullmatch(item)
        if found is None:
            raise ValueError
        low = _port(found["low"])
        high = _port(found["high"]) if found["high"] else low
        if high < low:
            raise ValueError(f"{item} runs backwards")
        if any(low <= own <= high for own in contract.OWN_PORTS):
            raise ValueError(f"{item} holds podlink's own ports")
        covered += high - low + 1
        texts.append(str(low) if low == high else f"{low}-{high}")
    if covered > contract.MAX_SKIPPED_PORTS:
        raise ValueError(f"{covered} ports are more than {contract.MAX_SKIPPED_PORTS}")
    return ",".join(texts)


def _subnets(value: str) -> str:
    texts = []
    for item in _items(value):
        if "%" in item:
            raise ValueError("a scope means nothing here")
        network = ip_network(item)  # strict: host bits must be zero
        if network.prefixlen < contract.SHORTEST_SKIPPED_PREFIX[network.version]:
            raise ValueError(f"{item} is too wide")
        texts.append(str(network))
    return ",".join(texts)


def _upstreams(value: str) -> str:
    texts: dict[int, str] = {}
    for item in _items(value):
        found = _UPSTREAM.fullmatch(item)
        if found is None or len(found["host"]) > 253:
            raise ValueError
        near, far = _port(found["near"]), int(found["far"])
        if not 1 <= far <= 65535:
            raise ValueError(f"{far} is no port")
        if near in texts:
            raise ValueError(f"local port {near} is given twice")
        texts[near] = f"{near}={found['host']}:{far}"
    return ",".join(texts.values())


def _one_of(*choices: str) -> tuple[str, Callable[[str], str]]:
    def read(value: str) -> str:
        if value not in choices:
            raise ValueError
        return value

    return " or ".join((", ".join(choices[:-1]), choices[-1])), read


def _workers(value: str) -> str:
    if not re.fullmatch(r"[0-9]{1,2}", value, re.ASCII) or not 1 <= int(value) <= _MAX_WORKERS:
        raise ValueError
    return str(int(value))


def _grace(value: str) -> str:
    found = _DURATION.fullmatch(value)
    if found is None or int(found["number"]) * (60 if found["unit"] == "m" else 1) > _MAX_GRACE_S:
        raise ValueError
    return value


def _cpu(value: str) -> int:
    """In thousandths of a CPU. Raises ValueError."""
    found = _CPU.fullmatch(value)
    if found is None:
        raise ValueError
    size = int(found["milli"]) if found["milli"] else int(Decimal(found["whole"]) * 1000)
    if size == 0:
        raise ValueError("nothing at all")
    return size


def _cpu_text(value: str) -> str:
    whole, milli = divmod(_cpu(value), 1000)
    return f"{whole * 1000 + milli}m" if milli else str(whole)


def _memory(value: str) -> int:
    """In bytes. Raises ValueError."""
    size, _, step, power = _memory_parts(value)
    return int(size * step**power)


def _memory_text(value: str) -> str:
    """As the API server spells it: the largest unit of its family without a fraction.

    (Kubernetes, "Quantity": canonical form.) The pod must look the same when it is seen again.
    """
    size, units, step, power = _memory_parts(value)
    while size % step == 0 and power + 1 < len(units):
        size, power = size // step, power + 1
    return f"{size}{units[power]}"


def _memory_parts(value: str) -> tuple[int, tuple[str, ...], int, int]:
    found = _MEMORY.fullmatch(value)
    if found is None:
        raise ValueError
    if int(found["number"]) == 0:
        raise ValueError("nothing at all")
    binary = found["unit"].endswith("i")
    units, step = (_BINARY_UNITS, 1024) if binary else (_DECIMAL_UNITS, 1000)
    return int(found["number"]), units, step, units.index(found["unit"])


def _check_limit(
    settings: PodSettings, what: str, read: Callable[[str], int], origin: Mapping[str, str]
) -> None:
    request = getattr(settings, f"proxy_{what}_request")
    limit = getattr(settings, f"proxy_{what}_limit")
    if limit and read(limit) < read(request):
        where = origin.get(f"proxy_{what}_limit", origin.get(f"proxy_{what}_request", "pod"))
        wanted = f"must be at least the request, {request}, not {limit}"
        raise AnnotationRefused(where, f"proxy-{what}-limit", wanted)


_PORTS_FORM = "ports and ranges such as 5432,9000-9010"
_CPU_FORM = "a CPU quantity such as 100m or 0.5"
_MEMORY_FORM = "a memory quantity such as 64Mi"
_CHECKS: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "skip-inbound-ports": (_PORTS_FORM, _ports),
    "skip-outbound-ports": (_PORTS_FORM, _ports),
    "skip-subnets": ("networks such as 192.0.2.0/24,2001:db8::/32", _subnets),
    "upstreams": ("pairs such as 5432=db.prod:5432,6379=redis-0.redis.prod:6379", _upstreams),
    "mode": _one_of("redirect", "localhost"),
    "plaintext": _one_of("deny", "allow"),
    "plaintext-ports": (_PORTS_FORM, _ports),
    "external": _one_of("allow", "deny"),
    "http-ports": (f"{_PORTS_FORM}, or {contract.NO_HTTP_PORTS}", _http_ports),
    "expose-loopback-ports": (_PORTS_FORM, _ports),
    "proxy-cpu-request": (_CPU_FORM, _cpu_text),
    "proxy-cpu-limit": (_CPU_FORM, _cpu_text),
    "proxy-memory-request": (_MEMORY_FORM, _memory_text),
    "proxy-memory-limit": (_MEMORY_FORM, _memory_text),
    "proxy-log-level": _one_of("debug", "info", "warning", "error"),
    "workers": (f"a whole number from 1 to {_MAX_WORKERS}", _workers),
    "source-address": _one_of("peer", "pod"),
    "shutdown-grace-period": (f"a duration such as 30s or 2m, at most {_MAX_GRACE_S}s", _grace),
}
_NO_DEFAULTS = frozenset({"plaintext", "plaintext-ports", "external", "expose-loopback-ports"})
_LISTS = frozenset(
    {
        "skip-inbound-ports",
        "skip-outbound-ports",
        "skip-subnets",
        "upstreams",
        "http-ports",
        "expose-loopback-ports",
    }
)
assert {key.replace("-", "_") for key in _CHECKS} == {field.name for field in fields(PodSettings)}
