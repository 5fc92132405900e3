"""What the API server took though it was hardly meant: labels of namespaces that enrol nobody, because
they are spelt another way than podlink reads them.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from cli.checks.model import Outcome, ok, unreadable, warn
from kit.kube import Kube, KubeError, Object
from sidecar import contract

_SHOWN = 5
_NAME = contract.INJECT_LABEL.partition("/")[2]
_MEANS = {
    **dict.fromkeys(("true", "yes", "y", "on", "1", "enable", "inject"), "enabled"),
    **dict.fromkeys(("false", "no", "n", "off", "0", "disable"), "disabled"),
}


async def namespace_labels(kube: Kube) -> Sequence[Outcome]:
    """Every label of a namespace that looks like podlink's is one that podlink reads."""
    try:
        namespaces = (await kube.get("/api/v1/namespaces"))["items"]
    except KubeError as e:
        return [unreadable("namespace-labels", "the namespaces", e)]
    slips = [slip for one in namespaces for slip in label_slips(one)]
    if slips:
        todo = f"kubectl label namespace ... {contract.INJECT_LABEL}=enabled, then restart its pods"
        return [warn("namespace-labels", f"pods may run in plaintext: {_listed(slips)}", todo)]
    return [ok("namespace-labels", f"{len(namespaces)} namespaces, no label misspelt")]


def label_slips(namespace: Object) -> Iterator[str]:
    """One line for each label that podlink passes over, with what was probably meant. Pure."""
    metadata = namespace["metadata"]
    name, labels = metadata["name"], metadata.get("labels") or {}
    for key, value in sorted(labels.items()):
        if key == contract.INJECT_LABEL:
            if value not in ("enabled", "disabled"):
                meant = _meant(value)
                yield f"{name}: label {key}={value} counts for nothing; meant {key}={meant}?"
        elif key.startswith(contract.CONFIG_PREFIX):
            yield f"{name}: label {key} counts for nothing; meant as an annotation?"
        elif _ours(key):
            meant = f"{contract.INJECT_LABEL}={_meant(value)}"
            yield f"{name}: label {key}={value} counts for nothing; meant {meant}?"
    annotations = metadata.get("annotations") or {}
    if contract.INJECT_LABEL in annotations and contract.INJECT_LABEL not in labels:
        yield f"{name}: annotation {contract.INJECT_LABEL} counts for nothing; meant as a label?"


def _ours(key: str) -> bool:
    """The prefix is podlink's, or another one of that name with `inject` behind it."""
    prefix, slash, name = key.partition("/")
    if prefix == contract.INJECT_LABEL.partition("/")[0]:
        return True
    close = bool(get_close_matches(name.lower(), [_NAME], cutoff=0.75))
    return bool(slash) and close and "podlink" in prefix.lower()


def _meant(value: str) -> str:
    """`enabled` or `disabled`, whichever the value is nearer to; both where it is near neither."""
    plain = value.lower()
    if plain in _MEANS:
        return _MEANS[plain]
    close = get_close_matches(plain, ["enabled", "disabled"], n=1, cutoff=0.7)
    return close[0] if close else "enabled or disabled"


def _listed(slips: Sequence[str]) -> str:
    more = len(slips) - _SHOWN
    return "; ".join(slips[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
