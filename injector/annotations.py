"""Reads and checks every `config.podlink.dev/` annotation of pods and namespaces. Pure.

The list is closed: an unknown key is refused, so that a mistyped annotation never passes for a
setting, and so that no annotation can ever name an image, a command, a capability or a variable.
Every refusal names the annotation and the form that is allowed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from injector import kinds
from injector.kinds import MAX_ITEMS, MAX_VALUE, Kind
from kit import contract

__all__ = ["MAX_ITEMS", "MAX_VALUE"]
_PLAIN_PREFIX = contract.CONFIG_PREFIX.removeprefix("config.")


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
    cluster_cidrs: str = "",
) -> PodSettings:
    """The settings of one pod: its own annotations, else its namespace's, else the mesh's `defaults`
    (by keys without prefix), else podlink's.

    `cluster_cidrs` are the cluster's own networks: only a part of each may be skipped. Raises
    AnnotationRefused for the first annotation, on either, that is not as it must be, and for one of the
    pod's that is a setting without `config.` before it.
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
    _check_limit(settings, "cpu", kinds.cpu_amount, origin)
    _check_limit(settings, "memory", kinds.memory_amount, origin)
    _check_plaintext(settings, origin)
    _check_skipped(settings, origin, cluster_cidrs)
    return settings


def astray(annotations: Mapping[str, str]) -> list[str]:
    """The settings that stand under `podlink.dev/`, where none is read, without that prefix."""
    found = (
        key.removeprefix(_PLAIN_PREFIX) for key in annotations if key.startswith(_PLAIN_PREFIX)
    )
    return sorted(key for key in found if key in KINDS)


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
    kind = KINDS.get(key)
    if kind is None:
        raise AnnotationRefused(where, key, f"unknown; known are {', '.join(sorted(KINDS))}")
    try:
        return kind.read(value)
    except ValueError as error:
        more = f" ({error})" if error.args else ""
        raise AnnotationRefused(where, key, f"must be {kind.words}{more}") from None


def _check_skipped(settings: PodSettings, origin: Mapping[str, str], cluster_cidrs: str) -> None:
    try:
        kinds.check_share(settings.skip_subnets, cluster_cidrs)
    except ValueError as error:
        where = origin.get("skip_subnets", "default")
        raise AnnotationRefused(where, "skip-subnets", str(error)) from None


def _check_plaintext(settings: PodSettings, origin: Mapping[str, str]) -> None:
    """In `mode: localhost` nothing is captured, so what the app binds to the pod's address is reached
    past the proxy: a refusal of plaintext would be said and not done."""
    if settings.mode == "localhost" and "plaintext" in origin and settings.plaintext == "deny":
        raise AnnotationRefused(
            origin["plaintext"],
            "plaintext",
            "cannot be deny in mode localhost, where nothing is captured: have the app listen on "
            "127.0.0.1, name its port in expose-loopback-ports and leave this out, or use mode redirect",
        )


def _check_limit(
    settings: PodSettings, what: str, read: Callable[[str], int], origin: Mapping[str, str]
) -> None:
    request = getattr(settings, f"proxy_{what}_request")
    limit = getattr(settings, f"proxy_{what}_limit")
    if limit and read(limit) < read(request):
        where = origin.get(f"proxy_{what}_limit", origin.get(f"proxy_{what}_request", "pod"))
        wanted = f"must be at least the request, {request}, not {limit}"
        raise AnnotationRefused(where, f"proxy-{what}-limit", wanted)


KINDS: Mapping[str, Kind] = {
    "skip-inbound-ports": kinds.SKIPPED_PORTS,
    "skip-outbound-ports": kinds.SKIPPED_PORTS,
    "skip-subnets": kinds.SUBNETS,
    "upstreams": kinds.UPSTREAMS,
    "mode": kinds.one_of("redirect", "localhost"),
    "plaintext": kinds.one_of("deny", "allow"),
    "plaintext-ports": kinds.PORTS,
    "external": kinds.one_of("allow", "deny"),
    "http-ports": kinds.HTTP_PORTS,
    "expose-loopback-ports": kinds.SKIPPED_PORTS,
    "proxy-cpu-request": kinds.CPU,
    "proxy-cpu-limit": kinds.CPU,
    "proxy-memory-request": kinds.MEMORY,
    "proxy-memory-limit": kinds.MEMORY,
    "proxy-log-level": kinds.one_of("debug", "info", "warning", "error"),
    "workers": kinds.WORKERS,
    "source-address": kinds.one_of("peer", "pod"),
    "shutdown-grace-period": kinds.GRACE,
}
"""Each annotation by its name without prefix. A pod may empty a list that its namespace sets."""
_NO_DEFAULTS = frozenset({"plaintext", "plaintext-ports", "external", "expose-loopback-ports"})
assert {key.replace("-", "_") for key in KINDS} == {field.name for field in fields(PodSettings)}
