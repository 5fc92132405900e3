"""Every annotation: what it allows, and a table of what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.annotations import AnnotationRefused, PodSettings, read_settings
from kit.contract import (
    CAPTURE_ANNOTATION,
    CONFIG_PREFIX,
    INJECT_LABEL,
    INJECTED_LABEL,
    OWN_PORTS,
    STATUS_ANNOTATION,
)
from tests.injector.pods import annotated, container, injected

PORTS = (
    "*", "0", "65536", "-1", "1-", "-5", "5-4", "1-65535", "1000-9000", "1-3000,4001-6000",
    "80;81", "80 81", "http", "0x50", "٣", "80,", "24101", "24000-24200", "24103", "8e2",
    ",".join("1" for _ in range(65)), "9" * 5000, "80\n81",
)  # fmt: skip
CPU = ("", "0", "0m", "-1", "1G", "1.0000", "100 m", "1e3", "lots", "0.0", "9999999")
MEMORY = ("", "0", "-1Mi", "1.5Gi", "64mb", "64 Mi", "1Ti", "Mi", "٣Mi", "1e3")
BAD = {
    "skip-inbound-ports": PORTS,
    "skip-outbound-ports": PORTS,
    "http-ports": PORTS,
    "expose-loopback-ports": PORTS,
    "skip-subnets": (
        "*", "0.0.0.0/0", "::/0", "10.0.0.0/7", "2001::/15", "10.0.0.1/8", "10.0.0/8",
        "10.0.0.0/33", "host", "11.0.0.0/8,12.0.0.0/32",
        "2002::/16,2001:db8::/64", "10.0.0.0/8;11.0.0.0/8", "fe80::%eth0/64", "10.0.0.0/-1",
    ),
    "upstreams": (
        "5432", "5432=db", "5432=db.prod", "db.prod:5432", "5432=db.prod:0", "0=db.prod:1",
        "5432=db.prod:65536", "1=a.b:1,1=c.d:1", "24102=db.prod:5432", "1=*.prod:1",
        "1=a.b.c.d:1", "1=10.0.0.1:80", "1=DB.prod:1", "1=db..prod:1", "1=db.prod:1 # x",
        "1=db_.prod:1", "1=-db.prod:1", "65536=db.prod:1",
    ),
    "source-address": ("", "Peer", "node", "peer,pod"),
    "mode": ("", "Redirect", "tproxy", "redirect,localhost", "redirect "+"x"),
    "plaintext": ("", "Allow", "true", "permissive", "*"),
    "plaintext-ports": (*PORTS, ""),
    "external": ("", "DENY", "false", "none"),
    "proxy-cpu-request": CPU,
    "proxy-cpu-limit": CPU,
    "proxy-memory-request": MEMORY,
    "proxy-memory-limit": (*MEMORY, "1Mi"),
    "proxy-log-level": ("", "INFO", "trace", "info,debug"),
    "workers": ("", "0", "17", "-1", "1.5", "auto", "٣", "1 2"),
    "shutdown-grace-period": ("", "30", "-1s", "2h", "61m", "3601s", "1.5m", "forever"),
}  # fmt: skip
UNKNOWN = (
    "image", "proxy-image", "command", "args", "capabilities", "user-volume", "proxy-uid", "env",
    "otlp-endpoint", "ca-address", "trust-domain", "exempt-by", "Mode", "skip_inbound_ports", "",
    "balance", "proxy-log-level ", "../mode",
)  # fmt: skip


def read(key: str, value: str, near: dict[str, str] | None = None) -> PodSettings:
    return read_settings({CONFIG_PREFIX + key: value}, near or {})


@pytest.mark.attack_row(34)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        (key, bad)
        for key, all_ in BAD.items()
        for bad in all_
        if bad or not key.startswith(("skip", "up", "http"))
    ],
)
def test_a_bad_value_is_refused_by_its_name_and_with_the_allowed_form(key: str, value: str) -> None:
    with pytest.raises(AnnotationRefused) as caught:
        read(key, value)
    text = str(caught.value)
    assert text.startswith(f"pod annotation {CONFIG_PREFIX}{key}: must be ")
    assert "\n" not in text.replace("\\n", "")
    assert len(text) < 700


def test_the_table_covers_every_annotation() -> None:
    names = {name.replace("_", "-") for name in PodSettings.__dataclass_fields__}
    assert set(BAD) == names


@pytest.mark.attack_row(34)
@pytest.mark.parametrize("key", UNKNOWN)
def test_an_unknown_annotation_is_refused_on_pod_and_namespace(key: str) -> None:
    for pod, near in (({CONFIG_PREFIX + key: "x"}, {}), ({}, {CONFIG_PREFIX + key: "x"})):
        with pytest.raises(AnnotationRefused, match="unknown"):
            read_settings(pod, near)


@pytest.mark.parametrize(
    ("key", "value", "written"),
    [
        ("skip-inbound-ports", " 5432 , 9000-9010,7-7 ", "5432,9000-9010,7-7"),
        ("skip-outbound-ports", "25", "25"),
        ("skip-outbound-ports", "", ""),
        ("skip-subnets", "192.0.2.0/24, 2001:DB8::/32", "192.0.2.0/24,2001:DB8::/32"),
        ("upstreams", "5432=db.prod:5432, 6379=redis-0.redis.prod:6379",
         "5432=db.prod:5432,6379=redis-0.redis.prod:6379"),
        ("mode", "localhost", "localhost"),
        ("plaintext", "allow", "allow"),
        ("external", "deny", "deny"),
        ("http-ports", "80,8080", "80,8080"),
        ("expose-loopback-ports", " 9090 ", "9090"),
        ("proxy-cpu-request", " 0.25 ", "0.25"),
        ("proxy-cpu-request", "2000m", "2000m"),
        ("proxy-cpu-limit", "100m", "100m"),
        ("proxy-memory-request", "64Mi", "64Mi"),
        ("proxy-memory-limit", "1Gi", "1Gi"),
        ("proxy-memory-limit", "1024Mi", "1024Mi"),
        ("proxy-memory-limit", "100000000", "100000000"),
        ("proxy-memory-limit", "1536Mi", "1536Mi"),
        ("proxy-log-level", "debug", "debug"),
        ("workers", "2", "2"),
        ("shutdown-grace-period", "2m", "2m"),
        ("source-address", "pod", "pod"),
    ],
)  # fmt: skip
def test_a_good_value_is_read_as_it_was_written_but_for_spaces(
    key: str, value: str, written: str
) -> None:
    assert getattr(read(key, value), key.replace("-", "_")) == written


def test_the_pods_own_annotation_wins_over_its_namespaces() -> None:
    near = {CONFIG_PREFIX + "mode": "localhost", CONFIG_PREFIX + "plaintext": "allow"}
    settings = read("mode", "redirect", near)
    assert (settings.mode, settings.plaintext) == ("redirect", "allow")


def test_a_namespaces_bad_annotation_is_refused_even_where_the_pod_has_its_own() -> None:
    with pytest.raises(AnnotationRefused, match="namespace annotation"):
        read("mode", "redirect", {CONFIG_PREFIX + "mode": "off"})


def test_a_limit_under_the_request_is_refused() -> None:
    with pytest.raises(AnnotationRefused, match="at least the request, 10m"):
        read("proxy-cpu-limit", "5m")


@pytest.mark.parametrize("key", sorted(BAD))
def test_a_setting_without_config_before_it_is_refused_on_a_pod(key: str) -> None:
    with pytest.raises(AnnotationRefused) as refused:
        read_settings({f"podlink.dev/{key}": "allow"}, {})
    said = f"pod annotation podlink.dev/{key}: counts for nothing; write {CONFIG_PREFIX}{key}"
    assert str(refused.value) == said


def test_what_podlink_itself_writes_on_a_pod_is_no_setting_astray() -> None:
    ours = (STATUS_ANNOTATION, CAPTURE_ANNOTATION, INJECT_LABEL, INJECTED_LABEL)
    assert read_settings(dict.fromkeys(ours, "x"), {}) == PodSettings()


def test_annotations_of_others_are_left_alone() -> None:
    assert read_settings({"example.com/image": "x"}, {"a": "b"}) == PodSettings()


@given(st.text(max_size=40))
def test_whatever_is_written_skips_none_of_our_ports_and_never_everything(value: str) -> None:
    try:
        ports = read("skip-inbound-ports", value).skip_inbound_ports
    except AnnotationRefused:
        return
    ranges = [part.partition("-") for part in ports.split(",") if part]
    covered = {p for low, _, high in ranges for p in range(int(low), int(high or low) + 1)}
    assert not covered & OWN_PORTS
    assert len(covered) <= 4096


@pytest.mark.parametrize(
    ("cpu", "memory", "resources"),
    [
        ("0.25", "64Mi", {"cpu": "250m", "memory": "64Mi"}),
        ("2000m", "1024Mi", {"cpu": "2", "memory": "1Gi"}),
        ("1.5", "100000000", {"cpu": "1500m", "memory": "100M"}),
        ("100m", "1536Mi", {"cpu": "100m", "memory": "1536Mi"}),
    ],
)
def test_an_amount_stands_in_the_pod_as_the_api_server_spells_it(
    cpu: str, memory: str, resources: dict[str, str]
) -> None:
    made = injected(annotated(proxy_cpu_request=cpu, proxy_memory_request=memory,
                              proxy_memory_limit="2G"))  # fmt: skip
    assert container(made, "podlink-proxy")["resources"]["requests"] == resources


@pytest.mark.parametrize("where", ["pod", "namespace"])
def test_plaintext_is_not_said_to_be_refused_where_nothing_is_captured(where: str) -> None:
    mode, deny = {CONFIG_PREFIX + "mode": "localhost"}, {CONFIG_PREFIX + "plaintext": "deny"}
    pod, near = (mode | deny, {}) if where == "pod" else (mode, deny)
    with pytest.raises(AnnotationRefused, match=f"{where} annotation .* mode localhost"):
        read_settings(pod, near)
    assert read_settings(mode, {}).mode == "localhost"
    assert read_settings(mode | {CONFIG_PREFIX + "plaintext": "allow"}, deny).plaintext == "allow"
    assert read_settings(deny, {}).plaintext == "deny"


@pytest.mark.attack_row(62)
@pytest.mark.parametrize("where", ["pod", "namespace", "default"])
def test_more_than_a_quarter_of_the_clusters_own_network_is_refused_with_a_way_out(
    where: str,
) -> None:
    wide, cidrs = "10.244.0.0/17", "10.244.0.0/16,10.96.0.0/12"
    said: dict[str, dict[str, str]] = {"pod": {}, "namespace": {}, "default": {}} | {
        where: {"skip-subnets": wide}
    }
    pod, near = (
        {CONFIG_PREFIX + key: value for key, value in said[one].items()}
        for one in ("pod", "namespace")
    )
    assert read_settings(pod, near, said["default"], "10.96.0.0/12").skip_subnets == wide
    with pytest.raises(AnnotationRefused) as caught:
        read_settings(pod, near, said["default"], cidrs)
    text = str(caught.value)
    assert text.startswith(f"{where} annotation config.podlink.dev/skip-subnets: ")
    assert "a quarter of 10.244.0.0/16" in text
    assert "skip-outbound-ports" in text and "clusterCidrs" in text
    if where != "pod":  # a pod may say less than its namespace or the mesh
        own = {CONFIG_PREFIX + "skip-subnets": "10.244.3.0/24"}
        assert read_settings(own, near, said["default"], cidrs).skip_subnets == "10.244.3.0/24"
