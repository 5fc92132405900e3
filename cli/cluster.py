"""The cluster that a command is about, as kubectl would choose it; and errors that say what to do."""

import os
from pathlib import Path

import yaml
from kubernetes.aio.config import ConfigException

from kit.kube import Kube, KubeError
from kit.settings import Settings
from kit.yaml_text import documents

_DEFAULT_KUBECONFIG = "~/.kube/config"
HOW = "pass --kubeconfig or set KUBECONFIG (podlink local kubeconfig prints one)"


class ClusterUnavailable(Exception):
    """The cluster cannot be asked; one line that says what to do."""


async def open_kube(kubeconfig: str | None, context: str | None) -> Kube:
    """A client for the chosen cluster; close it. Raises ClusterUnavailable."""
    given = kubeconfig or Settings().optional("KUBECONFIG") or _DEFAULT_KUBECONFIG
    paths = [Path(path).expanduser() for path in given.split(os.pathsep) if path]
    where = os.pathsep.join(map(str, paths))
    if not any(path.exists() for path in paths):
        raise ClusterUnavailable(f"no kubeconfig at {where}: {HOW}")
    try:
        for path in paths:  # its reader has no bounds of its own
            if path.exists():
                documents(path.read_text())
        return await Kube.from_kubeconfig(kubeconfig, context)
    except (ConfigException, OSError) as e:
        said = str(e).partition("\n")[0][:200]
        raise ClusterUnavailable(f"no usable kubeconfig at {where} ({said}): {HOW}") from e
    except (
        yaml.YAMLError,
        AttributeError,
        TypeError,
        LookupError,
        ValueError,
        RecursionError,
    ) as e:
        raise ClusterUnavailable(f"{where} is not a kubeconfig: {HOW}") from e


def unreachable(error: KubeError) -> str:
    """What to say of a cluster that does not answer (status 0). Pure."""
    if error.reason != "Unreachable":
        return f"the API server gave no usable answer ({error})"
    return f"{error}; does the cluster run, and is it the one of this kubeconfig and context?"


def explained(error: KubeError, doing: str, takes: str) -> ClusterUnavailable:
    """`doing` is what failed ("read the ledger"), `takes` the right that it needs."""
    match error.status:
        case 0:
            return ClusterUnavailable(unreachable(error))
        case 401:
            return ClusterUnavailable("the API server does not know you; renew your credentials")
        case 403:
            return ClusterUnavailable(f"you may not {doing}: it takes {takes} ({error})")
        case _:
            return ClusterUnavailable(f"cannot {doing}: {error}")
