"""Writes the golden pods anew: `python -m tests.injector.write_golden`, then read the diff."""

import json
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from injector.annotations import AnnotationRefused
from injector.guard import PodRefused
from injector.review import answer, read_review
from tests.injector.pods import MESH, annotated, changed, injected, namespace, pod

APP = {"name": "web", "image": "web:1"}
PROBED: dict[str, Any] = {
    "initContainers": [
        {
            "name": "cache",
            "image": "cache:1",
            "restartPolicy": "Always",
            "ports": [{"name": "main", "containerPort": 6379}],
            "startupProbe": {"tcpSocket": {"port": "main"}, "failureThreshold": 30},
        }
    ],
    "containers": [
        {
            **APP,
            "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 8443}],
            "startupProbe": {"httpGet": {"path": "/start", "port": "8080"}},
            "livenessProbe": {
                "httpGet": {
                    "path": "/live?deep=$(NO)",
                    "port": "http",
                    "scheme": "HTTP",
                    "httpHeaders": [{"name": "Host", "value": "shop"}],
                },
                "timeoutSeconds": 7,
                "periodSeconds": 3,
            },
            "readinessProbe": {"httpGet": {"port": 8443, "scheme": "HTTPS"}},
            "lifecycle": {
                "postStart": {"exec": {"command": ["true"]}},
                "preStop": {"httpGet": {"path": "/bye", "port": "http"}},
            },
        },
        {
            "name": "rpc",
            "image": "rpc:1",
            "livenessProbe": {"exec": {"command": ["true"]}},
            "readinessProbe": {"grpc": {"port": 50051, "service": "shop.Orders"}},
            "startupProbe": {"httpGet": {"host": "192.0.2.1", "port": 80}},
        },
    ],
}
CASES: dict[str, dict[str, Any]] = {
    "plain_pod": {"pod": pod()},
    "own_init_containers_and_volumes": {
        "pod": pod(initContainers=[{"name": "migrate", "image": "m:1"}], volumes=[{"name": "data"}])
    },
    "every_annotation": {
        "pod": annotated(
            skip_inbound_ports="9100", skip_outbound_ports="25,9000-9010",
            skip_subnets="192.0.2.0/24", upstreams="5432=db.prod:5432", plaintext="allow",
            external="deny", http_ports="8080", expose_loopback_ports="9090",
            proxy_cpu_request="100m", proxy_cpu_limit="1",
            proxy_memory_request="64Mi", proxy_memory_limit="128Mi", proxy_log_level="debug",
            workers="2", shutdown_grace_period="30s", source_address="pod",
        )
    },
    "localhost_mode_from_the_namespace": {
        "pod": pod(), "namespace": namespace(mode="localhost", upstreams="6379=redis.prod:6379")
    },
    "exempt_by_mark": {"pod": pod(), "mesh": {"exempt_by": "mark"}},
    "captured_by_the_cni_plugin": {
        "pod": annotated(skip_outbound_ports="25"), "mesh": {"capture_by": "cni"}
    },
    "a_collectors_secret": {
        "pod": pod(),
        "mesh": {
            "otlp_secret": "tempo", "otlp_secret_keys": ("ca.crt", "tls.crt", "tls.key", "headers")
        },
    },
    "already_injected": {"pod": injected(pod())},
    "probes_of_every_kind": {"pod": pod(**PROBED)},
    "probes_stay_in_localhost_mode": {
        "pod": pod(**PROBED), "namespace": namespace(mode="localhost")
    },
    "refused_probe_of_a_foreign_path": {
        "pod": pod(containers=[{**APP, "livenessProbe": {"httpGet": {
            "path": "/probe/web/liveness", "port": 24103}}}])
    },
    "host_network": {"pod": pod(hostNetwork=True)},
    "not_enrolled": {"pod": pod(), "namespace": namespace(None)},
    "refused_image_annotation": {"pod": annotated(proxy_image="evil:1")},
    "refused_skip_everything": {"pod": annotated(skip_inbound_ports="1-65535")},
    "refused_foreign_proxy": {
        "pod": pod(initContainers=[{"name": "podlink-proxy", "image": "evil:1"}])
    },
    "refused_proxy_uid": {
        "pod": pod(containers=[{**APP, "securityContext": {"runAsUser": 24100}}])
    },
}  # fmt: skip


def question(kind: str, **request: Any) -> dict[str, Any]:
    """An AdmissionReview as an API server sends it for a pod that a controller of `kind` makes."""
    made = request.pop("pod", None) or pod()
    made["metadata"]["ownerReferences"] = (
        [{"apiVersion": GROUPS[kind], "kind": kind, "name": "web", "uid": "u", "controller": True}]
        if kind != "Pod"
        else []
    )
    resource = {"group": "", "version": "v1", "resource": "pods"}
    about = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": resource, "requestResource": resource,
        "name": "", "namespace": "shop", "operation": "CREATE",
        "userInfo": {"username": "system:serviceaccount:kube-system:controller"},
        "object": made, "oldObject": None, "dryRun": False,
        "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        **request,
    }  # fmt: skip
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": about}


GROUPS = {
    "ReplicaSet": "apps/v1", "StatefulSet": "apps/v1", "DaemonSet": "apps/v1", "Job": "batch/v1",
    "Pod": "v1",
}  # fmt: skip
SIDECAR = {"name": "logs", "image": "logs:1", "restartPolicy": "Always"}
DEBUG = {"name": "debug", "image": "busybox", "targetContainerName": "web"}
JOB = {"containers": [{**APP, "name": "once"}], "restartPolicy": "Never"}
REVIEWS: dict[str, dict[str, Any]] = {
    "deployment": {"review": question("ReplicaSet")},
    "statefulset": {"review": question("StatefulSet", pod=pod(hostname="db-0", subdomain="db"))},
    "daemonset": {
        "review": question("DaemonSet", pod=pod(tolerations=[{"operator": "Exists"}]))
    },
    "job": {"review": question("Job", pod=pod(**JOB))},
    "job_without_native_sidecars": {
        "review": question("Job", pod=pod(**JOB)), "mesh": {"native_sidecars": False}
    },
    "deployment_without_native_sidecars": {
        "review": question("ReplicaSet", pod=pod(initContainers=[{"name": "wait", "image": "w"}])),
        "mesh": {"native_sidecars": False},
    },
    "cronjob": {
        "review": question("Job", pod=pod(**{**JOB, "restartPolicy": "OnFailure"}))
    },
    "existing_init_containers": {
        "review": question("ReplicaSet", pod=pod(initContainers=[{"name": "wait", "image": "w"}]))
    },
    "existing_native_sidecars": {
        "review": question("ReplicaSet", pod=pod(initContainers=[SIDECAR]))
    },
    "shared_process_namespace": {
        "review": question("ReplicaSet", pod=pod(shareProcessNamespace=True))
    },
    "host_network": {"review": question("DaemonSet", pod=pod(hostNetwork=True))},
    "windows_node_selector": {
        "review": question("ReplicaSet", pod=pod(nodeSelector={"kubernetes.io/os": "windows"}))
    },
    "ephemeral_container": {
        "review": question(
            "Pod", pod=injected(pod(ephemeralContainers=[DEBUG])), operation="UPDATE",
            subResource="ephemeralcontainers",
        )
    },
    "ephemeral_container_as_the_proxy": {
        "review": question(
            "Pod", operation="UPDATE", subResource="ephemeralcontainers",
            pod=injected(
                pod(ephemeralContainers=[{**DEBUG, "securityContext": {"runAsUser": 24100}}])
            ),
        )
    },
    "dry_run": {"review": question("Pod", dryRun=True)},
    "probes": {"review": question("ReplicaSet", pod=pod(**PROBED))},
    "update_of_a_pod": {"review": question("Pod", operation="UPDATE")},
}  # fmt: skip


def write_reviews() -> None:
    folder = Path(__file__).parent / "reviews"
    folder.mkdir(exist_ok=True)
    for name, case in REVIEWS.items():
        whole = {"namespace": namespace(), **case}
        whole["response"] = answered(whole)
        (folder / f"{name}.json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")


@contextmanager
def one_secret() -> Iterator[None]:
    """Hooks get one that is known, so that the golden files stay the same."""
    with mock.patch("injector.probes.new_secret", lambda: "0123456789abcdef" * 2):
        yield


@one_secret()
def answered(case: dict[str, Any]) -> dict[str, Any]:
    """The answer, with its patch readable."""
    mesh = replace(MESH, **case.get("mesh", {}))
    asked = read_review(json.dumps(case["review"]).encode())
    response = answer(asked, case["namespace"], mesh).response
    if "patch" in response["response"]:
        response["response"]["patch"] = json.loads(b64decode(response["response"]["patch"]))
    return response


@one_secret()
def main() -> None:
    write_reviews()
    folder = Path(__file__).parent / "golden"
    folder.mkdir(exist_ok=True)
    for name, case in CASES.items():
        whole = {"namespace": namespace(), **case}
        mesh = replace(MESH, **whole.get("mesh", {}))
        try:
            mutation = changed(whole["pod"], whole["namespace"], mesh)
        except (PodRefused, AnnotationRefused) as refused:
            whole["refused"] = str(refused)
        else:
            whole |= {"warnings": list(mutation.warnings), "patch": mutation.patch}
        (folder / f"{name}.json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
