"""The mutation, whole: golden pods, who is left alone, and that twice is the same as once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.annotations import AnnotationRefused
from injector.container import NO_API_TOKEN
from injector.guard import PodRefused
from kit.contract import INJECT_LABEL
from tests.injector.pods import (
    MESH,
    Raw,
    annotated,
    applied,
    changed,
    container,
    env,
    injected,
    namespace,
    pod,
)
from tests.injector.write_golden import answered, one_secret

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(GOLDEN.glob("*.json"))
EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"


@pytest.mark.attack_row(34)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@one_secret()
def test_the_patch_is_the_golden_one(path: Path) -> None:
    """Each file holds a pod, its namespace, and the patch or the refusal that it must get.

    After a wanted change, write them anew with `python -m tests.injector.write_golden`.
    """
    case = json.loads(path.read_text())
    mesh = replace(MESH, **case.get("mesh", {}))
    if "refused" in case:
        with pytest.raises(Exception) as caught:
            changed(case["pod"], case["namespace"], mesh)
        assert str(caught.value) == case["refused"]
        return
    mutation = changed(case["pod"], case["namespace"], mesh)
    assert list(mutation.warnings) == case["warnings"]
    assert mutation.patch == case["patch"]


REVIEWS = sorted((Path(__file__).parent / "reviews").glob("*.json"))


@pytest.mark.attack_row(34)
@pytest.mark.attack_row(36)
@pytest.mark.parametrize("path", REVIEWS, ids=lambda path: path.stem)
def test_the_review_gets_the_golden_answer(path: Path) -> None:
    """Each file holds an AdmissionReview, its namespace and the whole answer, its patch decoded."""
    case = json.loads(path.read_text())
    assert answered(case) == case["response"]


def test_there_are_golden_reviews() -> None:
    assert len(REVIEWS) >= 15


def test_there_are_golden_cases() -> None:
    assert len(CASES) >= 8


def test_the_order_is_capture_then_proxy_then_the_pods_own() -> None:
    own = {"name": "migrate", "image": "x"}
    made = injected(pod(initContainers=[own]))
    names = [one["name"] for one in made["spec"]["initContainers"]]
    assert names == ["podlink-capture", "podlink-proxy", "migrate"]
    assert made["spec"]["containers"] == pod()["spec"]["containers"]


def test_the_proxy_has_no_capability_and_its_own_identity() -> None:
    security = container(injected(pod()), "podlink-proxy")["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert (security["runAsUser"], security["runAsGroup"]) == (24100, 24100)
    assert security["runAsNonRoot"] is True
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False


def test_capture_may_change_the_pods_network_and_nothing_else() -> None:
    security = container(injected(pod()), "podlink-capture")["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert security["privileged"] is False


def test_exempting_by_mark_is_the_only_reason_for_a_proxy_with_net_admin() -> None:
    made = injected(pod(), mesh=replace(MESH, exempt_by="mark"))
    capabilities = container(made, "podlink-proxy")["securityContext"]["capabilities"]
    assert capabilities == {"drop": ["ALL"], "add": ["NET_ADMIN"]}


def test_without_redirection_nothing_is_captured() -> None:
    made = injected(annotated(mode="localhost", upstreams="5432=db.prod:5432"))
    assert [one["name"] for one in made["spec"]["initContainers"]] == ["podlink-proxy"]
    assert env(made, "podlink-proxy")["PODLINK_UPSTREAMS"] == "5432=db.prod:5432"


def test_annotations_reach_the_containers() -> None:
    made = injected(
        annotated(skip_inbound_ports="9100", skip_outbound_ports="25", proxy_memory_limit="1Gi"),
        namespace(plaintext="allow"),
    )
    assert env(made, "podlink-capture")["PODLINK_SKIP_OUTBOUND_PORTS"] == "25"
    assert env(made, "podlink-proxy")["PODLINK_SKIP_INBOUND_PORTS"] == "9100"
    assert env(made, "podlink-proxy")["PODLINK_PLAINTEXT"] == "allow"
    assert container(made, "podlink-proxy")["resources"]["limits"] == {"memory": "1Gi"}


def test_the_token_and_the_bundle_are_mounted_into_the_proxy_only() -> None:
    made = injected(pod())
    mounts = {m["name"] for m in container(made, "podlink-proxy")["volumeMounts"]}
    assert mounts == {"podlink-token", "podlink-bundle", "podlink-run"}
    assert container(made, "podlink-capture")["volumeMounts"] == [NO_API_TOKEN], (
        "in a token's place"
    )
    assert "volumeMounts" not in container(made, "web")


def test_a_collectors_secret_is_for_the_proxy_alone_and_not_in_the_pods_spec() -> None:
    keys = ("ca.crt", "tls.crt", "tls.key", "headers")
    mesh = replace(MESH, otlp_secret="tempo", otlp_secret_keys=keys)
    made = injected(pod(), mesh=mesh)
    [volume] = [v for v in made["spec"]["volumes"] if v["name"] == "podlink-otlp"]
    assert volume["secret"]["optional"] is True
    assert [item["key"] for item in volume["secret"]["items"]] == ["ca.crt", "tls.crt", "tls.key"]
    proxy = container(made, "podlink-proxy")
    assert "podlink-otlp" in {m["name"] for m in proxy["volumeMounts"]}
    said = {one["name"]: one for one in proxy["env"]}
    path = said["OTEL_EXPORTER_OTLP_CLIENT_KEY"]["value"]
    assert path == "/var/run/secrets/podlink/otlp/tls.key"
    headers = said["OTEL_EXPORTER_OTLP_HEADERS"]["valueFrom"]["secretKeyRef"]
    assert headers == {"name": "tempo", "key": "headers", "optional": True}
    others = [c for c in made["spec"]["initContainers"] + made["spec"]["containers"] if c != proxy]
    assert "podlink-otlp" not in json.dumps(others)
    only = replace(MESH, otlp_secret="tempo", otlp_secret_keys=("headers",))
    assert "podlink-otlp" not in json.dumps(injected(pod(), mesh=only))


@pytest.mark.parametrize(
    ("near", "own", "wanted"),
    [
        ("enabled", None, True),
        ("enabled", "disabled", False),
        ("enabled", "enabled", True),
        (None, "enabled", True),
        ("disabled", "enabled", True),
        ("disabled", None, False),
        (None, None, False),
        ("true", None, False),
    ],
)
def test_the_pods_label_wins_over_its_namespaces(
    near: str | None, own: str | None, wanted: bool
) -> None:
    raw = pod()
    if own is not None:
        raw["metadata"]["labels"][INJECT_LABEL] = own
    mutation = changed(raw, namespace(near))
    assert bool(mutation.patch) is wanted
    assert mutation.skipped == ("" if wanted else "not_enrolled")


@pytest.mark.parametrize("value", ["true", "Enabled", "", "yes"])
def test_a_pod_label_that_is_neither_is_refused_and_not_guessed(value: str) -> None:
    raw = pod()
    raw["metadata"]["labels"][INJECT_LABEL] = value
    with pytest.raises(PodRefused, match="must be enabled or disabled"):
        changed(raw)


@pytest.mark.attack_row(36)
@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"hostNetwork": True}, "host_network"),
        ({"os": {"name": "windows"}}, "windows"),
        ({"nodeSelector": {"kubernetes.io/os": "windows"}}, "windows"),
    ],
)
def test_pods_that_cannot_have_a_sidecar_are_left_alone_with_a_warning(
    spec: dict[str, Any], why: str
) -> None:
    mutation = changed(pod(**spec))
    assert (mutation.patch, mutation.skipped) == ([], why)
    assert mutation.warnings[0].startswith("podlink: no sidecar, since")


def test_the_mirror_of_a_static_pod_is_left_alone() -> None:
    raw = pod()
    raw["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    assert changed(raw).skipped == "static_pod"


def test_volumes_that_the_autoscaler_may_drop_are_added_to() -> None:
    raw = pod()
    raw["metadata"]["annotations"] = {EVICT: "cache"}
    assert injected(raw)["metadata"]["annotations"][EVICT] == "cache,podlink-run"


names = st.text("abcxyz", min_size=1, max_size=8)
own_containers = st.lists(names, unique=True, min_size=1, max_size=3).map(
    lambda all_: [{"name": name, "image": name} for name in all_]
)
pods = st.builds(
    lambda apps, inits, volumes, labels, annotations: {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": {"containers": apps, "initContainers": inits, "volumes": volumes},
    },
    own_containers,
    st.none() | st.just([]) | own_containers,
    st.none() | st.lists(names, unique=True).map(lambda all_: [{"name": n} for n in all_]),
    st.none() | st.dictionaries(names, names, max_size=3),
    st.none() | st.dictionaries(names | st.sampled_from(["a/b", "a~1b", EVICT]), names, max_size=3),
)


@given(pods, st.sampled_from(["redirect", "localhost"]))
def test_injecting_twice_is_the_same_as_once(raw: Raw, mode: str) -> None:
    near = namespace(mode=mode)
    once = injected(raw, near)
    again = changed(once, near)
    assert again.patch == []
    assert applied(once, again) == once


@given(pods)
def test_a_patch_only_adds_and_everything_that_was_there_stays(raw: Raw) -> None:
    made = injected(raw)
    for field in ("containers", "initContainers", "volumes"):
        before = raw["spec"].get(field) or []
        after = made["spec"].get(field) or []
        assert [one for one in after if one in before] == before
    for field in ("labels", "annotations"):
        before = raw["metadata"].get(field) or {}
        after = made["metadata"][field]
        assert {key: after[key] for key in before if key != EVICT} == {
            key: value for key, value in before.items() if key != EVICT
        }


@pytest.mark.attack_row(62)
def test_a_pod_that_would_skip_the_clusters_own_network_is_refused() -> None:
    mesh = replace(MESH, cluster_cidrs="10.244.0.0/16,fd00:10:96::/112")
    for text in ("10.244.0.0/16", "10.244.0.0/17", "fd00:10:96::/96"):
        with pytest.raises(AnnotationRefused, match="a network of the cluster"):
            injected(annotated(skip_subnets=text), namespace(), mesh)
    injected(annotated(skip_subnets="10.245.0.0/16,10.244.7.0/24,fd00:10:96::7"), namespace(), mesh)
