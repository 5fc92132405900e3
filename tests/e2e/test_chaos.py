"""Every byte and every span is right while apps and proxies are killed and the root is replaced.

Short in the suite, long under `make soak`: 2,000 links, with a whole rotation, on a mesh of its own
whose leaves live twenty seconds.
"""

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cli.__main__ import podlink
from local import mesh as local_mesh
from local.cluster import Cluster
from tests.e2e.mesh import DEADLINE_S, Mesh, now, until
from tests.e2e.objects import MESH, Object, container, namespace, pod, service
from tests.patience import PATIENCE_S

PODS = ("chaos-0", "chaos-1", "chaos-2")
CLIENT = f"{MESH}/chaos-client"
PORT = 7005
AT_ONCE = 32
AFTER_KILL_NS = 5_000_000_000
"""What began so long after a kill has nothing to do with it any more."""
LAST_SPANS_NS = 10_000_000_000
"""A proxy that is killed takes along the spans that it had not yet sent."""
FAILED = frozenset({"peer_lost", "endpoint_unreachable", "app_unreachable", "handshake_failed"})
"""How a link may end that never came about because its endpoint was killed."""


def objects() -> list[Object]:
    made = [service("chaos", PORT), pod("chaos-client")]
    for name in PODS:
        one = pod(
            name, container(["python", "-m", "tests.e2e.chaos", "serve", str(PORT)], listens=PORT)
        )
        one["metadata"]["labels"]["app"] = "chaos"
        made.append(one)
    return made


@dataclass
class Trouble:
    """Kills, each noted with its moment."""

    mesh: Mesh
    draw: random.Random
    kills: list[tuple[int, str, str]] = field(default_factory=list)
    """Unix nanoseconds, pod, `app` or `proxy`."""
    done: dict[int, int] = field(default_factory=dict)
    """When a kill that began then was done: links are made meanwhile."""
    logs: list[str] = field(default_factory=list)

    def kill(self, what: str) -> None:
        """One endpoint's app or proxy, with SIGKILL, once all of them are there again."""
        until(lambda: all(map(self._ready, PODS)), "all endpoints are there", 60)
        name = f"{MESH}/{self.draw.choice(PODS)}"
        pid = self.mesh.proxy_pid(name) if what == "proxy" else self.mesh.pid(name)
        self.logs += self.mesh.seen(name)
        at = now()
        self.kills.append((at, name, what))
        self.mesh.node("kill", "-9", str(pid))
        self.done[at] = now()

    def _ready(self, name: str) -> bool:
        conditions = self.mesh.cluster.get("Pod", f"{MESH}/{name}")["status"]["conditions"]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def touched(self, item: dict[str, Any]) -> bool:
        """Whether a kill may have ended the link."""
        start, end = span(item)
        return any(
            name == item["destination"]["pod"] and start < at + AFTER_KILL_NS and end >= at
            for at, name, _ in self.kills
        )

    def lost_spans(self, item: dict[str, Any]) -> bool:
        """Whether the far proxy was killed before it had sent what it knew of the link."""
        start, end = span(item)
        return any(
            what == "proxy"
            and name == item["destination"]["pod"]
            and start < self.done[at]
            and at < end + LAST_SPANS_NS
            for at, name, what in self.kills
        )


def span(item: dict[str, Any]) -> tuple[int, int]:
    """When a link began and ended, in Unix nanoseconds."""
    start = int(item["start_unix_ns"])
    return start, start + int(item["duration_ms"] * 1e6)


def batch(trouble: Trouble, seed: int, links: int, plan: dict[int, Any]) -> Counter[str]:
    """Drive so many links; `plan` says what to do once so many of twenty parts are over. Returns how
    they ended; what is wrong fails."""
    mesh, since, told = trouble.mesh, now(), 0
    words = ("python", "-m", "tests.e2e.chaos", "drive", "chaos", PORT, seed, links, AT_ONCE)
    with mesh.in_pod(CLIENT, *words) as driving:
        while "links" not in (said := json.loads(driving.line(120.0))):
            told += 1
            if told in plan:
                plan[told]()
    return account(trouble, since, said["links"])


def account(trouble: Trouble, since: int, links: list[dict[str, Any]]) -> Counter[str]:
    mesh = trouble.mesh

    def told() -> dict[tuple[int, int], dict[str, Any]]:
        found = [
            item
            for item in mesh.links()
            if int(item["start_unix_ns"]) >= since and item["source"]["pod"] == CLIENT
        ]
        return {(item["source"]["port"], int(item["start_unix_ns"])): item for item in found}

    deadline = time.monotonic() + DEADLINE_S
    while len(found := told()) < len(links) or any(
        len(item["sides"]) < 2 and item["verdict"] == "allowed" and not trouble.lost_spans(item)
        for item in found.values()
    ):
        if time.monotonic() > deadline:
            break
        time.sleep(0.3)
    by_port: dict[int, list[dict[str, Any]]] = {}
    for (port, _), item in sorted(found.items(), key=lambda pair: pair[0][1]):
        by_port.setdefault(port, []).append(item)
    ends: Counter[str] = Counter()
    wrong = []
    for link in sorted(links, key=lambda link: int(link["began"])):
        items = by_port.get(link["port"])
        if not items:
            wrong.append(f"no span of {link}")
            continue
        item = items.pop(0)
        if fault := judge(trouble, link, item):
            wrong.append(f"{fault}: {link} {item}")
        ends[link["end"]] += 1
    wrong += [f"nobody made {item}" for items in by_port.values() for item in items]
    assert not wrong, f"{len(wrong)} are wrong; kills {trouble.kills}\n" + "\n".join(wrong[:5])
    return ends


def judge(trouble: Trouble, link: dict[str, Any], item: dict[str, Any]) -> str:
    """What is wrong with a link and its spans; empty if nothing is."""
    if link["end"] == "wrong":
        return "bytes came that were not sent, or not all of those that were acknowledged"
    resets = link["kind"] in ("client_resets", "app_resets")
    wanted = "reset" if resets else "whole"
    if trouble.touched(item) and (resets or link["end"] != wanted):
        ways = {
            "failed": item["reason"] in FAILED,
            "allowed": item["close"] in ("fin", "reset")
            or (item["close"], item["reason"]) == ("lost", "peer_lost"),
        }
        return "" if ways.get(item["verdict"]) else "ended for a reason that no kill has"
    if link["end"] != wanted:
        return "not whole, and nobody was killed"
    if (item["verdict"], item["security"]) != ("allowed", "mtls"):
        return "not allowed by mTLS"
    if item["close"] != ("reset" if resets else "fin"):
        return "its span tells another end"
    if len(item["sides"]) < 2 and not trouble.lost_spans(item):
        return "one side is silent"
    counted = (item["bytes_sent"], item["bytes_received"])
    if not resets and counted != (link["sent"], link["received"]):
        return "its span counts other bytes"
    return ""


def finish(trouble: Trouble, ends: Counter[str], links: int) -> None:
    trouble.logs += [line for name in PODS for line in trouble.mesh.seen(f"{MESH}/{name}")]
    assert not [line for line in trouble.logs if line.startswith("wrong")]
    print(f"{links} links: {dict(ends)}; kills: {[(n, w) for _, n, w in trouble.kills]}")
    assert ends["whole"] + ends["reset"] > 0.8 * links, "a kill costs what it touches, not more"


@pytest.mark.fault_row("endpoint-death")
def test_every_byte_and_every_span_is_right_while_apps_and_proxies_are_killed(mesh: Mesh) -> None:
    made = objects()
    mesh.apply(*made)
    try:
        trouble = Trouble(mesh, random.Random(7))
        plan = {3: lambda: trouble.kill("proxy"), 10: lambda: trouble.kill("app")}
        ends = batch(trouble, 2026, 200, plan)
        finish(trouble, ends, 200)
    finally:
        mesh.delete(*made)


# --- the long form --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty() -> Iterator[Mesh]:
    """A mesh whose leaves live for twenty seconds, so that a rotation ends in minutes."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        whole = local_mesh._control_plane
        patch.setattr(local_mesh, "_control_plane", lambda single: _hasty(whole(single)))
        cluster = stack.enter_context(Cluster.up(name=f"chaos-{os.getpid()}"))
        local_mesh.install(cluster)
        running = Mesh(cluster)
        running.apply(namespace(MESH, injected=True))
        running.apply(*objects())
        yield running


def _hasty(manifests: str) -> str:
    found = list(yaml.safe_load_all(manifests))
    for one in found:
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "podlink-ca":
            (main,) = one["spec"]["template"]["spec"]["containers"]
            (ttl,) = (e for e in main["env"] if e["name"] == "PODLINK_LEAF_TTL")
            ttl["value"] = "20s"
    return yaml.safe_dump_all(found)


def rotate(mesh: Mesh, *argv: str) -> str:
    kubeconfig = str(mesh.cluster.kubeconfig)
    return CliRunner().invoke(podlink, ["rotate", "root", *argv, "--kubeconfig", kubeconfig]).output


def phase(mesh: Mesh) -> tuple[str, list[str]]:
    said = json.loads(rotate(mesh, "--status", "-o", "json"))
    return said["phase"], [wait["gate"] for wait in said["waits"]]


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.fault_row("soak")
@pytest.mark.fault_row("root-rotation")
def test_two_thousand_links_while_endpoints_are_killed_and_the_root_is_replaced(
    hasty: Mesh,
) -> None:
    """Every bit of a rotation happens under load: both roots, the new one signing while killed proxies
    come back under it, and the old one gone."""
    mesh, seed = hasty, time.time_ns() % 10**9
    print(f"seed {seed}")
    trouble = Trouble(mesh, random.Random(seed))
    ends: Counter[str] = Counter()
    assert "begun" in rotate(mesh, "--start")
    phases = []
    for number in range(10):
        plan = {
            2: lambda: trouble.kill("proxy"),
            6: lambda: step(mesh),
            10: lambda: trouble.kill("app"),
            15: lambda: step(mesh),
        }
        phases.append(phase(mesh)[0])
        ends += batch(trouble, seed + number, 200, plan)
    finish(trouble, ends, 2000)
    assert ends["cut"], "no kill met a link"
    deadline = time.monotonic() + 2 * PATIENCE_S
    while phase(mesh)[0]:
        assert time.monotonic() < deadline, phase(mesh)
        step(mesh)
        time.sleep(1)
    print(f"phases: {phases}, then no rotation")
    ends = batch(trouble, seed - 1, 200, {})
    assert ends["whole"] + ends["reset"] == 200, "under the new root alone"


def step(mesh: Mesh) -> None:
    """The next step, if all that is waited for is a real cluster's mounts."""
    now_in, gates = phase(mesh)
    if now_in and set(gates) <= {"settling"}:
        rotate(mesh, "--advance", *(["--force-name", "settling"] if gates else []))
