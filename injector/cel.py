"""The guard's CEL about what is podlink's in a pod, made from the code that injects. Pure.

`sidecar_containers` and `sidecar_volumes` are run with texts that remember where they come from
(`_Said`), once for each shape that settings can give a pod. What comes out is the description: fixed
parts become literals, texts that were said become references. So whatever the injector puts into a pod
the guard asks for, and nothing else: a field that is added there is demanded here, with no second list
to be kept. The chart has it as files/guard.yaml, which `make render` writes and a test compares.

The expressions count on these variables, which the chart sets: `told` (the injector's settings by the
names of its environment), `defaults` (of annotations), `init`, `ours`, `theirs`, `proxies`,
`redirected`, `enrolled`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from ipaddress import ip_network
from typing import Any, Self

import yaml

from injector.annotations import KINDS, PodSettings
from injector.container import MeshSettings, Spec, sidecar_containers, sidecar_volumes
from injector.guard import FILLED_IN, FREE, OUR_VOLUMES
from injector.kinds import (
    cel_cpu_amount,
    cel_memory_amount,
    cel_prefixes,
    cel_share,
    listed,
    matches,
    quoted,
)
from kit import contract

MESH_VARIABLES: Mapping[str, str] = {
    "trust_domain": "PODLINK_TRUST_DOMAIN",
    "ca_address": "PODLINK_CA_ADDRESS",
    "registry_address": "PODLINK_REGISTRY_ADDRESS",
    "otlp_endpoint": "PODLINK_OTLP_ENDPOINT",
    "cluster_cidrs": "PODLINK_CLUSTER_CIDRS",
    "exempt_by": "PODLINK_EXEMPT_BY",
    "otlp_secret": "PODLINK_OTLP_SECRET",
}
"""Fields of MeshSettings that are one text, and the injector's variable for each."""
_HEX = "0123456789abcdef"
_KEYS = (*contract.OTLP_SECRET_FILES, contract.OTLP_SECRET_HEADERS)


class _Said(str):
    """A text that is a setting: `cel` says where the guard finds it."""

    cel: str

    @classmethod
    def of(cls, text: str, cel: str) -> Self:
        made = cls(text)
        made.cel = cel
        return made


def _told(name: str) -> str:
    return f"({quoted(name)} in variables.told ? variables.told[{quoted(name)}] : '')"


def _wanted(key: str) -> str:
    return f"variables.wanted[{quoted(key)}]"


@dataclass(frozen=True, slots=True)
class _Shape:
    """What decides which containers there are, and how they look."""

    capture_by: str = "init"
    native: bool = True
    exempt_by: str = "uid"
    keys: tuple[str, ...] = ()
    empty: bool = False
    """Every text that may be empty is."""


def _mesh(shape: _Shape) -> MeshSettings:
    texts: dict[str, Any] = {
        field: _Said.of("" if shape.empty else "x", _told(name))
        for field, name in MESH_VARIABLES.items()
    }
    texts["exempt_by"] = _Said.of(shape.exempt_by, _told(MESH_VARIABLES["exempt_by"]))
    secret = "x" if shape.keys else ""
    texts["otlp_secret"] = _Said.of(secret, _told(MESH_VARIABLES["otlp_secret"]))
    telemetry = [] if shape.empty else contract.TELEMETRY_SETTINGS
    return MeshSettings(
        image="", **texts, capture_by=shape.capture_by, native_sidecars=shape.native,
        otlp_secret_keys=shape.keys,
        telemetry=tuple((name, _Said.of("x", _told(name))) for name in telemetry),
    )  # fmt: skip


def _pod(shape: _Shape, mode: str = "redirect") -> PodSettings:
    texts = {
        one.name: _Said.of("" if shape.empty else "x", _wanted(one.name.replace("_", "-")))
        for one in fields(PodSettings)
        if not one.name.startswith(("proxy_cpu", "proxy_memory"))
    }
    texts["mode"] = _Said.of(mode, _wanted("mode"))
    address = "peer" if shape.empty else "pod"
    texts["source_address"] = _Said.of(address, "variables.source_address")
    return PodSettings(**texts)


def _containers(shape: _Shape, mode: str = "redirect") -> dict[str, Spec]:
    probes = _Said.of("" if shape.empty else "x", "variables.probes")
    made = sidecar_containers(_mesh(shape), _pod(shape, mode), probes)
    return {one["name"]: one for one in (*made.init_containers, *made.containers)}


def variables() -> list[dict[str, str]]:
    """In the order in which each may use those before it."""
    raw = ", ".join(
        f"{quoted(key)}: {full} in variables.own ? variables.own[{full}] : "
        f"{full} in variables.near_notes ? variables.near_notes[{full}] : "
        f"{quoted(key)} in variables.defaults ? variables.defaults[{quoted(key)}] : "
        f"{quoted(getattr(PodSettings(), key.replace('-', '_')))}"
        for key in KINDS
        for full in (quoted(contract.CONFIG_PREFIX + key),)
    )
    normal = ", ".join(
        f"{quoted(key)}: {kind.cel_normal(f'variables.said[{quoted(key)}]')}"
        for key, kind in KINDS.items()
    )
    address = _wanted("source-address")
    has = "has({0}.metadata.annotations) ? {0}.metadata.annotations : {{}}"
    setting = f"e.name == {quoted(contract.PROBES_VARIABLE)} && has(e.value)"
    probes = (
        f"variables.proxies.filter(c, has(c.env) && c.env.exists(e, {setting}))"
        f".map(c, c.env.filter(e, {setting})[0].value)"
    )
    skips, cluster = _wanted("skip-subnets"), _told("PODLINK_CLUSTER_CIDRS")
    return [
        {"name": "own", "expression": has.format("object")},
        {"name": "near_notes", "expression": has.format("namespaceObject")},
        *(
            {
                "name": _fits(key),
                "expression": "[variables.own, variables.near_notes]"
                f".filter(m, {full} in m).map(m, string(m[{full}])).all(r, {kind.cel_read('r')})",
            }
            for key, kind in KINDS.items()
            for full in (quoted(contract.CONFIG_PREFIX + key),)
        ),
        {"name": "said", "expression": f"{{{raw}}}"},
        # Of each setting what the injector writes: spaces are all that it takes away.
        {"name": "wanted", "expression": f"{{{normal}}}"},
        {
            "name": "source_address",
            "expression": f"{_told('PODLINK_CLUSTER_CIDRS')}.split(',').exists(i, {_overlaps('i')})"
            f" ? 'pod' : {address} == 'peer' ? '' : {address}",
        },
        {
            "name": "otlp_keys",
            "expression": f"{_told('PODLINK_OTLP_SECRET')} == '' ? [] : "
            f"('PODLINK_OTLP_SECRET_KEYS' in variables.told ? "
            f"variables.told['PODLINK_OTLP_SECRET_KEYS'] : 'ca.crt')"
            f".split(',').map(k, k.trim())",
        },
        {"name": "probe_settings", "expression": probes},
        {
            "name": "probes",
            "expression": "variables.probe_settings.size() == 0 ? '' : variables.probe_settings[0]",
        },
        {"name": "probed", "expression": _probed()},
        {"name": "numbers", "expression": str(list(range(_MOST_PROBES)))},
        *(
            {"name": name, "expression": expression}
            for name, expression in (
                *cel_prefixes("skips", f"variables.{_fits('skip-subnets')} ? {skips} : ''"),
                # Read only where something is skipped.
                *cel_prefixes("cluster", f"variables.skips_items.size() == 0 ? '' : {cluster}"),
                ("skips_few", cel_share("skips", "cluster")),
            )
        ),
        # A quote within a text is escaped, so this stands between an action and its time limit only.
        {
            "name": "probe_pieces",
            "expression": "variables.probes.split(',\"timeoutSeconds\":')",
        },
        {
            "name": "probe_entries",  # `<key>=<timeout>`, in the order of the setting
            "expression": "variables.numbers.filter(n, n + 1 < variables.probe_pieces.size()).map(n, "
            "variables.probe_pieces[n].split('\"').size() < 2 ? '' : "
            "variables.probe_pieces[n].split('\"')[1] + '=' + "
            "variables.probe_pieces[n + 1].split('}')[0])",
        },
    ]


def validations() -> list[dict[str, str]]:
    """What must hold of a pod that is created in the mesh."""
    created = "request.operation != 'CREATE' || !variables.enrolled || "
    said = (
        ("annotations", annotations_are_right(), "an annotation of the pod or its namespace is unknown "
         "or has no allowed form; docs/annotations.md lists them"),
        ("containers", containers_are_ours(), "a container of podlink's is not as podlink makes it "
         "(settings, mounts, hooks, user or place); leave it to the injector"),
        ("volumes", volumes_are_ours(), "a volume is called as podlink's, and is another: its proxy "
         "would trust other roots"),
        ("probes", probes_are_ours(), "a probe or hook of the app's is not as podlink rewrites it, or "
         "podlink's setting of it is another"),
        ("labels", labels_are_right(), "the label podlink.dev/inject must be enabled or disabled, and "
         "podlink's own marks must be on the pod"),
    )  # fmt: skip
    return [
        {
            "expression": f"{created}({holds})",
            "reason": "Forbidden",
            "message": f"podlink: {message}",
        }
        for _, holds, message in said
    ]


def _overlaps(network: str) -> str:
    """CEL: whether a network of the cluster's has addresses of those that stand for peers inside a pod
    (`container.fitting`). Their prefixes are short, so the first byte or hex digit decides."""
    four, six = (ip_network(contract.STAND_INS[version]) for version in (4, 6))
    assert four.prefixlen <= 8 and six.prefixlen <= 4
    size = f"int({network}.split('/')[1])"

    def same(first: str, own: int, prefix: int, bits: int) -> str:
        powers = "[" + ", ".join(str(2 ** (bits - n)) for n in range(prefix + 1)) + "]"
        step = f"{powers}[{size} < {prefix} ? {size} : {prefix}]"
        return f"{first} / {step} == {own} / {step}"

    group = f"{network}.split(':')[0]"
    digit = f"({group}.size() == 4 ? '{_HEX}'.indexOf({group}.lowerAscii().substring(0, 1)) : 0)"
    v4 = same(f"int({network}.split('.')[0])", four.network_address.packed[0], four.prefixlen, 8)
    v6 = same(digit, six.network_address.packed[0] >> 4, six.prefixlen, 4)
    return f"({network}.contains(':') ? {v6} : {v4})"


# --- Containers -----------------------------------------------------------------------------


def containers_are_ours() -> str:
    """Each of ours is exactly what the injector makes, and they stand first."""
    return " && ".join(f"({one})" for one in (_places(), *_each()))


def _places() -> str:
    """Ours come before the app's, in our order: what runs before capture is not captured."""
    by_cni = f"variables.ours.exists(c, c.name == {quoted(contract.VALIDATE_CONTAINER)})"
    first = (
        f"(!variables.redirected ? [] : {by_cni} ? {listed([contract.VALIDATE_CONTAINER])} : "
        f"{listed([contract.CAPTURE_CONTAINER])})"
    )
    proxy = listed([contract.PROXY_CONTAINER])
    native = f"variables.init.exists(c, c.name == {quoted(contract.PROXY_CONTAINER)})"
    init = f"[{first} + ({native} ? {proxy} : [])]"
    own = f"[({native} ? [] : {proxy})]"
    return (
        f"{init}.all(w, w.size() <= variables.init.size() && "
        "variables.init.map(c, c.name).filter(n, n in w) == w && "
        "[0, 1].all(n, n >= w.size() || variables.init[n].name == w[n]) && "
        f"{own}.all(o, variables.ours.map(c, c.name) == w + o && "
        "(o.size() == 0 || object.spec.containers[0].name == o[0])))"
    )


def _each() -> list[str]:
    found = []
    for native in (True, False):
        where = "variables.init" if native else "object.spec.containers"
        made = {
            mark: _containers(_Shape(native=native, keys=_KEYS, exempt_by=mark))
            for mark in ("uid", "mark")
        }
        found.append(_container(where, contract.PROXY_CONTAINER, made, native))
    for name, capture_by in (
        (contract.CAPTURE_CONTAINER, "init"),
        (contract.VALIDATE_CONTAINER, "cni"),
    ):
        made = {"uid": _containers(_Shape(capture_by=capture_by))}
        found.append(_container("variables.init", name, made, True))
    return found


def _container(where: str, name: str, made: Mapping[str, Mapping[str, Spec]], native: bool) -> str:
    (usual, *others) = (one[name] for one in made.values())
    checks = [_closed("c", "container", usual), _env(name, usual, native)]
    for field in usual:
        if field in ("name", "image", "env", *FREE):
            continue
        if field == "volumeMounts":
            checks.append(_mounts(usual[field], name))
            continue
        fits = _same(f"c.{field}", usual[field], field)
        for other in others:
            if other[field] != usual[field]:
                marked = f"{_told('PODLINK_EXEMPT_BY')} == 'mark' && variables.redirected"
                fits = f"{marked} ? {_same(f'c.{field}', other[field], field)} : {fits}"
        checks.append(f"has(c.{field}) && ({fits})")
    checks += _filled_in("c", "container", usual)
    checks += [f"(!has(c.{field}) || dyn(c.{field}).all(k, k in {listed(keys)}))"
               for field, keys in FREE.items()]  # fmt: skip
    return f"{where}.all(c, c.name != {quoted(name)} || ({' && '.join(checks)}))"


def _env(name: str, usual: Spec, native: bool) -> str:
    """Name, kind and text of each variable, in order."""
    capture_by = "cni" if name == contract.VALIDATE_CONTAINER else "init"
    bare = _containers(_Shape(native=native, empty=True, capture_by=capture_by))[name]
    always = {one["name"] for one in bare["env"]}
    by_key: dict[str, str] = {}
    for key in _KEYS:
        with_key = _containers(
            _Shape(native=native, keys=(key,), empty=True, capture_by=capture_by)
        )
        by_key |= {one["name"]: key for one in with_key[name]["env"] if one["name"] not in always}
    loose = _containers(_Shape(native=native, keys=_KEYS), "localhost").get(name, usual)
    rows = []  # one flat list: the depth of an expression is bounded
    for one, other in zip(usual["env"], loose["env"], strict=True):
        kind, text = _entry(one)
        if _entry(other) != (kind, text):  # without meaning where nothing is captured
            text = f"variables.redirected ? {text} : {_entry(other)[1]}"
        kept = "'kept'"
        said_by_mesh = isinstance(one.get("value"), _Said)
        if one["name"] in by_key and not said_by_mesh:
            kept = f"{quoted(by_key[one['name']])} in variables.otlp_keys ? 'kept' : ''"
        elif one["name"] not in always:
            kept = one["value"].cel
        rows.append(f"[{quoted(one['name'])}, {quoted(kind)}, string({text}), string({kept})]")
    wanted = f"[{', '.join(rows)}].filter(r, r[3] != '').map(r, [r[0], r[1], r[2]])"
    said = (
        "[string(e.name), !has(e.valueFrom) ? 'value' : has(e.valueFrom.fieldRef) ? 'field' : "
        "has(e.valueFrom.resourceFieldRef) ? 'resource' : 'secret', "
        "string(!has(e.valueFrom) ? (has(e.value) ? e.value : '') : "
        "has(e.valueFrom.fieldRef) ? e.valueFrom.fieldRef.fieldPath : "
        "has(e.valueFrom.resourceFieldRef) ? e.valueFrom.resourceFieldRef.resource + '/' + "
        "string(e.valueFrom.resourceFieldRef.divisor) : "
        "has(e.valueFrom.secretKeyRef) && has(e.valueFrom.secretKeyRef.optional) && "
        "e.valueFrom.secretKeyRef.optional ? "
        "e.valueFrom.secretKeyRef.name + '/' + e.valueFrom.secretKeyRef.key : '')]"
    )
    versions = listed(FILLED_IN["fieldRef"]["apiVersion"])
    plain = (
        "c.env.all(e, dyn(e).all(k, k in ['name', 'value', 'valueFrom']) && "
        "(!has(e.valueFrom) || (!has(e.value) && (has(e.valueFrom.fieldRef) ? "
        "dyn(e.valueFrom).all(k, k == 'fieldRef') && "
        "dyn(e.valueFrom.fieldRef).all(k, k in ['apiVersion', 'fieldPath']) && "
        f"(!has(e.valueFrom.fieldRef.apiVersion) || e.valueFrom.fieldRef.apiVersion in {versions})"
        " : has(e.valueFrom.resourceFieldRef) ? "
        "dyn(e.valueFrom).all(k, k == 'resourceFieldRef') && "
        "has(e.valueFrom.resourceFieldRef.divisor) && "
        "dyn(e.valueFrom.resourceFieldRef).all(k, k in ['resource', 'divisor'])"
        " : dyn(e.valueFrom).all(k, k == 'secretKeyRef') && has(e.valueFrom.secretKeyRef) && "
        "dyn(e.valueFrom.secretKeyRef).all(k, k in ['name', 'key', 'optional'])))))"
    )
    return f"has(c.env) && {plain} && c.env.map(e, {said}) == {wanted}"


def _entry(one: Spec) -> tuple[str, str]:
    """Kind and text of a variable, the text in CEL."""
    if "valueFrom" not in one:
        return "value", _text(one.get("value", ""))
    source = one["valueFrom"]
    if "fieldRef" in source:
        return "field", quoted(source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        amount = source["resourceFieldRef"]
        return "resource", quoted(f"{amount['resource']}/{amount['divisor']}")
    secret = source["secretKeyRef"]
    assert secret["optional"] is True
    return "secret", f"{_text(secret['name'])} + {quoted('/' + secret['key'])}"


def _mounts(mounts: Sequence[Spec], name: str) -> str:
    """Those of a collector's Secret only where there is one."""
    bare = [m for m in mounts if m["name"] not in _otlp_volumes()]
    assert mounts[: len(bare)] == bare, name
    if len(bare) == len(mounts):
        return f"has(c.volumeMounts) && ({_same('c.volumeMounts', mounts, 'volumeMounts')})"
    return (
        f"has(c.volumeMounts) && ({_has_files()} ? {_same('c.volumeMounts', mounts, 'volumeMounts')}"
        f" : {_same('c.volumeMounts', bare, 'volumeMounts')})"
    )


def _otlp_volumes() -> frozenset[str]:
    with_secret = {one["name"] for one in sidecar_volumes(_mesh(_Shape(keys=_KEYS)))}
    return frozenset(with_secret - {one["name"] for one in sidecar_volumes(_mesh(_Shape()))})


def _has_files() -> str:
    return f"variables.otlp_keys.exists(k, k in {listed(list(contract.OTLP_SECRET_FILES))})"


# --- Volumes --------------------------------------------------------------------------------


def volumes_are_ours() -> str:
    """Each volume of ours is there, as the injector makes it; no other has the CA's audience."""
    volumes = "(has(object.spec.volumes) ? object.spec.volumes : [])"
    checks = []
    for one in sidecar_volumes(_mesh(_Shape(keys=_KEYS))):
        name = quoted(one["name"])
        optional = one["name"] in _otlp_volumes()
        fits = _otlp_volume(one) if optional else _same("v", one, "volume")
        checks.append(
            f"{volumes}.all(v, v.name != {name} || ({fits})) && "
            f"({volumes}.exists_one(v, v.name == {name}) == {_has_files() if optional else 'true'})"
        )
    audience = quoted(contract.TOKEN_AUDIENCE)
    token = next(one["name"] for one in sidecar_volumes(_mesh(_Shape())) if "projected" in one)
    checks.append(
        f"{volumes}.all(v, v.name == {quoted(token)} || !has(v.projected) || "
        "!has(v.projected.sources) || !v.projected.sources.exists(s, has(s.serviceAccountToken) && "
        f"has(s.serviceAccountToken.audience) && s.serviceAccountToken.audience == {audience}))"
    )
    return " && ".join(f"({one})" for one in checks)


def _otlp_volume(one: Spec) -> str:
    """Its items are those of its keys that the operator says are there."""
    secret = one["secret"]
    items = "{'key': k, 'path': k}"
    wanted = f"{listed(list(contract.OTLP_SECRET_FILES))}.filter(k, k in variables.otlp_keys)"
    rest = {key: value for key, value in secret.items() if key != "items"}
    return (
        f"{_closed('v', 'volume', one)} && has(v.secret) && {_closed('v.secret', 'secret', secret)} && "
        + " && ".join(_filled_in("v.secret", "secret", secret))
        + f" && has(v.secret.items) && v.secret.items == {wanted}.map(k, {items}) && "
        + " && ".join(
            f"has(v.secret.{key}) && {_same(f'v.secret.{key}', value, key)}"
            for key, value in rest.items()
        )
    )


# --- Annotations, labels --------------------------------------------------------------------


def _fits(key: str) -> str:
    """The variable that says whether an annotation, where it stands, has an allowed form."""
    return f"fits_{key.replace('-', '_')}"


def annotations_are_right() -> str:
    """None that the injector would refuse, on the pod or on its namespace."""
    prefix = contract.CONFIG_PREFIX
    plain = prefix.removeprefix("config.")
    known = listed([prefix + key for key in KINDS])
    astray = listed([plain + key for key in KINDS])
    checks = [
        f"[variables.own, variables.near_notes].all(m, m.all(k, !k.startsWith({quoted(prefix)}) || "
        f"k in {known}))",
        f"variables.own.all(k, !(k in {astray}))",
    ]
    checks += [f"variables.{_fits(key)}" for key in KINDS]
    checks.append("variables.skips_few")
    for what, amount in (("cpu", cel_cpu_amount), ("memory", cel_memory_amount)):
        limit, request = _wanted(f"proxy-{what}-limit"), _wanted(f"proxy-{what}-request")
        checks.append(f"{limit} == '' || {amount(limit)} >= {amount(request)}")
    return " && ".join(f"({one})" for one in checks)


def labels_are_right() -> str:
    """What the injector would still write, or refuse."""
    label = quoted(contract.INJECT_LABEL)
    mark = quoted(contract.INJECTED_LABEL)
    capture = quoted(contract.CAPTURE_ANNOTATION)
    keys = ("skip-inbound-ports", "skip-outbound-ports", "skip-subnets")
    said = {key: _wanted(key) for key in keys} | {"source-address": "variables.source_address"}
    skipped = ", ".join(
        f"({text} == '' ? '' : {quoted(json.dumps(key) + ': ' + chr(34))} + {text} + {quoted(chr(34))})"
        for key, text in said.items()
    )
    wanted = f"'{{' + [{skipped}].filter(s, s != '').join(', ') + '}}'"
    by_cni = f"variables.ours.exists(c, c.name == {quoted(contract.VALIDATE_CONTAINER)})"
    return (
        f"has(object.metadata.labels) && {mark} in object.metadata.labels && "
        f"object.metadata.labels[{mark}] == 'true' && (!({label} in object.metadata.labels) || "
        f"object.metadata.labels[{label}] in ['enabled', 'disabled']) && "
        f"(!{by_cni} || !variables.redirected || ({capture} in variables.own && "
        f"variables.own[{capture}] == {wanted}))"
    )


# --- Probes ---------------------------------------------------------------------------------

_PROBES = {"startupProbe": "startup", "livenessProbe": "liveness", "readinessProbe": "readiness"}
_HOOKS = {"postStart": "post-start", "preStop": "pre-stop"}
_LETTER = (
    r'([ !#%-\[\]-~]|\\["\\]|\\u0024|'
    r"\\u(00[89a-f][0-9a-f]|0[1-9a-f][0-9a-f][0-9a-f]|[1-9a-f][0-9a-f][0-9a-f][0-9a-f]))"
)
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HEADER = rf'\{{"name":"{_LETTER}*","value":"{_LETTER}*"\}}'
_HTTP = (
    rf'"httpGet":\{{("httpHeaders":\[{_HEADER}(,{_HEADER})*\],)?"path":"{_LETTER}+",'
    rf'"port":{_PORT},"scheme":"(HTTP|HTTPS)"\}}'
)
_GRPC = rf'"grpc":\{{"port":{_PORT},"service":"{_LETTER}*"\}}'
_TCP = rf'"tcpSocket":\{{"port":{_PORT}\}}'
_HOOK_TIMEOUT_S = 30
_MOST_PROBES = 256
"""In one pod; the API server bounds what an expression may cost."""


def _handlers() -> list[tuple[str, str, str, bool]]:
    """Of a container `c`: whether it has this probe or hook, the probe, its kind, and which it is."""
    probes = [(f"has(c.{f})", f"c.{f}", kind, False) for f, kind in _PROBES.items()]
    hooks = [
        (f"has(c.lifecycle) && has(c.lifecycle.{f})", f"c.lifecycle.{f}", kind, True)
        for f, kind in _HOOKS.items()
    ]
    return probes + hooks


def _points_at_us(probe: str) -> str:
    get = f"{probe}.httpGet"
    return (
        f"has({get}) && dyn({get}.port) == {contract.HEALTH_PORT} && has({get}.path) && "
        f"{get}.path.startsWith({quoted(contract.PROBE_PATH)})"
    )


def _probed() -> str:
    """The probes and hooks that point at the proxy: `<key>=<timeout>`, between commas."""
    cut = len(contract.PROBE_PATH)
    entries = []
    for there, probe, _, is_hook in _handlers():
        get = f"{probe}.httpGet.path"
        timeout = (
            quoted(str(_HOOK_TIMEOUT_S))
            if is_hook
            else f"(has({probe}.timeoutSeconds) && {probe}.timeoutSeconds != 0 ? "
            f"string({probe}.timeoutSeconds) : '1')"
        )
        entries.append(
            f"({there} && {_points_at_us(probe)} ? "
            f"{get}.substring({cut}, {get}.size()) + '=' + {timeout} : '')"
        )
    return (
        f"variables.theirs.map(c, [{', '.join(entries)}].filter(k, k != '').join(','))"
        ".filter(k, k != '').join(',')"
    )


def probes_are_ours() -> str:
    """Where everything is captured, each probe over the network points at the proxy, and the proxy's
    setting says of each what it was, in the form in which the injector writes it."""
    checks = []
    for there, probe, kind, is_hook in _handlers():
        get = f"{probe}.httpGet"
        path = f"{quoted(contract.PROBE_PATH)} + c.name + {quoted('/' + kind)}"
        exact = f"{get}.path == {path}"
        if is_hook:
            secret = f"{get}.path.substring({get}.path.size() - 33, {get}.path.size())"
            exact = (
                f"{get}.path.size() > 33 && {matches(secret, '/[0-9a-f]{32}')} && "
                f"{get}.path == {path} + {secret}"
            )
        ours = (
            f"{exact} && dyn({get}).all(k, k in ['path', 'port', 'scheme']) && "
            f"(!has({get}.scheme) || {get}.scheme == 'HTTP')"
        )
        far = f"has({get}) && has({get}.host) && {get}.host != ''"
        left = f"!has({get})"
        if not is_hook:
            tcp = f"{probe}.tcpSocket"
            left = f"!has({get}) && !has({tcp}) && !has({probe}.grpc)"
            far += f" || has({tcp}) && has({tcp}.host) && {tcp}.host != ''"
        checks.append(f"(!({there}) || ({_points_at_us(probe)} ? ({ours}) : ({left} || {far})))")
    entry = rf'\{{({_GRPC}|{_HTTP}|{_TCP}),"timeoutSeconds":'
    name = r'"[a-z0-9./-]+":'
    whole = rf"\{{{name}{entry}[1-9][0-9]*\}}(,{name}{entry}[1-9][0-9]*\}})*\}}"
    own = "|".join(str(port) for port in sorted(contract.OWN_PORTS))
    hooks = "k.contains('/post-start/') || k.contains('/pre-stop/')"
    own_port = quoted(f'"port":({own})[,}}]')
    get = quoted('":{"httpGet":')
    of_hooks = (
        f"p.split(',').filter(k, {hooks}).all(k, variables.probe_pieces.exists(one, "
        f"one.contains('\"' + k.split('=')[0] + {get})))"
    )
    setting = (
        f"p == '' ? variables.probes == '' : ({matches('variables.probes', whole)} && "
        f"!variables.probes.matches({own_port}) && "
        "variables.probe_entries.size() == p.split(',').size() && "
        "p.split(',').all(k, k in variables.probe_entries) && "
        "variables.numbers.filter(n, n + 1 < variables.probe_entries.size())"
        f".all(n, variables.probe_entries[n] < variables.probe_entries[n + 1]) && {of_hooks})"
    )
    return (
        "variables.redirected ? (variables.theirs.all(c, "
        f"{' && '.join(checks)}) && [variables.probed].all(p, {setting})) : variables.probes == ''"
    )


# --- Comparing ------------------------------------------------------------------------------


def _same(at: str, own: Any, key: str) -> str:
    """CEL: what stands at `at` is `own`, but for what the API server fills in (`FILLED_IN`)."""
    if isinstance(own, Mapping):
        if not own:
            return _closed(at, key, own)
        checks = [_closed(at, key, own)]
        checks += [f"has({at}.{name}) && {_same(f'{at}.{name}', own[name], name)}" for name in own]
        checks += _filled_in(at, key, own)
        return " && ".join(checks)
    if isinstance(own, list | tuple):
        if all(isinstance(one, str) for one in own):
            return f"{at} == {_literals(own)}"
        checks = [f"{at}.size() == {len(own)}"]
        checks += [_same(f"{at}[{n}]", one, key) for n, one in enumerate(own)]
        return " && ".join(checks)
    return f"{at} == {_literal(own)}"


def _filled_in(at: str, key: str, own: Mapping[str, Any]) -> list[str]:
    """CEL: what the API server may have filled in is what it fills in."""
    return [
        f"(!has({at}.{name}) || dyn({at}.{name}) in {_literals(values)})"
        for name, values in FILLED_IN.get(key, {}).items()
        if name not in own
    ]


def _closed(at: str, key: str, own: Mapping[str, Any]) -> str:
    """CEL: there is no field that the injector does not write and the API server does not fill in."""
    allowed = [*own, *FILLED_IN.get(key, {})]
    return f"dyn({at}).all(k, k in {listed(allowed)})"


def _text(value: str) -> str:
    return value.cel if isinstance(value, _Said) else quoted(value)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else _text(value)


def _literals(values: Sequence[Any]) -> str:
    return "[" + ", ".join(_literal(one) for one in values) + "]"


assert {v["name"] for v in sidecar_volumes(_mesh(_Shape(keys=_KEYS)))} <= OUR_VOLUMES


def document() -> str:
    """Both lists as YAML, as the chart reads them."""
    head = "# Made from the injector's own code by `make render` (injector/cel.py); change that.\n"
    made = {"variables": variables(), "validations": validations()}
    return head + yaml.safe_dump(made, sort_keys=False, width=100)
