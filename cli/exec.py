"""Run `python -m sidecar.admin` in a pod's proxy, by the exec call of the Kubernetes API.

    exec_json(kube, "shop", "web-0", "/links")     one page, parsed
    exec_lines(kube, "shop", "web-0", "/tap")      a stream, line by line, until the caller stops

It takes `create` on pods/exec in the pod's namespace, as `kubectl exec` does. Who answers is whoever
made the pod: an answer is bounded, and nothing in it may be believed to be text for a terminal.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import aiohttp

from cli.cluster import unreachable
from kit.contract import PROXY_CONTAINER
from kit.kube import Kube, KubeError

_PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDOUT, _STDERR, _STATUS = 1, 2, 3
MAX_ANSWER_BYTES: Final = 32 << 20
MAX_LINE_BYTES: Final = 1 << 20


class ExecFailed(Exception):
    """The proxy could not be asked; one line that says what to do."""


async def exec_json(kube: Kube, namespace: str, pod: str, path: str) -> Any:
    """What the admin page at `path` says. Raises ExecFailed."""
    output = _run(kube, namespace, pod, PROXY_CONTAINER, _asking(path))
    said = await _whole(output, f"{namespace}/{pod}")
    try:
        return json.loads(said)
    except (ValueError, RecursionError) as e:
        raise ExecFailed(f"the proxy of {namespace}/{pod} gave an answer that is not JSON") from e


async def exec_lines(
    kube: Kube, namespace: str, pod: str, path: str
) -> AsyncIterator[dict[str, Any]]:
    """Each line of a stream such as /tap, parsed. Raises ExecFailed."""
    rest = b""
    argv = _asking(f"{path}?until=eof")
    async with aclosing(_run(kube, namespace, pod, PROXY_CONTAINER, argv, stdin=True)) as output:
        async for piece in output:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield _record(line, f"{namespace}/{pod}")
            if len(rest) > MAX_LINE_BYTES:
                raise _too_much(f"{namespace}/{pod}", MAX_LINE_BYTES)


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ExecFailed(f"the proxy of {where} gave a line that is not a JSON object")
    return found


async def _whole(output: AsyncGenerator[bytes, None], where: str) -> bytes:
    said = bytearray()
    async with aclosing(output):
        async for piece in output:
            said += piece
            if len(said) > MAX_ANSWER_BYTES:
                raise _too_much(where, MAX_ANSWER_BYTES)
    return bytes(said)


def _too_much(where: str, bound: int) -> ExecFailed:
    return ExecFailed(f"the proxy of {where} says more than {bound} bytes: is it podlink's?")


async def exec_output(
    kube: Kube, namespace: str, pod: str, container: str, argv: Sequence[str]
) -> bytes:
    """What a command in a container prints. Raises ExecFailed, also if it does not succeed."""
    return await _whole(_run(kube, namespace, pod, container, argv), f"{namespace}/{pod}")


def _asking(path: str) -> tuple[str, ...]:
    return "python", "-m", "sidecar.admin", path


async def _run(
    kube: Kube,
    namespace: str,
    pod: str,
    container: str,
    argv: Sequence[str],
    *,
    stdin: bool = False,
) -> AsyncGenerator[bytes, None]:
    """`stdin` has nothing to say: its end tells the command that the caller has gone."""
    query = [("command", word) for word in argv]
    query += [("container", container), ("stdout", "true"), ("stderr", "true")]
    query += [("stdin", "true")] if stdin else []
    where = f"/api/v1/namespaces/{namespace}/pods/{pod}/exec"
    complaint = b""
    try:
        async with kube.websocket(where, _PROTOCOLS, query) as socket:
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                    continue
                channel, data = message.data[0], message.data[1:]
                if channel == _STDOUT:
                    yield data
                elif channel == _STDERR:
                    complaint = (complaint + data)[:1000]
                elif channel == _STATUS:
                    _check(namespace, pod, json.loads(data), complaint)
                    return
    except KubeError as e:
        raise ExecFailed(await _explained(kube, namespace, pod, e)) from e
    raise ExecFailed(f"the connection to the proxy of {namespace}/{pod} broke")


def _check(namespace: str, pod: str, status: Any, complaint: bytes) -> None:
    if isinstance(status, dict) and status.get("status") == "Success":
        return
    said = complaint.decode("utf-8", "replace").strip().partition("\n")[0]
    why = said or (status.get("message") if isinstance(status, dict) else "") or "no reason given"
    raise ExecFailed(f"the proxy of {namespace}/{pod}: {why}")


async def _explained(kube: Kube, namespace: str, pod: str, error: KubeError) -> str:
    """A refused upgrade has no body to read: look at the pod for a reason that a person can use."""
    if error.status == 403:
        return f"you may not exec into {namespace}/{pod}; it takes `create` on pods/exec there"
    if error.status == 0:
        return unreachable(error)
    try:
        found = await kube.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
    except KubeError as e:
        return f"there is no pod {namespace}/{pod}" if e.status == 404 else str(e)
    names = [c["name"] for c in found["spec"].get("initContainers") or ()]
    if PROXY_CONTAINER not in names:
        return f"pod {namespace}/{pod} has no container {PROXY_CONTAINER}: it is not meshed"
    return f"the API server refused to exec into {namespace}/{pod} ({error})"
