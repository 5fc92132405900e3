"""Probes pointed at the proxy: which, how, twice, and what a forged setting is good for (nothing)."""

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.guard import PodRefused
from injector.probes import rewritten
from kit.contract import HEALTH_PORT, PROBES_VARIABLE
from sidecar.probes.spec import GrpcProbe, HttpProbe, TcpProbe, read_probes
from tests.injector.pods import Raw, annotated, applied, changed, container, env, injected, pod
from tests.injector.write_golden import PROBED

APP = {"name": "web", "image": "web:1"}


def probed(probe: Raw, kind: str = "readinessProbe", **more: Any) -> Raw:
    return pod(containers=[{**APP, kind: probe, **more}])


def handed(raw: Raw) -> Any:
    """What the proxy reads of its setting: by its own reader."""
    return read_probes(env(raw, "podlink-proxy")[PROBES_VARIABLE])


def hook(raw: Raw) -> Any:
    return container(raw, "web")["lifecycle"]["preStop"]["httpGet"]


def test_the_proxy_reads_what_the_injector_writes_for_every_kind() -> None:
    made = injected(pod(**copy.deepcopy(PROBED)))
    assert handed(made) == {
        "cache/startup": TcpProbe(6379, 1.0),
        "web/startup": HttpProbe(8080, 1.0, "HTTP", "/start", ()),
        "web/liveness": HttpProbe(8080, 7.0, "HTTP", "/live?deep=$(NO)", (("Host", "shop"),)),
        "web/readiness": HttpProbe(8443, 1.0, "HTTPS", "/", ()),
        hook(made)["path"].removeprefix("/probe/"): HttpProbe(8080, 30.0, "HTTP", "/bye", ()),
        "rpc/readiness": GrpcProbe(50051, 1.0, "shop.Orders"),
    }


def test_the_kubelet_is_pointed_at_the_proxy_and_times_and_thresholds_stay() -> None:
    made = container(injected(pod(**copy.deepcopy(PROBED))), "web")
    assert made["livenessProbe"] == {
        "httpGet": {"path": "/probe/web/liveness", "port": HEALTH_PORT, "scheme": "HTTP"},
        "timeoutSeconds": 7,
        "periodSeconds": 3,
    }


@pytest.mark.attack_row(32)
def test_nobody_can_name_a_hook_who_does_not_read_the_pod() -> None:
    """Else anybody who reaches the health port could stop the app, its policy notwithstanding."""
    one, other = (hook(injected(pod(**copy.deepcopy(PROBED)))) for _ in range(2))
    for get in (one, other):
        assert re.fullmatch("/probe/web/pre-stop/[0-9a-f]{32}", get["path"])
    assert one["path"] != other["path"]


def test_a_hook_keeps_its_secret_when_the_pod_is_looked_at_again() -> None:
    once = injected(pod(**copy.deepcopy(PROBED)))
    assert changed(once).patch == []


@pytest.mark.attack_row(34)
@pytest.mark.parametrize(
    "path", ["web/pre-stop", "web/pre-stop/", "web/pre-stop/1", "x/" + "0" * 32]
)
def test_a_hook_is_not_let_in_without_a_secret(path: str) -> None:
    made = injected(pod(**copy.deepcopy(PROBED)))
    for one in container(made, "podlink-proxy")["env"]:
        if one["name"] == PROBES_VARIABLE:
            one["value"] = one["value"].replace(hook(made)["path"].removeprefix("/probe/"), path)
    hook(made)["path"] = f"/probe/{path}"
    with pytest.raises(PodRefused, match=r"lifecycle\.preStop") as caught:
        changed(made)
    assert caught.value.reason == "probe_foreign"


def test_exec_probes_and_probes_of_other_hosts_stay_with_the_kubelet() -> None:
    rpc = container(injected(pod(**copy.deepcopy(PROBED))), "rpc")
    assert rpc["livenessProbe"] == {"exec": {"command": ["true"]}}
    assert rpc["startupProbe"] == {"httpGet": {"host": "192.0.2.1", "port": 80}}


def test_without_capture_the_kubelet_reaches_the_app_itself() -> None:
    raw = annotated(mode="localhost")
    raw["spec"]["containers"] = [{**APP, "readinessProbe": {"tcpSocket": {"port": 80}}}]
    made = injected(raw)
    assert container(made, "web")["readinessProbe"] == {"tcpSocket": {"port": 80}}
    assert env(made, "podlink-proxy")[PROBES_VARIABLE] == ""


def test_the_setting_holds_no_dollar_that_kubernetes_would_expand() -> None:
    made = injected(probed({"httpGet": {"path": "/$(POD_UID)$$(X)", "port": 80}}))
    assert "$" not in env(made, "podlink-proxy")[PROBES_VARIABLE]
    assert handed(made)["web/readiness"].path == "/$(POD_UID)$$(X)"


@pytest.mark.attack_row(34)
@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        ({"httpGet": {"path": "/probe/web/readiness", "port": HEALTH_PORT}}, "probe_foreign"),
        ({"httpGet": {"path": "/readyz", "port": HEALTH_PORT}}, "probe_port"),
        ({"tcpSocket": {"port": 24102}}, "probe_port"),
        ({"tcpSocket": {"port": "nameless"}}, "probe_port"),
        ({"tcpSocket": {"port": 0}}, "probe_port"),
        ({"tcpSocket": {"port": True}}, "probe_port"),
        ({"grpc": {"port": 65536}}, "probe_port"),
        ({"httpGet": {"path": "/x\r\nEvil: 1", "port": 80}}, "probe_malformed"),
        ({"httpGet": {"port": 80, "httpHeaders": [{"name": "A\n", "value": ""}]}}, "probe_malformed"),
        ({"httpGet": {"port": 80, "scheme": "FILE"}}, "probe_malformed"),
    ],
)  # fmt: skip
def test_a_probe_that_cannot_be_run_for_the_kubelet_is_refused(probe: Raw, reason: str) -> None:
    with pytest.raises(PodRefused, match=r"spec\.containers\.0\.readinessProbe") as caught:
        changed(probed(probe))
    assert caught.value.reason == reason


ports = st.integers(1, 24000) | st.sampled_from(["http", "8080"])
texts = st.text("abc$(/)?=&é ", max_size=12)
actions = st.one_of(
    st.builds(lambda port: {"tcpSocket": {"port": port}}, ports),
    st.builds(lambda p, s: {"grpc": {"port": p, "service": s}}, st.integers(1, 24000), texts),
    st.builds(
        lambda port, path, scheme, headers: {
            "httpGet": {"port": port, "path": path, "scheme": scheme, "httpHeaders": headers}
        },
        ports,
        texts,
        st.sampled_from(["HTTP", "HTTPS"]),
        st.lists(st.builds(lambda n, v: {"name": n, "value": v}, texts, texts), max_size=3),
    ),
    st.just({"exec": {"command": ["true"]}}),
)
KINDS = ("startupProbe", "livenessProbe", "readinessProbe")
probes = st.dictionaries(st.sampled_from(KINDS), actions)
many = st.lists(probes, min_size=1, max_size=3).map(
    lambda found: pod(
        containers=[
            {"name": f"c{n}", "ports": [{"name": "http", "containerPort": 80}], **one}
            for n, one in enumerate(found)
        ]
    )
)


@given(many)
def test_injecting_probes_twice_is_the_same_as_once(raw: Raw) -> None:
    once = injected(raw)
    assert changed(once).patch == []


@given(many)
def test_what_the_injector_writes_the_proxy_can_read(raw: Raw) -> None:
    _, text, paths = rewritten(raw["spec"])
    assert len(read_probes(text or "{}")) == len(paths)


def test_a_container_that_another_webhook_adds_later_is_probed_too() -> None:
    once = injected(probed({"tcpSocket": {"port": 80}}))
    late = {"name": "late", "image": "x", "livenessProbe": {"httpGet": {"port": 9000}}}
    once["spec"]["containers"].append(late)
    twice = applied(once, changed(once))
    assert set(handed(twice)) == {"web/readiness", "late/liveness"}
    assert container(twice, "late")["livenessProbe"]["httpGet"]["path"] == "/probe/late/liveness"
    assert changed(twice).patch == []


def forged(entry: Raw, key: str = "web/readiness") -> Raw:
    """A pod that claims to be injected already, its proxy's probes written by its author."""
    made = injected(probed({"tcpSocket": {"port": 80}}))
    for one in container(made, "podlink-proxy")["env"]:
        if one["name"] == PROBES_VARIABLE:
            one["value"] = json.dumps({key: entry})
    return made


@pytest.mark.attack_row(34)
@pytest.mark.attack_row(35)
@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"tcpSocket": {"port": 24101}, "timeoutSeconds": 1}, "probe_port"),
        ({"httpGet": {"port": 80, "path": "/\r\n"}, "timeoutSeconds": 1}, "probe_malformed"),
        ({"httpGet": "x", "timeoutSeconds": 1}, "probe_malformed"),
        ("no map", "probe_foreign"),
        ({"exec": {"command": ["x"]}, "timeoutSeconds": 1}, "probe_foreign"),
        ({"httpGet": {"host": "10.0.0.9", "port": 80}, "timeoutSeconds": 1}, "probe_foreign"),
    ],
)
def test_a_forged_setting_is_read_like_any_pods_own_probes(entry: Any, reason: str) -> None:
    with pytest.raises(PodRefused) as caught:
        changed(forged(entry))
    assert caught.value.reason == reason


@pytest.mark.attack_row(34)
def test_a_forged_entry_without_a_probe_is_taken_out() -> None:
    made = injected(probed({"tcpSocket": {"port": 80}}))
    variable = next(
        e for e in container(made, "podlink-proxy")["env"] if e["name"] == PROBES_VARIABLE
    )
    more = json.loads(variable["value"])
    more["other/liveness"] = {"tcpSocket": {"port": 22}, "timeoutSeconds": 1}
    variable["value"] = json.dumps(more)
    assert set(handed(applied(made, changed(made)))) == {"web/readiness"}
