"""The guard and the injector say the same of any pod: random changes of injected pods, judged by both.

The guard lets in exactly those pods of the mesh that the injector would leave as they are. The
expressions run in Google's CEL here; tests/kubernetes/test_guard.py has a real API server judge them.
"""

import copy
import dataclasses
import random
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from injector import cel
from injector.annotations import KINDS, AnnotationRefused, PodSettings
from injector.config import InjectorConfig
from injector.container import MeshSettings, fitting
from injector.guard import PodRefused
from injector.kinds import Kind, check_share
from injector.mutate import difference as differs
from injector.mutate import mutate
from kit.settings import Settings
from local.apiserver import policies
from scripts.helm import CHART
from tests.charts.conftest import Render
from tests.charts.test_chart import find
from tests.injector.pods import injected, namespace, pod

pytest.importorskip("cel_expr_python", reason="Google's CEL has wheels for x86-64 Linux only")
Object = dict[str, Any]
APP = {"name": "web", "image": "web:1"}
HTTP = {
    "httpGet": {"path": '/x y?"é\\$(A)', "port": 8080, "httpHeaders": [{"name": "A", "value": ""}]}
}
CHARTS: dict[str, Object] = {
    "usual": {},
    "cni": {"cni": {"enabled": True}, "nativeSidecars": "true"},
    "plain": {"nativeSidecars": "false"},
    "collector": {
        "otlp": {
            "env": {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://tempo:4317", "PODLINK_ACCESS_LOG": "on"},
            "secret": {"name": "collector", "keys": ["headers", "ca.crt", "tls.key"]},
        },
        "clusterCidrs": ["10.0.0.0/8", "FD00::/8"],
        "proxyDefaults": {"workers": "2", "skip-subnets": "192.0.2.0/24 , 198.51.100.7"},
    },
    "taken": {"clusterCidrs": ["10.0.0.0/8", "250.1.0.0/16"]},
    "marked": {"injector": {"extraEnv": [{"name": "PODLINK_EXEMPT_BY", "value": "mark"}]}},
}  # fmt: skip
BASES: dict[str, Object] = {
    "bare": {},
    "own init": {"initContainers": [{"name": "migrate", "image": "m"}]},
    "probes": {"containers": [
        {**APP, "livenessProbe": {**HTTP, "timeoutSeconds": 3}, "readinessProbe":
         {"tcpSocket": {"port": 80}}, "startupProbe": {"exec": {"command": ["true"]}},
         "lifecycle": {"preStop": {"httpGet": {"port": 80, "path": "/stop"}}}},
        {"name": "b", "image": "b", "livenessProbe": {"grpc": {"port": 9000}},
         "readinessProbe": {"httpGet": {"port": 80, "host": "example.org"}}},
    ]},
    "volumes": {"volumes": [{"name": "data", "emptyDir": {}}, {"name": "vault", "projected": {
        "sources": [{"serviceAccountToken": {"audience": "vault", "path": "t"}}]}}]},
}  # fmt: skip
NOTES: list[dict[str, str]] = [
    {},
    {"skip-subnets": " 192.0.2.0/24, 2001:DB8::/32", "skip-outbound-ports": "25,9000-9010"},
    {"mode": "localhost", "upstreams": "5432=db.prod:5432 ,06379=r.p:6379"},
    {"source-address": "pod", "expose-loopback-ports": "9090 , 9091", "skip-inbound-ports": "22"},
    {"http-ports": "none", "workers": "3", "shutdown-grace-period": "2m", "plaintext": "allow"},
    {"proxy-cpu-request": "0.1", "proxy-cpu-limit": "100m", "proxy-memory-limit": "1Gi"},
]
TEXTS = [
    "", " ", "x", "evil:1", "24100", "10.0.0.0/8", "localhost", "redirect", "podlink-proxy",
    "podlink-ca",
    "podlink-token", "podlink-capture", "podlink-validate", "enabled", "disabled", "net_admin", "Always",
    "podlink-traces.podlink-system.svc:4317", "true", "/probe/web/liveness", "192.0.2.0/24",
    "NET_ADM\u0131N", "10.64.0.0/10", "10.128.0.0/9", "192.168.0.0/17, 192.168.128.0/17", "fc00::/16",
]  # fmt: skip
VALUES: list[Any] = [
    *TEXTS, 0, 1, 80, 420, 24100, 24103, True, False, {}, [],
    {"name": "podlink-proxy", "image": "evil:1"}, {"name": "x", "image": "x"},
    {"add": ["net_admin"]}, {"name": "PODLINK_CLUSTER_CIDRS", "value": "0.0.0.0/0"},
    {"name": "PYTHONPATH", "value": "/code"}, {"name": "podlink-token", "mountPath": "/t"},
    {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"audience": "podlink-ca"}}]}},
    {"exec": {"command": ["sh"]}}, {"httpGet": {"port": 80, "path": "/"}}, {"privileged": True},
    {"capabilities": {"add": ["NET_RAW"]}}, {"name": "late", "image": "x", "restartPolicy": "Always"},
]  # fmt: skip
FIELDS = [
    "args", "command", "env", "envFrom", "image", "imagePullPolicy", "lifecycle", "livenessProbe",
    "name",
    "ports", "readinessProbe", "resources", "restartPolicy", "securityContext", "startupProbe", "value",
    "valueFrom", "volumeMounts", "workingDir", "stdin", "terminationMessagePolicy", "runAsUser",
    "privileged",
    "capabilities", "add", "hostPID", "shareProcessNamespace", "initContainers", "volumes", "os",
    "protocol",
    "defaultMode", "readOnly", "subPath", "scheme", "timeoutSeconds", "httpGet", "apiVersion",
    "procMount",
]  # fmt: skip
NAMES = [
    *(f"config.podlink.dev/{key}" for key in KINDS), "podlink.dev/skip-subnets", "podlink.dev/capture",
    "config.podlink.dev/nonsense", "podlink.dev/status", "podlink.dev/injected", "podlink.dev/inject",
]  # fmt: skip


class Chart:
    """The guard of a chart, and the injector as the same chart tells it."""

    def __init__(self, render: Render, values: Object) -> None:
        made = render(values).objects
        self.policy = find(made, "ValidatingAdmissionPolicy", "podlink-guard")
        self.binding = find(made, "ValidatingAdmissionPolicyBinding", "podlink-guard")
        self.mesh = mesh_of(made)

    def refuses(self, raw: Object, near: Object) -> str:
        facts = {"object": raw, "request": {"operation": "CREATE"}, "namespaceObject": near}
        try:
            return policies.judge(self.policy, self.binding, facts)
        except policies.PolicyBroken as e:  # failurePolicy: Fail
            return str(e) or "broken"


def mesh_of(made: list[Object]) -> MeshSettings:
    deployment = find(made, "Deployment", "podlink-injector")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    env = {one["name"]: one.get("value", "") for one in container["env"]}
    config = InjectorConfig.from_env(Settings(env))
    native = config.native_sidecars
    return MeshSettings(
        **{f: getattr(config.mesh, f) for f in MeshSettings.__dataclass_fields__
           if f != "native_sidecars"},
        native_sidecars=True if native is None else native,
    )  # fmt: skip


@pytest.fixture(scope="session", params=CHARTS)
def chart(request: pytest.FixtureRequest, rendered: Render) -> Chart:
    return Chart(rendered, CHARTS[request.param])


def bases(mesh: MeshSettings) -> Iterator[tuple[Object, Object]]:
    """Pods as the injector makes them, each with its namespace."""
    for spec in BASES.values():
        for notes in NOTES:
            for on_pod in (True, False):
                raw, near = pod(**copy.deepcopy(spec)), namespace()
                where = (raw if on_pod else near)["metadata"]
                where["annotations"] = {f"config.podlink.dev/{k}": v for k, v in notes.items()}
                yield injected(raw, near, mesh), near


def test_the_chart_holds_what_the_injectors_code_makes() -> None:
    assert (CHART / "files/guard.yaml").read_text() == cel.document(), "make render"


def test_the_guard_lets_in_what_the_injector_makes(chart: Chart) -> None:
    for raw, near in bases(chart.mesh):
        assert chart.refuses(raw, near) == "", raw
        assert differs(raw, near, chart.mesh) == ""


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a pod's spec and of its marks."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, one in items:
        yield (*at, key)
        yield from places(one, (*at, key))


def at(value: Any, way: tuple[Any, ...]) -> Any:
    for step in way:
        value = value[step]
    return value


def changed(raw: Object, dice: random.Random) -> Object:
    """One change at a random place: a value replaced, taken away, doubled, moved, or a field added."""
    made = copy.deepcopy(raw)
    if dice.random() < 0.2:
        notes = made["metadata"].setdefault(
            dice.choice(["annotations", "annotations", "labels"]), {}
        )
        name = dice.choice(NAMES)
        if name in notes and dice.random() < 0.4:
            del notes[name]
        else:
            notes[name] = dice.choice(
                [*TEXTS, "80", "7-6", "5m", "0.5", "64Mi", "allow", "192.0.2.1/24"]
            )
        return made
    way = dice.choice(list(places(made["spec"])))
    target: Any = made["spec"]
    for step in way[:-1]:
        target = target[step]
    kind = dice.choice(["replace", "replace", "drop", "double", "move", "add"])
    if kind == "add" and isinstance(target, dict):
        target[dice.choice(FIELDS)] = copy.deepcopy(dice.choice(VALUES))
    elif kind == "drop" or not isinstance(target, list):
        if kind == "replace":
            target[way[-1]] = copy.deepcopy(dice.choice(VALUES))
        else:
            del target[way[-1]]
    elif kind == "double":
        target.insert(way[-1], copy.deepcopy(target[way[-1]]))
    elif kind == "move":
        dice.shuffle(target)
    else:
        target[way[-1]] = copy.deepcopy(dice.choice(VALUES))
    return made


def well_typed(raw: Object) -> bool:
    """The API server decodes a pod before anybody is asked; here a change may be of another type."""
    spec = raw["spec"]
    if not spec.get("containers") or "name" not in (spec.get("os") or {"name": ""}):
        return False
    try:
        both = [*(spec.get("initContainers") or ()), *spec["containers"]]
        if len({one["name"] for one in both}) != len(both):
            return False
        if any(way[-1] == "divisor" and type(at(spec, way)) is not str for way in places(spec)):
            return False  # a quantity: the API server makes "1" of 1 before anybody sees it
        mutate(raw, namespace(), ANY)
    except PodRefused as refused:
        return refused.reason not in ("pod_malformed", "probe_malformed")
    except AnnotationRefused:
        return True
    except Exception:
        return False
    return True


ANY = MeshSettings(
    image="", trust_domain="", ca_address="", registry_address="", otlp_endpoint="", cluster_cidrs="",
    exempt_by="uid",
)  # fmt: skip


@pytest.mark.attack_row(62)
@pytest.mark.timeout(300)
def test_of_a_changed_pod_both_say_the_same(chart: Chart, request: pytest.FixtureRequest) -> None:
    """Hundreds of changes with a seed of the day's own; a difference names its seed."""
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    made = list(bases(chart.mesh))
    both = {True: 0, False: 0}
    for number in range(150):
        raw, near = dice.choice(made)
        for _ in range(dice.choice([1, 1, 1, 2])):
            raw = changed(raw, dice)
        if not well_typed(raw):
            continue
        why, guard = differs(raw, near, chart.mesh), chart.refuses(raw, near)
        said = f"seed {seed}, change {number}: injector {why!r}, guard {guard!r}"
        assert bool(why) == bool(guard), f"{said}: {raw}"
        both[not why] += 1
    assert both[False] > 20, both


@pytest.mark.parametrize(
    ("cidrs", "taken"),
    [
        ("10.0.0.0/8,fc00::/7", False), ("248.0.0.0/6", True), ("10.0.0.0/8,251.255.0.0/16", True),
        ("252.0.0.0/8", False), ("240.0.0.0/4", True), ("0.0.0.0/0", True), ("128.0.0.0/2", False),
        ("4000::/2", True), ("5ABC::/16", True), ("400::/16", False), ("::/1", True), ("::/0", True),
        ("8000::/1", False), ("::1/128", False), ("0400::/8", False), ("7fff::1/128", True),
    ],
)  # fmt: skip
def test_both_see_whether_the_cluster_has_the_addresses_that_stand_for_peers(
    cidrs: str, taken: bool
) -> None:
    mesh = dataclasses.replace(ANY, cluster_cidrs=cidrs)
    assert (fitting(mesh, PodSettings()).source_address == "pod") is taken
    (one,) = (v for v in cel.variables() if v["name"] == "source_address")
    told = {"told": {"PODLINK_CLUSTER_CIDRS": cidrs}, "wanted": {"source-address": "peer"}}
    known = dict.fromkeys(("object", "oldObject", "request", "namespaceObject"))
    assert policies._evaluate(one["expression"], {**known, "variables": told}) == (
        "pod" if taken else ""
    )


def skips_few(text: str, cidrs: str) -> bool:
    """What the guard says of a pod with these skipped networks, in a cluster that has those."""
    made = {one["name"]: one["expression"] for one in cel.variables()}
    names = [
        f"{of}_{what}"
        for of in ("skips", "cluster")
        for what in ("items", "sizes", "hex", "half", "bits", "prefixes")
    ]
    variables: Object = {
        "fits_skip_subnets": True, "wanted": {"skip-subnets": text},
        "told": {"PODLINK_CLUSTER_CIDRS": cidrs},
    }  # fmt: skip
    known = dict.fromkeys(("object", "oldObject", "request", "namespaceObject"))
    for name in ["numbers", *names, "skips_few"]:
        variables[name] = policies._evaluate(made[name], {**known, "variables": variables})
    return bool(variables["skips_few"])


def share_fits(text: str, cidrs: str) -> bool:
    try:
        check_share(text, cidrs)
    except ValueError:
        return False
    return True


@pytest.mark.attack_row(62)
@pytest.mark.parametrize(
    ("text", "cidrs", "fits"),
    [
        ("", "10.0.0.0/8", True),
        ("10.244.0.0/16", "10.244.0.0/16", False),
        ("10.0.0.0/8", "10.244.0.0/16", False),
        ("10.244.0.0/17,10.244.128.0/17", "10.244.0.0/16", False),
        ("10.244.0.0/18", "10.244.0.0/16", True),
        ("10.244.0.0/18,10.244.64.0/32", "10.244.0.0/16", False),
        ("10.245.0.0/16", "10.244.0.0/16", True),
        ("10.20.0.0/16,192.0.2.7", "10.0.0.0/8,fc00::/7", True),
        ("10.96.0.0", "10.96.0.0", False),
        ("fd00::/16", "10.0.0.0/8,FD00:10:96::/112", False),
        ("fd00:10:96::/114", "fd00:10:96::/112", True),
        ("fd00:10:96::/113", "fd00:10:96::/112", False),
        ("::/16", "10.0.0.0/8", True),
        ("0a00::/16", "10.0.0.0/8", True),
        ("2001:db8::", "2001:DB8:0:0:0:0:0:0/128", False),
    ],
)
def test_of_the_clusters_own_networks_a_pod_may_skip_a_quarter(
    text: str, cidrs: str, fits: bool
) -> None:
    assert share_fits(text, cidrs) is fits
    assert skips_few(text, cidrs) is fits


@st.composite
def networks(draw: st.DrawFn) -> str:
    """Of a few addresses that are near to each other, each with any prefix."""
    start = draw(st.sampled_from([
        "10.0.0.0", "10.64.0.0", "10.128.0.1", "10.255.0.0", "192.168.0.0", "250.1.2.3", "fd00::", "::",
        "fd00:10:96::", "fd00:10:96:8000::1", "fdFF::", "0a00::", "2001:db8:1:2:3:4:5:6",
    ]))  # fmt: skip
    prefix = draw(st.integers(8, 32) if "." in start else st.integers(16, 128))
    return str(ip_network(f"{start}/{prefix}", strict=False))


@pytest.mark.attack_row(62)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    skipped=st.lists(networks(), min_size=1, max_size=6),
    cidrs=st.lists(networks(), min_size=1, max_size=4),
)
def test_of_skipped_networks_and_the_clusters_both_say_the_same(
    skipped: list[str], cidrs: list[str]
) -> None:
    text, cluster = ",".join(skipped), ",".join(cidrs)
    assert skips_few(text, cluster) is share_fits(text, cluster)
    fits = True
    try:
        KINDS["skip-subnets"].read(text)
    except ValueError:
        fits = False
    assert judged(KINDS["skip-subnets"], text) is fits


NO_NUL = st.characters(exclude_characters="\0")
"""The binding of CEL to Python cuts a text there; the API server's own CEL does not."""


def texts() -> st.SearchStrategy[str]:
    """Settings that are almost right."""
    number = st.integers(-1, 70000).map(str) | st.sampled_from(
        ["24101", "08", "0", "4096", "00080"]
    )
    word = st.sampled_from([
        "none", "allow", "deny", "redirect", "localhost", "info", "db.prod", "a", "A.b", "-a.b", "r.p.q",
        "a.b.c.d", "é", "::", "1::", "::1", "2001:db8::", "fd00:0:0:1::", "1:2:3:4:5:6:7:8", "10.0.0.0",
        "192.0.2.128", "172.16.0.0", "0.0.0.0", "256.1.1.1", "01.2.3.4", "fe80::1%eth0",
        "::ffff:1.2.3.4",
    ])  # fmt: skip
    glue = st.sampled_from(
        [",", ", ", "-", "=", ":", "/", "", " ", ".", "m", "s", "Mi", "k", "Gi", "i"]
    )
    return st.lists(st.one_of(number, word, glue), max_size=9).map("".join) | st.text(
        NO_NUL, max_size=6
    )


@pytest.mark.attack_row(62)
@pytest.mark.parametrize("key", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=texts())
def test_of_a_setting_both_readers_say_the_same(key: str, text: str) -> None:
    kind = KINDS[key]
    try:
        kind.read(text)
        fits = True
    except ValueError:
        fits = False
    assert judged(kind, text) is fits, text


def judged(kind: Kind, text: str) -> bool:
    known = dict.fromkeys(("object", "oldObject", "request", "namespaceObject", "variables"))
    try:
        return bool(policies._evaluate(kind.cel_read("object"), {**known, "object": text}))
    except policies.PolicyBroken:
        return False
