"""ADD, CHECK, DEL and VERSION (CNI specification 1.0.0): configuration on stdin, result on stdout.

A pod that is to be captured and cannot be fails its ADD: the runtime tears the sandbox down and tries
again. Pods without our annotation pass untouched.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cni.config import Call
from kit.contract import CAPTURE_ANNOTATION, SOURCE_ADDRESSES
from kit.ports import PortSet
from sidecar.capture.apply import CaptureFailed, put_in_place
from sidecar.capture.plan import TABLE, CapturePlan, bounded, parse_subnets

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CAPABILITY = "io.kubernetes.cri.pod-annotations"
_MAX_INPUT = 8 << 20
_INCOMPATIBLE, _UNREADABLE, _BAD_CONFIG, _INTERNAL = 1, 6, 7, 999

Conf = Mapping[str, Any]


class Refused(Exception):
    """The call fails; `code` is one of the specification's error codes."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def main() -> int:
    version = "1.0.0"
    try:
        conf = read_conf(sys.stdin.buffer.read(_MAX_INPUT))
        version = str(conf.get("cniVersion", version))
        print(json.dumps(answer(Call.from_env(), conf)))
    except Refused as e:
        print(json.dumps({"cniVersion": version, "code": e.code, "msg": f"podlink: {e}"}))
        return 1
    return 0


def read_conf(raw: bytes) -> Conf:
    """Raises Refused for what is no network configuration."""
    try:
        conf = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as e:
        raise Refused(_UNREADABLE, f"stdin is no JSON: {e}") from e
    if not isinstance(conf, dict):
        raise Refused(_UNREADABLE, "stdin is no JSON object")
    return conf


def answer(call: Call, conf: Conf) -> object:
    """What is to be printed. Raises Refused."""
    if call.command == "VERSION":
        return {"cniVersion": conf.get("cniVersion", "1.0.0"), "supportedVersions": VERSIONS}
    if conf.get("cniVersion", "1.0.0") not in VERSIONS:
        raise Refused(_INCOMPATIBLE, f"CNI version {conf.get('cniVersion')!r} is not known")
    if call.command == "DEL":
        return {}  # the rules go with the namespace; DEL must not fail on what is gone
    if call.command not in ("ADD", "CHECK"):
        raise Refused(_BAD_CONFIG, f"CNI_COMMAND {call.command!r} is not known")
    plan = plan_of(call, conf)
    if plan is not None:
        _in_pod(call, plan)
    # Chained: the result of the plugins before us is ours (specification, "Plugin chaining").
    if call.command == "CHECK":
        return {}
    previous = conf.get("prevResult")
    if not isinstance(previous, dict):
        raise Refused(
            _BAD_CONFIG, "prevResult is missing: chain this after the cluster's own plugin"
        )
    return previous


def plan_of(call: Call, conf: Conf) -> CapturePlan | None:
    """The rules that this pod is to have; None if it is none of podlink's. Pure. Raises Refused."""
    if call.pod_namespace in (conf.get("excludeNamespaces") or ()):
        return None
    annotations = (conf.get("runtimeConfig") or {}).get(CAPABILITY)
    if annotations is None:
        return None  # the runtime gave none: podlink-validate will fail the pods that need us
    raw = annotations.get(CAPTURE_ANNOTATION)
    if raw is None:
        return None
    try:
        said = json.loads(raw)
        return bounded(
            CapturePlan(
                "uid",
                PortSet.parse(said.get("skip-inbound-ports") or " "),
                PortSet.parse(said.get("skip-outbound-ports") or " "),
                parse_subnets(said.get("skip-subnets") or " "),
                _source_address(said.get("source-address") or "peer") == "peer",
            )
        )
    except (ValueError, AttributeError, TypeError) as e:
        where = f"{call.pod_namespace}/{call.pod}"
        raise Refused(_BAD_CONFIG, f"annotation {CAPTURE_ANNOTATION} of {where}: {e}") from e


def _source_address(said: object) -> object:
    """Raises ValueError."""
    if not isinstance(said, str) or said not in SOURCE_ADDRESSES:
        raise ValueError(f"source-address must be peer or pod, not {said!r:.40}")
    return said


def _in_pod(call: Call, plan: CapturePlan) -> None:
    """In a process of its own, which enters the pod's namespace: this one stays on the node."""
    if not call.netns:
        raise Refused(_BAD_CONFIG, "CNI_NETNS is empty")
    child = os.fork()
    if child == 0:
        os._exit(_enter(call, plan))
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status):
        what = "the rules are not as they must be" if call.command == "CHECK" else "no capture"
        raise Refused(_INTERNAL, f"{what} in {call.netns} (see the lines before this one)")


def _enter(call: Call, plan: CapturePlan) -> int:
    from cni.setns import enter_network

    try:
        enter_network(call.netns)
        if call.command == "ADD":
            if why_not := put_in_place(plan, call.nft):
                print(f"podlink: source address: {why_not}", file=sys.stderr)
        elif not in_place(call.nft):
            raise CaptureFailed(f"no table inet {TABLE}")
    except (OSError, CaptureFailed) as e:
        print(f"podlink: {e}", file=sys.stderr)
        return 1
    return 0


def in_place(nft: Sequence[str] = ("nft",)) -> bool:
    """Whether this network namespace has our table with both of its chains."""
    done = subprocess.run(
        [*nft, "-j", "list", "table", "inet", TABLE], capture_output=True, text=True
    )
    if done.returncode:
        return False
    chains = {one["chain"]["name"] for one in json.loads(done.stdout)["nftables"] if "chain" in one}
    return {"outbound", "inbound"} <= chains
