"""Proxies that are killed, and apps that are faster than theirs. Nothing ever goes out in plaintext."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.mesh import Mesh, Running, now, until
from tests.e2e.objects import container, pod, service, serving

REFUSED = {"ConnectionRefusedError", "ConnectionResetError"}


@pytest.fixture(scope="module", autouse=True)
def servers(mesh: Mesh) -> Iterator[None]:
    made = [
        service("steady", 7001),
        pod("steady", serving("echo", 7001)),
        pod("mortal", serving("echo", 7001)),
        pod("crasher"),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


def _outcome(knocking: Running) -> str:
    return str(json.loads(knocking.line(60.0))["outcome"])


@pytest.mark.fault_row("proxy-crash")
def test_while_the_proxy_is_dead_connections_are_refused_and_then_it_is_back(mesh: Mesh) -> None:
    since, seen = now(), len(mesh.seen("mesh/steady"))
    host = mesh.ip("mesh/steady")
    with mesh.in_pod("mesh/crasher", *_apps("knock", host, 7001, "knock")) as knocking:
        assert _outcome(knocking) == "answered"
        mesh.node("kill", "-9", str(mesh.proxy_pid("mesh/crasher")))
        outcomes = [_outcome(knocking)]
        while outcomes[-1] != "answered":
            outcomes.append(_outcome(knocking))
        knocking.end_input()
        count = json.loads(knocking.line())["count"]
    assert set(outcomes[:-1]) and set(outcomes[:-1]) <= {*REFUSED, "ended"}
    assert count.get("ConnectionRefusedError", 0) >= 1
    # Not one of them reached the peer in plaintext: it would have refused that, on record.
    mesh.link(since, sides=2, source="mesh/crasher", destination="mesh/steady")
    here = mesh.ip("mesh/crasher")
    links = [i for i in mesh.links() if int(i["start_unix_ns"]) >= since]
    assert [i for i in links if i["reason"] == "plaintext_denied"] == []
    assert {i["security"] for i in links if i["source"]["address"] == here} <= {"mtls", "none"}
    assert len(mesh.seen("mesh/steady")) - seen <= 2 * count["answered"] + 4


def _apps(*argv: object) -> list[str]:
    return ["python", "-m", "tests.e2e.apps", *map(str, argv)]


@pytest.mark.fault_row("proxy-crash")
def test_while_the_proxy_is_dead_nobody_reaches_its_app_either(mesh: Mesh) -> None:
    seen = mesh.seen("mesh/mortal")
    host = mesh.ip("mesh/mortal")
    with mesh.in_pod("plain/stranger", *_apps("knock", host, 7001, "knock")) as knocking:
        assert _outcome(knocking) in REFUSED
        mesh.node("kill", "-9", str(mesh.proxy_pid("mesh/mortal")))
        until(lambda: _restarts(mesh, "mesh/mortal"), "the proxy of mesh/mortal restarted")
        back = lambda: mesh.attempt("mesh/client", host, 7001, "hello")["got"] == "hello"  # noqa: E731
        until(back, "mesh/mortal is reached again")
        knocking.end_input()
        while "count" not in (said := json.loads(knocking.line())):
            assert said["outcome"] in REFUSED
    assert set(said["count"]) <= REFUSED
    until(lambda: mesh.seen("mesh/mortal") == [*seen, "accepted", "received 5"], "one link only")


def _restarts(mesh: Mesh, name: str) -> int:
    statuses = mesh.cluster.get("Pod", name)["status"]["initContainerStatuses"]
    return int(next(s["restartCount"] for s in statuses if s["name"] == "podlink-proxy"))


@pytest.mark.fault_row("endpoint-death")
def test_when_the_peers_proxy_dies_the_app_hears_of_it_at_once(mesh: Mesh) -> None:
    with mesh.in_pod("mesh/client", *_apps("hold", mesh.ip("mesh/mortal"), 7001)) as holding:
        assert json.loads(holding.line()) == {"open": True}
        mesh.node("kill", "-9", str(mesh.proxy_pid("mesh/mortal")))
        ended = json.loads(holding.line())["ended"]
    # An end would pass for a whole answer: it must be an error.
    assert ended == "ConnectionResetError"


@pytest.mark.fault_row("start-order")
def test_while_the_proxy_does_not_serve_a_connection_is_held_and_nothing_is_let_out(
    mesh: Mesh,
) -> None:
    since, host, seen = now(), mesh.ip("mesh/steady"), mesh.seen("mesh/steady")
    proxy = str(mesh.proxy_pid("mesh/crasher"))
    mesh.node("kill", "-STOP", proxy)
    try:
        done = mesh.attempt("mesh/crasher", host, 7001, "too early", patience_s=5.0)
    finally:
        mesh.node("kill", "-CONT", proxy)
    assert (done["got"], done["error"]) == ("", "TimeoutError")
    mesh.talk("mesh/crasher", host, 7001, "in time")
    mesh.link(since, sides=2, source="mesh/crasher", destination="mesh/steady", bytes_sent=7)
    links = [i for i in mesh.links() if int(i["start_unix_ns"]) >= since]
    assert [i for i in links if i["security"] == "plaintext"] == []
    assert [i for i in links if i["reason"] == "plaintext_denied"] == []
    assert "received 7" in mesh.seen("mesh/steady")[len(seen) :]


@pytest.mark.fault_row("start-order")
def test_an_app_that_dials_with_its_first_breath_is_protected_already(mesh: Mesh) -> None:
    since = now()
    dial = ["bash", "-c", "exec nc -N steady 7001 <<< first"]
    first = container(dial, name="app-init")
    at_once = container(["bash", "-c", "nc -N steady 7001 <<< second; exec sleep 3600"])
    hasty = pod("hasty", at_once, initContainers=[first])
    mesh.apply(hasty)
    for word in ("first", "second"):
        link = mesh.link(
            since,
            sides=2,
            source="mesh/hasty",
            destination="mesh/steady",
            bytes_sent=len(word) + 1,
        )
        assert (link["security"], link["verdict"]) == ("mtls", "allowed")
    assert mesh.cluster.logs("mesh/hasty", "app-init") == "first\n"
    assert mesh.cluster.logs("mesh/hasty", "app") == "second\n"
    links = [i for i in mesh.links() if int(i["start_unix_ns"]) >= since]
    assert [i for i in links if i["reason"] == "plaintext_denied"] == []
    mesh.delete(hasty)
