"""Each meshed pod, asked over its admin socket: ready, certified, captured, of a version that fits."""

import asyncio
from collections.abc import Sequence

from cli.checks.model import Outcome, fail, ok, warn
from cli.exec import ExecFailed, exec_json
from cli.installed import meshed_pods, status_version
from cli.upgrade import may_follow
from kit.contract import VERSION
from kit.kube import Kube, Object

_AT_ONCE = 8
_SHORT_S = 600.0


async def check_proxies(kube: Kube, namespace: str = "") -> Sequence[Outcome]:
    """One outcome for each pod and each question; `namespace` "" is all."""
    pods = [
        pod for pod in await meshed_pods(kube)
        if not namespace or pod["metadata"]["namespace"] == namespace
    ]  # fmt: skip
    if not pods:
        return [Outcome("proxies", "skip", "no pod has a sidecar")]
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(pod: Object) -> list[Outcome]:
        async with gate:
            return await _check(kube, pod)

    return [outcome for found in await asyncio.gather(*map(one, pods)) for outcome in found]


async def _check(kube: Kube, pod: Object) -> list[Outcome]:
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    where = f"{namespace}/{name}"
    outcomes = []
    version = status_version(pod)
    if version and not may_follow(version, VERSION):
        said = f"{where} has the sidecar of {version}"
        outcomes.append(fail("proxy-version", said, "restart it: control planes skew by one minor"))
    try:
        state = await exec_json(kube, namespace, name, "/state")
        certificates = await exec_json(kube, namespace, name, "/certificates")
        capture = await exec_json(kube, namespace, name, "/capture")
    except ExecFailed as e:
        todo = "it takes create on pods/exec; kubectl logs -c podlink-proxy may say more"
        return [*outcomes, warn("proxy-ready", f"{where} cannot be asked: {e}", todo)]
    if state["ready"]:
        outcomes.append(ok("proxy-ready", f"{where}: {state['identity']}"))
    else:
        waits = "; ".join(state["waits_for"])
        outcomes.append(
            fail("proxy-ready", f"{where} waits: {waits}", "see the control plane first")
        )
    leaf = certificates.get("leaf")
    if leaf and leaf["ends_in_s"] < _SHORT_S:
        said = f"{where}: its certificate ends in {leaf['ends_in_s']:.0f} s"
        outcomes.append(fail("proxy-certificate", said, "renewal fails; see the CA's log"))
    if state["mode"] == "redirect" and capture.get("in_place") is False:
        said = f"{where}: its connections are not captured any more"
        outcomes.append(fail("proxy-capture", said, "who flushed its nft rules? restart the pod"))
    return [*outcomes, *of_source_address(where, capture)]


def of_source_address(where: str, capture: Object) -> list[Outcome]:
    """Whether the app of pod `where` sees its callers' addresses, by its page /capture. Pure."""
    source = capture.get("source_address") or {}  # a proxy of an older version has none
    if not source.get("wanted") or not source.get("why_not"):
        return []
    why = "; ".join(f"IPv{version}: {said}" for version, said in source["why_not"].items())
    said = f"{where}: the app sees the pod's own address as its callers': {why}"
    todo = "restart the pod; if it stays so, its annotation source-address: pod says that it may"
    return [warn("proxy-source-address", said, todo)]
