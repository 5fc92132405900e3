"""What the container runtime says by the environment (CNI specification, "Parameters")."""

import os
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Call:
    command: str
    netns: str
    interface: str
    pod_namespace: str
    """From CNI_ARGS, K8S_POD_NAMESPACE; "" where the runtime is not Kubernetes'."""
    pod: str
    nft: tuple[str, ...]
    """How to run nft on this node: the script beside the plugin says it; else by PATH."""

    @classmethod
    def from_env(cls) -> Self:
        pairs = (one.partition("=") for one in os.environ.get("CNI_ARGS", "").split(";"))
        args = {key: value for key, _, value in pairs}
        return cls(
            os.environ.get("CNI_COMMAND", ""),
            os.environ.get("CNI_NETNS", ""),
            os.environ.get("CNI_IFNAME", ""),
            args.get("K8S_POD_NAMESPACE", ""),
            args.get("K8S_POD_NAME", ""),
            tuple(os.environ.get("PODLINK_NFT", "nft").split()),
        )
