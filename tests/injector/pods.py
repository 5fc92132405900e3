"""Pods, namespaces and a JSON patch applier for the injector's tests."""

import copy
from collections.abc import Mapping
from typing import Any

from injector.container import MeshSettings
from injector.mutate import Mutation, mutate
from kit import contract

Raw = dict[str, Any]

MESH = MeshSettings(
    image="podlink/podlink:0.1.0",
    trust_domain="cluster.local",
    ca_address="podlink-ca.podlink-system.svc:24110",
    registry_address="podlink-registry.podlink-system.svc:24111",
    otlp_endpoint="",
    cluster_cidrs="10.0.0.0/8",
    exempt_by="uid",
)


def namespace(inject: str | None = "enabled", **annotations: str) -> Raw:
    labels = {} if inject is None else {contract.INJECT_LABEL: inject}
    named = {contract.CONFIG_PREFIX + key.replace("_", "-"): v for key, v in annotations.items()}
    return {"metadata": {"name": "shop", "labels": labels, "annotations": named}}


def pod(**spec: Any) -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "web:1"}], **spec},
    }


def annotated(**annotations: str) -> Raw:
    made = pod()
    named = {contract.CONFIG_PREFIX + key.replace("_", "-"): v for key, v in annotations.items()}
    made["metadata"]["annotations"] = named
    return made


def injected(raw: Raw, near: Raw | None = None, mesh: MeshSettings = MESH) -> Raw:
    return applied(raw, changed(raw, near, mesh))


def changed(raw: Raw, near: Raw | None = None, mesh: MeshSettings = MESH) -> Mutation:
    return mutate(raw, namespace() if near is None else near, mesh)


def applied(raw: Raw, mutation: Mutation) -> Raw:
    """RFC 6902 for `add`, which is all that the injector may use."""
    made = copy.deepcopy(raw)
    for operation in mutation.patch:
        assert operation["op"] == "add"
        *way, last = (
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
        )
        target: Any = made
        for step in way:
            target = target[int(step)] if isinstance(target, list) else target[step]
        value = copy.deepcopy(operation["value"])
        if isinstance(target, list):
            target.insert(len(target) if last == "-" else int(last), value)
        else:
            target[last] = value
    return made


def container(raw: Mapping[str, Any], name: str) -> Raw:
    both = [*raw["spec"].get("initContainers", ()), *raw["spec"]["containers"]]
    (found,) = (one for one in both if one["name"] == name)
    assert isinstance(found, dict)
    return found


def env(raw: Mapping[str, Any], name: str) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container(raw, name)["env"]}
