"""How connections begin and end: servers that speak first, half-closed ones, and many at once."""

import hashlib
from collections.abc import Iterator

import pytest

from tests.e2e import apps
from tests.e2e.mesh import SOON_S, Mesh, now
from tests.e2e.objects import PLAIN, pod, service, serving

AMOUNT = 10 << 20
GREETING = apps.GREETING.decode()


@pytest.fixture(scope="module", autouse=True)
def servers(mesh: Mesh) -> Iterator[None]:
    made = [
        service("mail", 2525),
        service("plain-mail", 2525, where=PLAIN),
        service("pour", 7000),
        service("echo", 7001),
        pod("mail", serving("greet", 2525)),
        pod("open-mail", serving("greet", 2525), config={"plaintext": "allow"}),
        pod("plain-mail", serving("greet", 2525), where=PLAIN),
        pod("pour", serving("pour", 7000, AMOUNT)),
        pod("echo", serving("echo", 7001)),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


def test_a_server_that_speaks_first_is_heard_at_once(mesh: Mesh) -> None:
    since = now()
    done = mesh.attempt("mesh/client", "mail", 2525)
    assert (done["got"], done["error"]) == (GREETING, "")
    assert done["seconds"] < SOON_S
    link = mesh.link(since, sides=2, destination="mesh/mail")
    assert (link["security"], link["verdict"]) == ("mtls", "allowed")


def test_it_is_heard_at_once_where_the_server_is_outside_the_mesh(mesh: Mesh) -> None:
    since = now()
    done = mesh.attempt("mesh/client", "plain-mail.plain", 2525)
    assert (done["got"], done["error"]) == (GREETING, "")
    assert done["seconds"] < SOON_S
    link = mesh.link(since, destination="plain/plain-mail")
    assert (link["security"], link["reason"]) == ("plaintext", "unmeshed_peer")
    assert link["verdict"] == "allowed"


def test_it_is_heard_at_once_where_the_client_is_outside_the_mesh_and_may_come_in(
    mesh: Mesh,
) -> None:
    since = now()
    done = mesh.attempt("plain/stranger", mesh.ip("mesh/open-mail"), 2525)
    assert (done["got"], done["error"]) == (GREETING, "")
    assert done["seconds"] < SOON_S
    link = mesh.link(since, destination="mesh/open-mail")
    assert (link["security"], link["verdict"]) == ("plaintext", "allowed")
    assert link["source"]["identity"] is None


@pytest.mark.fault_row("half-close")
@pytest.mark.parametrize("sent", [1, AMOUNT], ids=["one-byte", "ten-megabytes"])
def test_after_its_end_of_sending_a_client_still_reads_ten_megabytes(mesh: Mesh, sent: int) -> None:
    since = now()
    answer = mesh.app("mesh/client", "half-close", "pour", 7000, sent)
    assert answer == {"size": AMOUNT, "sha256": apps.poured_sha256(AMOUNT)}
    link = mesh.link(since, sides=2, destination="mesh/pour", security="mtls")
    assert (link["bytes_sent"], link["bytes_received"]) == (sent, AMOUNT)
    assert link["close"] == "fin"


@pytest.mark.fault_row("half-close")
def test_netcat_that_ends_its_sending_reads_the_whole_answer(mesh: Mesh) -> None:
    command = "printf hello | nc -N pour 7000 | sha256sum"
    digest = mesh.run("mesh/client", "bash", "-o", "pipefail", "-c", command)
    assert digest.split()[0] == apps.poured_sha256(AMOUNT)


@pytest.mark.fault_row("slow-reader")
def test_a_tunnel_that_a_slow_reader_held_up_serves_the_next_link(mesh: Mesh) -> None:
    # The reader falls behind, so that the end of the answer lies behind data that waits for it:
    # somewhere among these sizes its last bytes and its end arrive together in a full socket.
    for size in range(64 << 10, 4 << 20, 128 << 10):
        command = f"head -c {size} /dev/zero | nc -N echo 7001 | (sleep 0.05; wc -c)"
        got = mesh.run("mesh/client", "bash", "-c", command)
        assert int(got) == size
        mesh.talk("mesh/client", mesh.ip("mesh/echo"), 7001)


def test_what_a_client_sends_after_a_server_spoke_comes_back_unchanged(mesh: Mesh) -> None:
    body = hashlib.sha256(b"x").hexdigest().encode() * 10_000
    echoed = mesh.run("mesh/client", "nc", "-N", "echo", "7001", feed=body)
    assert echoed.encode() == body


def test_a_thousand_connections_open_at_once_are_all_answered(mesh: Mesh) -> None:
    since = now()
    for _ in range(2):  # the second thousand finds tunnels that the first left
        outcome = mesh.app("mesh/client", "burst", "echo", 7001, 1000, timeout_s=120)
        failed = mesh.eventually_links(since, 0, verdict="failed")
        assert outcome == {"answered": 1000}, [(i["reason"], i["error"]) for i in failed[:5]]
        assert failed == []
