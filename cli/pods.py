"""Names of pods on the command line, and what the API says of one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import click

from cli.cluster import ClusterUnavailable, explained
from kit.contract import PROXY_CONTAINER
from kit.kube import Kube, KubeError

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_POD = re.compile(rf"(?P<ns>{_LABEL})/(?P<name>{_LABEL}(\.{_LABEL})*)(:(?P<port>[0-9]{{1,5}}))?")


@dataclass(frozen=True, slots=True)
class PodName:
    namespace: str
    name: str
    port: int = 0
    """0: none was named."""

    @classmethod
    def parse(cls, raw: str, *, with_port: bool = False) -> Self:
        """`namespace/name` or `namespace/name:port`. Raises click.BadParameter."""
        found = _POD.fullmatch(raw)
        port = int(found["port"] or 0) if found else 0
        if found is None or (found["port"] and (not with_port or not 0 < port < 65536)):
            form = "namespace/pod or namespace/pod:port" if with_port else "namespace/pod"
            raise click.BadParameter(f"{raw!r} is not {form}")
        return cls(found["ns"], found["name"], port)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


async def read_pod(kube: Kube, pod: PodName) -> dict[str, Any]:
    """The Pod object. Raises ClusterUnavailable, in one line."""
    try:
        return await kube.get(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
    except KubeError as e:
        if e.status == 404:
            raise ClusterUnavailable(
                f"there is no pod {pod}; kubectl -n {pod.namespace} get pods lists them"
            ) from e
        raise explained(e, f"read pod {pod}", f"`get` on pods in namespace {pod.namespace}") from e


def is_meshed(pod: Mapping[str, Any]) -> bool:
    """The spec carries our proxy; a label proves nothing."""
    spec = pod["spec"]
    containers = (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
    return any(c.get("name") == PROXY_CONTAINER for c in containers)


def identity_of(pod: Mapping[str, Any], trust_domain: str = "cluster.local") -> str:
    account = pod["spec"].get("serviceAccountName") or "default"
    return f"spiffe://{trust_domain}/ns/{pod['metadata']['namespace']}/sa/{account}"


def addresses_of(pod: Mapping[str, Any]) -> list[str]:
    status = pod.get("status") or {}
    listed = [a["ip"] for a in status.get("podIPs") or () if a.get("ip")]
    return listed or ([status["podIP"]] if status.get("podIP") else [])
