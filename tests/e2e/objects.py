"""Kubernetes objects for the end-to-end tests: ordinary manifests, as any user would write them."""

from collections.abc import Mapping, Sequence
from typing import Any

Object = dict[str, Any]

MESH, PLAIN = "mesh", "plain"
"""The namespace whose pods are injected, and the one whose pods are not."""


def namespace(name: str, *, injected: bool) -> Object:
    labels = {"podlink.dev/inject": "enabled"} if injected else {}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def account(name: str, where: str = MESH) -> Object:
    metadata = {"name": name, "namespace": where}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def config_map(name: str, files: Mapping[str, str], where: str = MESH) -> Object:
    metadata = {"name": name, "namespace": where}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(files)}


def container(
    command: Sequence[str],
    *,
    listens: int = 0,
    host: str = "127.0.0.1",
    port_name: str = "",
    mounts: Mapping[str, str] | None = None,
    **more: Any,
) -> Object:
    """The app's container; ready once it `listens` on that port of `host`."""
    made: Object = {"name": "app", "image": "none", "command": list(command), **more}
    if listens:
        made["ports"] = [{"containerPort": listens, **({"name": port_name} if port_name else {})}]
        # Not a readiness probe: that would go on connecting while a test counts connections.
        made["startupProbe"] = {
            "exec": {"command": ["nc", "-z", host, str(listens)]},
            "periodSeconds": 1,
            "failureThreshold": 1000,
        }
    if mounts:
        made["volumeMounts"] = [{"name": n, "mountPath": p} for n, p in mounts.items()]
    return made


def pod(
    name: str,
    app: Object | None = None,
    *,
    where: str = MESH,
    config: Mapping[str, str] | None = None,
    **spec: Any,
) -> Object:
    """A pod with the label `app: <name>`; it sleeps unless told. `config` are podlink's annotations."""
    annotations = {f"config.podlink.dev/{key}": value for key, value in (config or {}).items()}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": where,
            "labels": {"app": name},
            "annotations": annotations,
        },
        "spec": {
            "containers": [app or container(["sleep", "86400"])],
            "terminationGracePeriodSeconds": 1,
            **spec,
        },
    }


def service(
    name: str, *ports: int | Mapping[str, Any], app: str = "", where: str = MESH, **spec: Any
) -> Object:
    """A Service of the pods with the label `app: <app or name>`."""
    entries = [{"port": p} if isinstance(p, int) else dict(p) for p in ports]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": where},
        "spec": {"selector": {"app": app or name}, "ports": entries, **spec},
    }


def serving(command: str, port: int, *arguments: object, **more: Any) -> Object:
    """The container of one of the servers of tests/e2e/apps.py."""
    words = ["python", "-m", "tests.e2e.apps", command, str(port), *map(str, arguments)]
    return container(words, listens=port, **more)
