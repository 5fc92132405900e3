"""What the API server took though it was hardly meant: labels of namespaces that enrol nobody, because
they are spelt another way than podlink reads them, annotations likewise, and LinkPolicies about pods or
namespaces that are not there.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from difflib import get_close_matches

from cli.checks.model import Outcome, ok, unreadable, warn
from injector.annotations import AnnotationRefused, astray, read_settings
from kit import contract
from kit.kube import Kube, KubeError, Object
from policy.linkpolicy import LinkPolicy, PolicyInvalid, parse_spec

_SHOWN = 5
_NAME = contract.INJECT_LABEL.partition("/")[2]
_MEANS = {
    **dict.fromkeys(("true", "yes", "y", "on", "1", "enable", "inject"), "enabled"),
    **dict.fromkeys(("false", "no", "n", "off", "0", "disable"), "disabled"),
}
_WIDE = {
    "proxy-cpu-request": "1m",
    "proxy-cpu-limit": "",
    "proxy-memory-request": "1",
    "proxy-memory-limit": "",
}
"""In place of the mesh's own defaults, which are not known here: a namespace is judged by itself."""


async def namespaces(kube: Kube) -> Sequence[Outcome]:
    """What on a namespace looks like podlink's is what podlink reads: labels, then annotations."""
    try:
        found = (await kube.get("/api/v1/namespaces"))["items"]
    except KubeError as e:
        return [
            unreadable("namespace-labels", "the namespaces", e),
            unreadable("namespace-annotations", "the namespaces", e),
        ]
    outcomes = [ok("namespace-labels", f"{len(found)} namespaces, no label misspelt")]
    if slips := [slip for one in found for slip in label_slips(one)]:
        label = f"kubectl label --overwrite namespace NAME {contract.INJECT_LABEL}=enabled"
        todo = f"{label}, then restart its pods"
        said = f"pods may run in plaintext: {_listed(slips)}"
        outcomes = [warn("namespace-labels", said, todo)]
    if slips := [slip for one in found for slip in annotation_slips(one)]:
        todo = "kubectl annotate namespace ...; docs/annotations.md lists the settings"
        return [*outcomes, warn("namespace-annotations", _listed(slips), todo)]
    return [*outcomes, ok("namespace-annotations", "every setting of a namespace is understood")]


def label_slips(namespace: Object) -> Iterator[str]:
    """One line for each label that podlink passes over, with what was probably meant. Pure."""
    metadata = namespace["metadata"]
    name, labels = metadata["name"], metadata.get("labels") or {}
    for key, value in sorted(labels.items()):
        if key == contract.INJECT_LABEL:
            if value not in ("enabled", "disabled"):
                meant = _meant(value)
                yield f"{name}: label {key}={value} counts for nothing; meant {key}={meant}?"
        elif key == contract.ANY_POD_LABEL:
            if value != contract.ANY_POD_ALLOWED:
                meant = f"{key}={contract.ANY_POD_ALLOWED}"
                yield f"{name}: label {key}={value} counts for nothing; meant {meant}?"
        elif key.startswith(contract.CONFIG_PREFIX):
            yield f"{name}: label {key} counts for nothing; meant as an annotation?"
        elif _ours(key):
            meant = f"{contract.INJECT_LABEL}={_meant(value)}"
            yield f"{name}: label {key}={value} counts for nothing; meant {meant}?"
    annotations = metadata.get("annotations") or {}
    if contract.INJECT_LABEL in annotations and contract.INJECT_LABEL not in labels:
        yield f"{name}: annotation {contract.INJECT_LABEL} counts for nothing; meant as a label?"


def annotation_slips(namespace: Object) -> Iterator[str]:
    """Settings that count for nothing, and the first for which the injector refuses pods. Pure."""
    name, annotations = (
        namespace["metadata"]["name"],
        namespace["metadata"].get("annotations") or {},
    )
    for key in astray(annotations):
        meant = f"{contract.CONFIG_PREFIX}{key}"
        yield f"{name}: annotation podlink.dev/{key} counts for nothing; meant {meant}?"
    try:
        read_settings({}, annotations, _WIDE)
    except AnnotationRefused as refused:
        yield f"{name}: its meshed pods are refused: {refused}"


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


async def policies(kube: Kube) -> Sequence[Outcome]:
    """Every LinkPolicy selects a pod, and the namespaces that its rules name are there. One that is
    not understood is left to `policies-accepted`."""
    try:
        items = (await kube.get("/apis/podlink.dev/v1alpha1/linkpolicies"))["items"]
    except KubeError as e:
        return [] if e.status == 404 else [unreadable("policies-apply", "the LinkPolicies", e)]
    understood = list(_understood(items))
    if not understood:
        return [ok("policies-apply", "no LinkPolicy that could miss")]
    try:
        namespaces = (await kube.get("/api/v1/namespaces"))["items"]
        pods = {
            where: (await kube.get(f"/api/v1/namespaces/{where}/pods"))["items"]
            for where in sorted({one.namespace for one in understood})
        }
    except KubeError as e:
        return [unreadable("policies-apply", "the namespaces and their pods", e)]
    there = {one["metadata"]["name"] for one in namespaces}
    labels = {
        where: [one["metadata"].get("labels") or {} for one in found]
        for where, found in pods.items()
    }
    slips = [s for one in understood for s in policy_slips(one, labels[one.namespace], there)]
    if slips:
        todo = "kubectl get pods --show-labels, kubectl get namespaces; then correct the policy"
        return [warn("policies-apply", _listed(slips), todo)]
    said = f"{len(understood)} LinkPolicies, each about pods and namespaces that are there"
    return [ok("policies-apply", said)]


def policy_slips(
    policy: LinkPolicy, pods: Sequence[Mapping[str, str]], namespaces: Set[str]
) -> Iterator[str]:
    """What `policy` is about in vain: `pods` are the labels of its namespace's pods, `namespaces` the
    names of all that are there. A policy without selector is about whatever pods come. Pure."""
    name = policy.policy.name
    needs = policy.selector.requirements
    if needs and not any(policy.selector.selects(labels) for labels in pods):
        yield f"{name} selects no pod{_nearest(policy, pods)}"
    rules = (*policy.policy.allow, *policy.policy.deny)
    for one in sorted({s.namespace for rule in rules for s in rule.sources} - namespaces):
        close = get_close_matches(one, sorted(namespaces), n=1)
        meant = f"; meant {close[0]}?" if close else ""
        yield f"{name} names namespace {one}, which does not exist{meant}"


def _nearest(policy: LinkPolicy, pods: Sequence[Mapping[str, str]]) -> str:
    """The first requirement that no pod meets, and the pods' own label next to it."""
    for need in policy.selector.requirements:
        if any(need.holds(labels) for labels in pods):
            continue
        if need.operator != "In":
            return f": {need.key} {need.operator} holds for none"
        wanted = sorted(need.values)
        values = sorted({labels[need.key] for labels in pods if need.key in labels})
        close = [m for one in wanted for m in get_close_matches(one, values, n=1)]
        meant = f"; meant {need.key}={close[0]}?" if close else ""
        return f": none has {need.key}={'|'.join(wanted)}{meant}"
    return ": none has all of its labels"


def _understood(items: Sequence[Object]) -> Iterator[LinkPolicy]:
    for one in items:
        metadata = one["metadata"]
        try:
            yield parse_spec(metadata["namespace"], metadata["name"], one.get("spec"))
        except PolicyInvalid:
            continue


def _listed(slips: Sequence[str]) -> str:
    more = len(slips) - _SHOWN
    return "; ".join(slips[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
