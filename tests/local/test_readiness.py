"""What counts as ready, case by case."""

import pytest

from local.objects import Object, template_hash
from local.readiness import Lack, addresses, lack_of_pod, lack_of_service, lack_of_workload

TEMPLATE: Object = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}


def _pod(name: str, *, ready: bool, phase: str = "Running", **metadata: object) -> Object:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}, **metadata},
        "status": {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [
                {
                    "name": "app",
                    "ready": ready,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 1s"}},
                }
            ],
        },
    }


def _owner(kind: str, wanted: int, generation: int = 1, /, **status: int) -> Object:
    return {
        "kind": kind,
        "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "generation": generation},
        "spec": {
            "replicas": wanted,
            "selector": {"matchLabels": {"app": "web"}},
            "template": TEMPLATE,
        },
        "status": status,
    }


@pytest.mark.parametrize(
    ("ready", "phase", "lacks"),
    [
        (True, "Running", None),
        (False, "Succeeded", None),
        (
            False,
            "Running",
            Lack("Running; app is waiting: CrashLoopBackOff (back-off 1s)"),
        ),
        (
            False,
            "Failed",
            Lack("Failed; app is waiting: CrashLoopBackOff (back-off 1s)", final=True),
        ),
    ],
)
def test_a_pod_is_ready_or_has_done_its_work(ready: bool, phase: str, lacks: Lack | None) -> None:
    assert lack_of_pod(_pod("a", ready=ready, phase=phase)) == lacks


def test_a_pod_that_ends_is_not_ready() -> None:
    leaving = _pod("a", ready=True, deletionTimestamp="2026-11-30T00:00:00Z")
    assert lack_of_pod(leaving) is not None


@pytest.mark.parametrize(
    ("generation", "status", "whole"),
    [
        (1, {}, False),
        (1, {"observedGeneration": 1}, False),
        (1, _counts := {"observedGeneration": 1, "replicas": 2, "availableReplicas": 2}, True),
        (1, _counts | {"updatedReplicas": 2}, True),
        (2, _counts | {"updatedReplicas": 2}, False),  # the status is of what was there before
        (1, _counts | {"updatedReplicas": 1}, False),
        (1, _counts | {"replicas": 3}, False),  # an old pod still answers
        (1, _counts | {"availableReplicas": 1}, False),
    ],
)
def test_a_deployment_is_ready_with_all_new_replicas_and_no_old_ones(
    generation: int, status: dict[str, int], whole: bool
) -> None:
    owner = _owner("Deployment", 2, generation, **status)
    assert (lack_of_workload(owner, []) is None) == whole


def test_a_workload_says_which_pod_lacks_what() -> None:
    owner = _owner("Deployment", 2, observedGeneration=1, replicas=2, availableReplicas=1)
    lack = lack_of_workload(owner, [_pod("a", ready=True), _pod("b", ready=False)])
    assert lack is not None
    assert lack.words == (
        "1 of 2 replicas are ready; "
        "pod shop/b: Running; app is waiting: CrashLoopBackOff (back-off 1s)"
    )


def test_no_replicas_wanted_is_none_lacking() -> None:
    owner = _owner("Deployment", 0, observedGeneration=1, replicas=0, availableReplicas=0)
    assert lack_of_workload(owner, []) is None


@pytest.mark.parametrize("revision", ["old", "new"])
def test_a_stateful_set_counts_its_newest_pods_only(revision: str) -> None:
    owner = _owner("StatefulSet", 1, observedGeneration=1)
    digest = template_hash(TEMPLATE) if revision == "new" else "another"
    labels = {"app": "web", "controller-revision-hash": digest}
    pod = _pod("web-0", ready=True, labels=labels, ownerReferences=[{"uid": "u1"}])
    stranger = _pod("other", ready=True, labels=labels)
    assert (lack_of_workload(owner, [pod, stranger]) is None) == (revision == "new")


def _service(**spec: object) -> Object:
    ports = [{"port": 80, "targetPort": 8080}]
    made = {"selector": {"app": "web"}, "clusterIPs": ["10.96.0.9"], "ports": ports, **spec}
    return {"kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": made}


def _slice(*pods: str, ready: bool = True, port: str = "", family: str = "IPv4") -> Object:
    return {
        "metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": family,
        "ports": [{"name": port, "port": 8080}],
        "endpoints": [
            {"addresses": ["10.244.0.3"], "conditions": {"ready": ready}, "targetRef": {"name": p}}
            for p in pods
        ],
    }


def test_a_service_is_ready_when_each_of_its_ready_pods_is_an_endpoint() -> None:
    pods = [_pod("a", ready=True), _pod("b", ready=True), _pod("c", ready=False)]
    assert lack_of_service(_service(), pods, [_slice("a", "b")]) is None
    lack = lack_of_service(_service(), pods, [_slice("a")])
    assert lack == Lack("1 of 2 ready pods are endpoints")
    assert lack_of_service(_service(), pods, [_slice("a", "b", ready=False)]) is not None
    assert lack_of_service(_service(), pods, []) is not None


@pytest.mark.parametrize(
    "service",
    [_service(selector=None), _service(type="ExternalName"), _service(selector={"app": "none"})],
)
def test_a_service_without_pods_of_its_own_lacks_nothing(service: Object) -> None:
    assert lack_of_service(service, [_pod("a", ready=True)], []) is None


def test_a_service_whose_pods_are_not_ready_is_not() -> None:
    assert lack_of_service(_service(), [_pod("a", ready=False)], []) is not None
    done = _pod("a", ready=False, phase="Succeeded")
    assert lack_of_service(_service(), [done], []) is None


def test_a_port_that_no_pod_names_is_said_at_once() -> None:
    service = _service(ports=[{"name": "web", "port": 80, "targetPort": "htpp"}])
    lack = lack_of_service(service, [_pod("a", ready=True)], [_slice("a", port="other")])
    assert lack == Lack("no pod of it has a port named 'htpp'", final=True)


def test_only_tcp_ports_with_endpoints_of_their_family_must_lead_somewhere() -> None:
    ports = [{"port": 80}, {"port": 53, "protocol": "UDP"}]
    service = _service(clusterIPs=["10.96.0.9", "fd96::9"], ports=ports)
    slices = [_slice("a"), _slice(family="IPv6")]
    assert addresses(service, slices) == [("10.96.0.9", 80)]
    assert addresses(_service(clusterIPs=["None"]), slices) == []
