"""What podlink leaves out of the cluster's objects because it does not fit. The registry's own readers
say so: one that is left out there is shown here."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from cli.checks.model import Outcome, ok, unreadable, warn
from kit.checked import REASONS, Unreadable
from kit.kube import Kube, KubeError, Object
from registry.facts import read_namespace, read_pod, read_policy, read_service, read_slice
from registry.refused import HasRefused

_SHOWN: Final = 5
_PAGE: Final = "500"
_KINDS: Final[tuple[tuple[str, str, Callable[[Object], HasRefused]], ...]] = (
    ("Namespace", "/api/v1/namespaces", read_namespace),
    ("Pod", "/api/v1/pods", read_pod),
    ("Service", "/api/v1/services", read_service),
    ("EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices", read_slice),
    ("LinkPolicy", "/apis/podlink.dev/v1alpha1/linkpolicies", read_policy),
)


async def objects(kube: Kube) -> Sequence[Outcome]:
    """Every field that podlink reads is one that it can use."""
    found: list[str] = []
    looked_at = 0
    for kind, path, read in _KINDS:
        try:
            async for raw in _each(kube, path):
                looked_at += 1
                found.extend(left_out(kind, raw, read))
        except KubeError as e:
            if kind == "LinkPolicy" and e.status == 404:
                continue
            return [unreadable("objects-read", f"the objects of kind {kind}", e)]
    if not found:
        return [ok("objects-read", f"{looked_at} objects, no field that podlink leaves out")]
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    todo = "correct the field; until then it counts as if it were not there (docs/reasons.md)"
    return [warn("objects-read", "; ".join(found[:_SHOWN]) + more, todo)]


def left_out(kind: str, raw: Object, read: Callable[[Object], HasRefused]) -> Iterator[str]:
    """A line for each field of the object that is left out, or one for the whole of it. Pure."""
    name = f"{kind} {_named(raw)}"
    try:
        refused = read(raw).refused
    except Unreadable as e:
        yield f"{name} is left out whole: {e}"
        return
    for one in refused:
        yield f"{name}, {one.field}: {REASONS[one.reason]}" + (f" ({one.shown})" * bool(one.shown))


def _named(raw: Object) -> str:
    metadata: Any = raw.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    parts = (metadata.get("namespace"), metadata.get("name"))
    return "/".join(part[:253] for part in parts if isinstance(part, str) and part)


async def _each(kube: Kube, path: str) -> Any:
    query = {"limit": _PAGE}
    while True:
        page = await kube.get(path, **query)
        for raw in page.get("items") or ():
            yield raw
        more = (page.get("metadata") or {}).get("continue")
        if not more:
            return
        query["continue"] = more
