"""podlink itself on a local cluster: the same objects as in a cluster, from `control_plane.yaml`."""

import base64
import json
import secrets
import time
from pathlib import Path

import yaml

from kit.clock import monotonic
from local.apiserver import policies
from local.cluster import Cluster
from local.errors import ApiError, TimedOut
from local.objects import Object

SYSTEM_NAMESPACE = "podlink-system"
_CONTROL_PLANE = Path(__file__).with_name("control_plane.yaml")
_LINK_POLICY = Path(__file__).parents[1] / "charts/podlink/files/linkpolicy.crd.yaml"
_PROGRAMS = ("podlink-ca", "podlink-registry", "podlink-injector", "podlink-traces")
_INJECTABLE_S = 10.0

_PROBE = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "probe", "labels": {"podlink.dev/inject": "enabled"}},
    "spec": {"containers": [{"name": "app", "image": "none", "command": ["true"]}]},
}
"""A pod that is only ever asked about, never made."""


def install(cluster: Cluster, timeout_s: float = 60.0) -> None:
    """Apply the control plane and wait until pods can be injected. Raises LocalError."""
    objects = _control_plane(cluster.single_uid)
    cluster.apply(_LINK_POLICY.read_text())
    cluster.apply(_token_secret())
    cluster.apply(objects)
    cluster.wait_ready(*_pods(cluster, timeout_s), timeout_s=timeout_s)
    _wait_injectable(cluster)


def _control_plane(single_uid: bool) -> str:
    objects = list(yaml.safe_load_all(_CONTROL_PLANE.read_text()))
    if not policies.available():
        # The stand-in cannot evaluate the guard here, and would refuse every pod: fail at the webhook.
        objects = without_guard(objects)
    if single_uid:
        # One UID for all: capture cannot tell the proxy by it, so the proxy marks its sockets.
        for one in objects:
            if one["kind"] == "Deployment" and one["metadata"]["name"] == "podlink-injector":
                (container,) = one["spec"]["template"]["spec"]["containers"]
                (exempt,) = (e for e in container["env"] if e["name"] == "PODLINK_EXEMPT_BY")
                exempt["value"] = "mark"
            for variable in (one.get("spec") or {}).get("variables") or ():
                if variable["name"] == "told":  # and so the guard lets in what the injector makes
                    told = json.loads(variable["expression"]) | {"PODLINK_EXEMPT_BY": "mark"}
                    variable["expression"] = json.dumps(told)
    return yaml.safe_dump_all(objects)


def without_guard(objects: list[Object]) -> list[Object]:
    """The same without admission policies; the webhook then refuses what it cannot be asked about."""
    kept = [one for one in objects if not one["kind"].startswith("ValidatingAdmissionPolicy")]
    for one in kept:
        if one["kind"] == "MutatingWebhookConfiguration":
            for webhook in one["webhooks"]:
                webhook["failurePolicy"] = "Fail"
    return kept


def _wait_injectable(cluster: Cluster) -> None:
    """Wait until the webhook answers: the Service may lead to the injector a moment after it is
    ready, and until then every pod of the mesh would be refused.
    """
    deadline = monotonic() + _INJECTABLE_S
    while True:
        try:
            cluster.client.call("POST", "/api/v1/namespaces/default/pods", _PROBE, dryRun="All")
            return
        except ApiError as e:
            if monotonic() > deadline:
                raise TimedOut(
                    f"pods cannot be injected {_INJECTABLE_S:g} s after podlink is ready: {e}"
                ) from e
        time.sleep(0.1)


def _pods(cluster: Cluster, timeout_s: float) -> list[str]:
    """The pods of the control plane, once its Deployments have made them."""
    for _ in range(int(timeout_s / 0.1)):
        found = cluster.select("Pod", SYSTEM_NAMESPACE)
        names = [pod["metadata"]["name"] for pod in found]
        if all(any(name.startswith(program) for name in names) for program in _PROGRAMS):
            return [f"{SYSTEM_NAMESPACE}/{name}" for name in names]
        time.sleep(0.1)
    raise TimedOut(f"the pods of {SYSTEM_NAMESPACE} were not created within {timeout_s:g} s")


def _token_secret() -> str:
    """What the CLI shows to the trace store; new with each cluster."""
    token = base64.b64encode(secrets.token_hex(32).encode()).decode()
    return f"""
apiVersion: v1
kind: Namespace
metadata: {{name: {SYSTEM_NAMESPACE}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: podlink-traces-token, namespace: {SYSTEM_NAMESPACE}}}
type: Opaque
data: {{token: {token}}}
"""
