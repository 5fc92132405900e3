"""A pod whose links several processes carry: as one to its peers, its operator and its app."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.mesh import Mesh, now, until
from tests.e2e.objects import MESH, account, container, pod, serving
from tests.e2e.test_health import metrics, page

WORKERS = 3
NAME = f"{MESH}/many"


@pytest.fixture(scope="module", autouse=True)
def servers(mesh: Mesh) -> Iterator[None]:
    made = [
        account("many"),
        pod(
            "many",
            serving("echo", 7001),
            config={"workers": str(WORKERS)},
            serviceAccountName="many",
            terminationGracePeriodSeconds=20,
        ),
        pod("single", serving("echo", 7001)),
        pod(
            "asked",
            container(["python", "-m", "http.server", "8080"], listens=8080),
            config={"workers": "2", "http-ports": "8080"},
        ),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


def admin(mesh: Mesh, path: str) -> Any:
    argv = ("python", "-m", "sidecar.admin", path)
    done = mesh.cluster.exec(NAME, argv, container="podlink-proxy")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def children(mesh: Mesh) -> list[int]:
    pid = mesh.proxy_pid(NAME)
    return [int(each) for each in mesh.node("cat", f"/proc/{pid}/task/{pid}/children").split()]


def closed_links(mesh: Mesh) -> Counter[str]:
    """How many links have ended on each side, over all workers."""
    ended: Counter[str] = Counter()
    found = metrics(mesh, NAME).get("podlink_tcp_connections_closed_total", {})
    for labels, count in found.items():
        ended[str(labels[0])] += int(count)
    return ended


def test_links_of_all_workers_are_carried_counted_and_recorded_as_of_one_proxy(mesh: Mesh) -> None:
    assert len(children(mesh)) == WORKERS
    since, before = now(), closed_links(mesh)
    for number in range(12):
        mesh.talk(f"{MESH}/client", mesh.ip(NAME), 7001, f"in-{number}")
        mesh.talk(NAME, mesh.ip(f"{MESH}/single"), 7001, f"out-{number}")
    mesh.eventually_links(since, 48)
    found = metrics(mesh, NAME)
    assert found["podlink_workers"] == {(): WORKERS}
    assert closed_links(mesh) - before == Counter(source=12, destination=12)
    state = admin(mesh, "/state")
    assert (state["workers"], state["links_open"], state["ready"]) == (WORKERS, 0, True)
    assert admin(mesh, "/loop")["lag_s"] >= 0
    known = {one["pod"] for one in admin(mesh, "/endpoints")["pods"]}
    assert f"{MESH}/single" in known
    assert page(mesh, NAME, "/readyz") == (200, "ok\n")


def test_requests_are_recorded_whichever_worker_saw_them(mesh: Mesh) -> None:
    since, host = now(), mesh.ip(f"{MESH}/asked")
    for number in range(6):
        mesh.run(f"{MESH}/client", "curl", "-s", "-m", "5", f"http://{host}:8080/?{number}")
    links = mesh.eventually_links(since, 6, destination=f"{MESH}/asked")

    def seen() -> int:
        spans = [
            span for link in links for span in asyncio.run(mesh._traces.trace(link["trace_id"]))
        ]
        return sum("http.request.method" in json.dumps(span) for span in spans)

    until(lambda: seen() == 12, "each request has its span on both sides")


@pytest.mark.fault_row("proxy-crash")
def test_a_worker_that_dies_is_replaced_and_the_others_go_on(mesh: Mesh) -> None:
    before = children(mesh)
    mesh.node("kill", "-9", str(before[0]))
    until(
        lambda: len(children(mesh)) == WORKERS and before[0] not in children(mesh),
        "there are as many workers as before",
    )
    until(lambda: admin(mesh, "/state")["workers"] == WORKERS, "all of them listen")
    for number in range(8):
        mesh.talk(f"{MESH}/client", mesh.ip(NAME), 7001, f"again-{number}")
    assert before[1] in children(mesh)


@pytest.mark.fault_row("drain")
def test_sigterm_lets_the_links_of_every_worker_go_on_and_a_second_one_ends_them(
    mesh: Mesh,
) -> None:
    hold = ("python", "-m", "tests.e2e.apps", "hold", mesh.ip(NAME), 7001)
    pid, workers = mesh.proxy_pid(NAME), children(mesh)
    with ExitStack() as stack:
        # So many that each worker has one of them: a worker without links ends at once.
        held = [stack.enter_context(mesh.in_pod(f"{MESH}/client", *hold)) for _ in range(30)]
        assert [json.loads(each.line()) for each in held] == [{"open": True}] * 30
        mesh.node("kill", "-TERM", str(pid))
        until(lambda: not _answers(mesh), "no new link comes in")
        assert all(_alive(mesh, each) for each in (pid, *workers))
        mesh.node("kill", "-TERM", str(pid))
        assert {json.loads(each.line())["ended"] for each in held} <= {"ConnectionResetError"}
    until(
        lambda: not any(_alive(mesh, each) for each in (pid, *workers)),
        "the proxy and its workers have ended",
    )
    until(lambda: _answers(mesh), "the kubelet has started it again")


def _answers(mesh: Mesh) -> bool:
    return bool(mesh.attempt(f"{MESH}/client", mesh.ip(NAME), 7001, "hello")["got"] == "hello")


def _alive(mesh: Mesh, pid: int) -> bool:
    return mesh.cluster.node_exec(["test", "-d", f"/proc/{pid}"]).returncode == 0
