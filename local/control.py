"""The caller's end of the control socket: run a command with this process's own descriptors."""

import json
import socket
from collections.abc import Sequence
from typing import Any

from local.errors import ApiError, LocalError, NotRunning, TimedOut
from local.state import StateDir

Stdio = tuple[int, int, int]


class ExecFailed(LocalError):
    """The command could not be started."""

    reason = "exec_failed"


def execute(
    state: StateDir, request: dict[str, Any], stdio: Stdio, timeout_s: float | None = None
) -> int:
    """Run what `request` asks for with `stdio` and return its exit status.

    Raises NotRunning, ApiError (no such pod), ExecFailed, or TimedOut, at which it is killed.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
        try:
            wire.connect(_short_path(state))
        except OSError as e:
            raise NotRunning(f"no cluster {state.name!r} is running") from e
        socket.send_fds(wire, [json.dumps(request).encode() + b"\n"], list(stdio))
        wire.settimeout(timeout_s)
        line = b""
        try:
            while not line.endswith(b"\n") and (chunk := wire.recv(65536)):
                line += chunk
        except TimeoutError as e:
            raise TimedOut(f"{request['argv'][0]} did not end within {timeout_s:g} s") from e
    if not line:
        raise NotRunning(f"the cluster {state.name!r} went away")
    answer = json.loads(line)
    if "error" in answer:
        if answer["reason"] in ("NotFound", "NotRunning"):
            raise ApiError(404, answer["reason"], answer["error"])
        raise ExecFailed(answer["error"])
    return int(answer["exit"])


def _short_path(state: StateDir) -> str:
    path = str(state.control_socket)
    if len(path.encode()) < 104:
        return path
    import os

    # A socket's path must fit into 108 bytes: go through a descriptor of its directory.
    fd = os.open(state.root, os.O_PATH | os.O_DIRECTORY)
    return f"/proc/self/fd/{fd}/{state.control_socket.name}"


def pod_request(
    namespace: str, pod: str, argv: Sequence[str], container: str = ""
) -> dict[str, Any]:
    return {
        "do": "exec",
        "namespace": namespace,
        "pod": pod,
        "container": container,
        "argv": list(argv),
    }


def node_request(argv: Sequence[str]) -> dict[str, Any]:
    return {"do": "node-exec", "argv": list(argv)}
