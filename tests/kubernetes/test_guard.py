"""The guard's policies and the LinkPolicy kind, enforced by a real API server: no CEL of ours."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from injector.mutate import difference
from tests.charts.conftest import Render
from tests.charts.test_chart import find
from tests.charts.test_guard import OTHERS, labelled, meshed
from tests.charts.test_guard_differential import bases, changed, mesh_of, well_typed
from tests.injector.pods import annotated, container, pod
from tests.kubernetes.objects import Objects, until
from tests.kubernetes.real_api import Answer, Object, RealApi

GUARDS = ("podlink-guard", "podlink-guard-images")
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
IN, OUT = "guarded", "unguarded"
STRATEGIC = "application/strategic-merge-patch+json"
APP = {"name": "web", "image": "web:1"}


@contextmanager
def guard(objects: Objects, made: list[Object]) -> Iterator[None]:
    """The guard in force until the block ends."""
    try:
        for one in made:
            assert objects.create(one).status == 201
        # The API server compiles a policy a moment after it was written.
        until(lambda: put(objects, pod()).status == 403, "the guard is in force")
        until(lambda: put(objects, pod(), OUT).status == 201, "and nothing else")
        yield
    finally:
        for one in made:
            objects.delete(one)
        until(lambda: put(objects, pod()).status == 201, "the guard is out of force")


def made_by(render: Render, **values: Any) -> list[Object]:
    """Policies and bindings of the chart with these values."""
    return [
        find(render(values, minor=36).objects, kind, name)
        for kind in ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
        for name in GUARDS
    ]


@contextmanager
def chosen(
    objects: Objects, render: Render, probe: Callable[[], bool], **values: Any
) -> Iterator[None]:
    """The guard changed to these values, as an upgrade does it; in force once `probe` says so."""
    try:
        replace(objects, made_by(render, **values))
        until(probe, "the changed guard is in force")
        yield
    finally:
        replace(objects, made_by(render))
        until(lambda: not probe(), "the guard is as it was")


def replace(objects: Objects, policies: list[Object]) -> None:
    for one in policies:
        path = f"{objects.collection(one)}/{one['metadata']['name']}"
        body = {"spec": one["spec"]}
        objects.api.need("PATCH", path, body, kind="application/merge-patch+json")


def put(objects: Objects, raw: Object, where: str = IN, **query: str) -> Answer:
    made = copy.deepcopy(raw)
    made["metadata"] = {**made["metadata"], "namespace": where}
    query = {"dryRun": "All"} | query
    return objects.create(made, **{k: v for k, v in query.items() if v})


@pytest.fixture(scope="module")
def namespaces(objects: Objects) -> Iterator[None]:
    objects.namespace(IN, **{"podlink.dev/inject": "enabled"})
    objects.namespace(OUT)
    yield
    objects.drop_namespace(IN)
    objects.drop_namespace(OUT)


@pytest.fixture(scope="module")
def guarded(objects: Objects, rendered: Render, namespaces: None) -> Iterator[Objects]:
    with guard(objects, made_by(rendered)):
        yield objects


def test_the_api_server_finds_no_fault_with_the_types_of_the_expressions(
    real: RealApi, guarded: Objects
) -> None:
    if not real.has_controllers:
        pytest.skip("the controller that checks the types of policies is not here")
    for name in GUARDS:

        def checked(name: str = name) -> Any:
            one = real.need("GET", f"{POLICIES}/{name}")
            status = one.get("status") or {}
            return (
                status
                if status.get("observedGeneration") == one["metadata"]["generation"]
                else None
            )

        status = until(checked, f"the types of {name} are checked")
        assert not (status.get("typeChecking") or {}).get("expressionWarnings"), status


@pytest.mark.parametrize(
    "raw",
    [
        meshed(),
        meshed(annotated(mode="localhost", upstreams="5432=db.prod:5432")),
        meshed(pod(initContainers=[{"name": "migrate", "image": "m"}])),
        meshed(pod(containers=[{**APP, "livenessProbe": {"httpGet": {"port": 80}}}])),
        meshed(pod(securityContext={"runAsUser": 1000, "supplementalGroups": [5]})),
        meshed(native_sidecars=False),
        pod(hostNetwork=True),
        pod(nodeSelector={"kubernetes.io/os": "windows"}),
        pod(os={"name": "windows"}),
        labelled("disabled"),
    ],
)
def test_what_the_injector_lets_in_passes(guarded: Objects, raw: Object) -> None:
    answer = put(guarded, raw)
    assert (answer.status, answer.said, answer.warnings) == (201, "", ())


@pytest.mark.attack_row(37)
@pytest.mark.fault_row("webhook-down")
def test_a_pod_without_its_sidecar_is_refused_where_its_namespace_or_its_label_enrols_it(
    guarded: Objects,
) -> None:
    assert "has no sidecar" in put(guarded, pod()).said
    assert "has no sidecar" in put(guarded, labelled("enabled"), OUT).said
    evil = pod(hostPID=True, securityContext={"runAsUser": 24100})
    assert put(guarded, evil, OUT).status == 201, "outside of the mesh it has no say"


@pytest.mark.attack_row(35)
@pytest.mark.attack_row(36)
@pytest.mark.parametrize(("said", "raw"), OTHERS)
def test_what_would_get_round_the_mesh_is_refused(guarded: Objects, said: str, raw: Object) -> None:
    answer = put(guarded, without_nulls(raw))
    assert answer.status in (403, 422), answer
    if answer.status == 422:  # the API server itself knows better: a sidecar's probes need Always
        assert "probe" in answer.said.lower() and said == "has no sidecar"
    else:
        assert "podlink-guard" in answer.said and said in answer.said


@pytest.mark.attack_row(62)
@pytest.mark.timeout(300)
def test_of_a_changed_pod_the_guard_says_what_the_injector_would(
    guarded: Objects, rendered: Render
) -> None:
    """What tests/charts/test_guard_differential.py has Google's CEL judge, by the API server's."""
    mesh = mesh_of(rendered(None, minor=36).objects)
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    made = [raw for raw, where in bases(mesh) if not where["metadata"].get("annotations")]
    near = {"metadata": {"name": IN, "labels": {"podlink.dev/inject": "enabled"}}}
    for raw in made:
        answer = put(guarded, raw)
        assert answer.status == 201, answer
    judged = {True: 0, False: 0}
    for number in range(300):
        raw = changed(dice.choice(made), dice)
        if not well_typed(raw):
            continue
        answer = put(guarded, raw)
        if answer.status not in (201, 403):
            continue  # the API server itself will not have it
        why = difference(raw, near, mesh)
        said = f"seed {seed}, change {number}: injector {why!r}, guard {answer.said!r}"
        assert (answer.status == 403) == bool(why), f"{said}: {raw}"
        judged[not why] += 1
    assert judged[False] > 20, judged


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


@pytest.fixture
def running(guarded: Objects) -> Iterator[str]:
    """The path of a meshed pod that is there already."""
    assert put(guarded, meshed(), dryRun="").status == 201
    path = f"/api/v1/namespaces/{IN}/pods/web"
    yield path
    guarded.api.call("DELETE", path, gracePeriodSeconds="0")


def debug(objects: Objects, path: str, **fields: Any) -> Answer:
    """`kubectl debug`, as a dry run."""
    one = {"name": "d", "image": "busybox", **fields}
    body = {"spec": {"ephemeralContainers": [one]}}
    return objects.api.call(
        "PATCH", f"{path}/ephemeralcontainers", body, kind=STRATEGIC, dryRun="All"
    )


@pytest.mark.attack_row(36)
@pytest.mark.attack_row(41)
def test_a_debug_container_may_neither_pass_for_the_proxy_nor_share_its_processes(
    guarded: Objects, running: str
) -> None:
    assert debug(guarded, running).status == 200
    assert debug(guarded, running, targetContainerName="web").status == 200
    for name in ("podlink-proxy", "podlink-capture"):
        assert "process namespace" in debug(guarded, running, targetContainerName=name).said
    assert "24100" in debug(guarded, running, securityContext={"runAsUser": 24100}).said
    added = {"capabilities": {"add": ["NET_ADMIN"]}}
    assert "NET_ADMIN" in debug(guarded, running, securityContext=added).said
    assert "NET_ADMIN" in debug(guarded, running, securityContext={"privileged": True}).said


def image(objects: Objects, path: str, kind: str, name: str, image: str) -> Answer:
    body = {"spec": {kind: [{"name": name, "image": image}]}}
    return objects.api.call("PATCH", path, body, kind=STRATEGIC, dryRun="All")


@pytest.mark.attack_row(35)
def test_the_image_of_podlinks_containers_stays_and_an_apps_may_change(
    guarded: Objects, running: str
) -> None:
    for name in ("podlink-proxy", "podlink-capture"):
        answer = image(guarded, running, "initContainers", name, "evil:1")
        assert answer.status == 403 and "podlink-guard-images" in answer.said
    assert image(guarded, running, "containers", "web", "web:2").status == 200
    labels = {"metadata": {"labels": {"seen": "yes"}}}
    assert guarded.api.call("PATCH", running, labels, kind=STRATEGIC).status == 200


def test_a_namespace_that_admission_leaves_alone_is_left_alone(guarded: Objects) -> None:
    def enrol(wish: str | None) -> None:
        body = {"metadata": {"labels": {"podlink.dev/inject": wish}}}
        path = "/api/v1/namespaces/kube-system"
        guarded.api.need("PATCH", path, body, kind="application/merge-patch+json")

    enrol("enabled")
    try:
        made = pod(automountServiceAccountToken=False)
        assert "podlink" not in put(guarded, made, "kube-system").said
    finally:
        enrol(None)


@pytest.mark.attack_row(37)
def test_an_operator_may_close_the_ways_out_of_the_mesh(guarded: Objects, rendered: Render) -> None:
    def closed() -> bool:
        return "has no sidecar" in put(guarded, labelled("disabled")).said

    values = {"guard": {"optOut": "deny", "hostNetwork": "deny"}}
    with chosen(guarded, rendered, closed, **values):
        assert "has no sidecar" in put(guarded, pod(hostNetwork=True)).said
        assert put(guarded, meshed()).status == 201


@pytest.mark.attack_row(35)
def test_what_else_a_chart_may_choose_is_enforced_too(guarded: Objects, rendered: Render) -> None:
    def by_plugin(**settings: Any) -> Answer:
        return put(guarded, meshed(capture_by="cni", **settings))

    values = {
        "cni": {"enabled": True}, "nativeSidecars": "true",
        "guard": {"alsoAllowImages": ["podlink/podlink:0.0.9"]},
    }  # fmt: skip
    with chosen(guarded, rendered, lambda: by_plugin().status == 201, **values):
        assert by_plugin(image="podlink/podlink:0.0.9").status == 201
        assert "would not be captured" in put(guarded, meshed()).said
        assert "has no sidecar" in by_plugin(native_sidecars=False).said
        assert "image or command" in by_plugin(image="podlink/podlink:0.0.8").said


def test_what_the_api_server_gives_back_is_what_was_put_in(guarded: Objects) -> None:
    """It keeps the sidecar a sidecar: nothing of it is dropped by a version that does not know it."""
    raw = meshed()
    found = put(guarded, raw).body
    for name in ("podlink-capture", "podlink-proxy"):
        sent, got = container(raw, name), container(found, name)
        assert {key: got[key] for key in ("name", "image", "command", "securityContext")} == {
            key: sent[key] for key in ("name", "image", "command", "securityContext")
        }
    assert container(found, "podlink-proxy")["restartPolicy"] == "Always"
