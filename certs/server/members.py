"""Which pods may have a leaf at all: those whose proxy holds it. Pure.

A token of our audience proves whose pod calls and nothing of what is in it: any container may mount
one. The leaf of a pod without a sidecar would be a member of the mesh that captures nothing, records
nothing and hears of no ban, so the spec must carry the proxy, by name, command and where its image
comes from. The first two are fixed once the pod exists; an image can be changed, and is looked at anew
each time. (docs/threat-model.md, attack 53.)
"""

from collections.abc import Collection, Mapping
from typing import Any

from kit import contract


def image_repository(image: str) -> str:
    """An image's name without tag and digest: `host:5000/podlink/podlink`."""
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}"


def carries_proxy(spec: Mapping[str, Any], images: Collection[str]) -> bool:
    """Whether one container of the pod is our proxy, from a repository of `images` (empty: any).

    Tags are not compared: pods of an earlier version renew their leaves from a newer CA. A pod on its
    node's network has no sidecar whatever it carries. Raises TypeError, AttributeError or KeyError for
    a spec that is none.
    """
    if spec.get("hostNetwork"):
        return False
    repositories = {image_repository(one) for one in images}
    return any(
        container["name"] == contract.PROXY_CONTAINER
        and list(container.get("command") or ()) == list(contract.PROXY_COMMAND)
        and not container.get("args")
        and (not images or image_repository(str(container.get("image"))) in repositories)
        for field in ("initContainers", "containers")
        for container in spec.get(field) or ()
    )


def lets_any_pod(labels: Mapping[str, Any]) -> bool:
    """Whether a namespace's labels say that its pods may have a leaf without a sidecar."""
    return labels.get(contract.ANY_POD_LABEL) == contract.ANY_POD_ALLOWED
