"""Startup, readiness and liveness probes, sent from the node as a kubelet does."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from local.objects import Object
from sidecar.probes.grpc import ask_grpc
from sidecar.probes.http import ProbeFailed
from sidecar.probes.spec import GrpcProbe

_QUICK_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Before the first success a probe is tried at these times as well; their failures do not count.

A kubelet with periodSeconds 10 leaves a pod that starts in 50 ms unready for seconds; here that
wait would be most of a test's time.
"""
Exec = Callable[[list[str], float], Awaitable[int]]
"""Runs a command in the container within some seconds and returns its exit status."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe's settings with the defaults of the Kubernetes API; times in seconds."""

    action: Object
    delay_s: float
    period_s: float
    timeout_s: float
    failures: int
    successes: int

    @classmethod
    def read(cls, spec: Object) -> "Probe":
        return cls(
            action=spec,
            delay_s=float(spec.get("initialDelaySeconds") or 0),
            period_s=float(spec.get("periodSeconds") or 10),
            timeout_s=float(spec.get("timeoutSeconds") or 1),
            failures=int(spec.get("failureThreshold") or 3),
            successes=int(spec.get("successThreshold") or 1),
        )


@dataclass(frozen=True, slots=True)
class Where:
    """Whom to ask: the pod's address, its named ports, and a way to run a command in it."""

    ip: str
    ports: dict[str, int]
    run: Exec


async def watch(probe: Probe, where: Where, heard: Callable[[bool], None]) -> None:
    """Call `heard` each time the verdict changes or is confirmed, until cancelled."""
    await asyncio.sleep(probe.delay_s)
    for wait_s in _QUICK_S:
        if await succeeds(probe.action, probe.timeout_s, where):
            if probe.successes <= 1:
                heard(True)
            break
        await asyncio.sleep(wait_s)
    good = bad = 0
    while True:
        if await succeeds(probe.action, probe.timeout_s, where):
            good, bad = good + 1, 0
            if good >= probe.successes:
                heard(True)
        else:
            good, bad = 0, bad + 1
            if bad >= probe.failures:
                heard(False)
        await asyncio.sleep(probe.period_s)


async def succeeds(action: Object, timeout_s: float, where: Where) -> bool:
    """Try once."""
    try:
        async with asyncio.timeout(timeout_s):
            if "exec" in action:
                return await where.run(action["exec"]["command"], timeout_s) == 0
            if "tcpSocket" in action:
                _, writer = await asyncio.open_connection(
                    action["tcpSocket"].get("host") or where.ip,
                    port_number(action["tcpSocket"]["port"], where.ports),
                )
                writer.close()
                return True
            if "grpc" in action:
                return await _grpc(action["grpc"], timeout_s, where)
            return await _http(action["httpGet"], timeout_s, where)
    except (OSError, TimeoutError, aiohttp.ClientError, KeyError, ValueError, ProbeFailed):
        return False


async def _grpc(action: Object, timeout_s: float, where: Where) -> bool:
    port = port_number(action["port"], {})
    await ask_grpc(GrpcProbe(port, timeout_s, action.get("service") or ""), where.ip)
    return True


async def _http(get: Object, timeout_s: float, where: Where) -> bool:
    scheme = str(get.get("scheme", "HTTP")).lower()
    host = get.get("host") or where.ip
    port = port_number(get["port"], where.ports)
    url = f"{scheme}://{host}:{port}/{str(get.get('path', '/')).lstrip('/')}"
    headers = {"User-Agent": "kube-probe/1.32", "Connection": "close"}
    headers.update({h["name"]: h["value"] for h in get.get("httpHeaders") or ()})
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        # A kubelet does not verify certificates either.
        session.get(url, headers=headers, ssl=False, allow_redirects=False) as answer,
    ):
        return 200 <= answer.status < 400


def port_number(port: object, named: dict[str, int]) -> int:
    """A port by number or by the name a container gives it. Raises KeyError."""
    if isinstance(port, int):
        return port
    return int(str(port)) if str(port).isdigit() else named[str(port)]
