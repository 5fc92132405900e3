"""Bans, the ledger and a root's rotation in a mesh with every real part, by the commands of a person."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from cli.__main__ import podlink
from tests.e2e.mesh import DEADLINE_S, Mesh, now
from tests.e2e.objects import account, pod, service, serving

MARK = "mesh/marked"
IDENTITY = "spiffe://cluster.local/ns/mesh/sa/marked"


@pytest.fixture(scope="module", autouse=True)
def pods(mesh: Mesh) -> Iterator[None]:
    made = [
        account("marked"),
        service("ledger-echo", 7002),
        pod("ledger-echo", serving("echo", 7002)),
        pod("marked", serviceAccountName="marked"),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


def run(mesh: Mesh, *argv: str, ok: bool = True) -> str:
    done = CliRunner().invoke(podlink, [*argv, "--kubeconfig", str(mesh.cluster.kubeconfig)])
    assert (done.exit_code == 0) is ok, done.output
    return done.output


def eventually(condition: Any, why: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, why
        time.sleep(0.1)


@pytest.mark.attack_row(45)
def test_a_ban_cuts_an_open_link_and_refuses_the_next_until_it_is_lifted(mesh: Mesh) -> None:
    mesh.talk(MARK, "ledger-echo", 7002)
    since = now()
    with mesh.in_pod(MARK, "python", "-m", "tests.e2e.apps", "hold", "ledger-echo", 7002) as held:
        assert held.line(), "the link is open"
        run(mesh, "certs", "ban", "identity", IDENTITY, "--why", "a test")
        try:
            # The acceptor tells of it: the store takes no word of a banned sender.
            link = mesh.link(since, destination="mesh/ledger-echo", close="banned")
            assert link["source"]["identity"] == IDENTITY
            assert held.line() == '{"ended": "ConnectionResetError"}\n'.strip()
            mesh.talk("mesh/client", "ledger-echo", 7002)
            # The banned proxy has been told, and dials nobody any more.
            assert mesh.attempt(MARK, "ledger-echo", 7002, "x")["got"] != "x"
            assert "we are banned: certificate dropped" in mesh.cluster.logs(MARK, "podlink-proxy")
            assert IDENTITY in run(mesh, "certs", "bans")
        finally:
            run(mesh, "certs", "unban", "identity", IDENTITY)
    eventually(
        lambda: mesh.attempt(MARK, "ledger-echo", 7002, "back")["got"] == "back",
        "the ban was lifted",
    )


def test_the_living_leaves_are_listed(mesh: Mesh) -> None:
    def listed() -> set[str]:
        found = json.loads(run(mesh, "certs", "-o", "json"))["leaves"]
        return {leaf["pod"] for leaf in found if leaf["serial"]}

    eventually(lambda: {MARK, "mesh/client"} <= listed(), "the ledger is written within a minute")


@pytest.mark.fault_row("root-rotation")
def test_a_root_is_published_refused_too_early_and_aborted_without_a_restart(mesh: Mesh) -> None:
    assert "begun" in run(mesh, "rotate", "root", "--start")
    try:
        early = run(mesh, "rotate", "root", "--advance", ok=False)
        assert "mounted bundles get until" in early
        eventually(
            lambda: [w["gate"] for w in status(mesh)["waits"]] == ["settling"],
            f"every sidecar, the registry and the injector use both roots: {status(mesh)['waits']}",
        )
        mesh.talk(MARK, "ledger-echo", 7002)
        said = run(mesh, "rotate", "root", "--advance", "--force-name", "settling")
        assert "the new root signs" in said
        fresh = pod("fresh-leaf", serviceAccountName="marked")
        mesh.apply(fresh)
        mesh.talk("mesh/fresh-leaf", "ledger-echo", 7002, "under the new root")
        mesh.talk(MARK, "ledger-echo", 7002, "under the old one")
        mesh.delete(fresh)
    finally:
        assert "old root signs again" in run(mesh, "rotate", "root", "--abort")
    mesh.talk(MARK, "ledger-echo", 7002)


def status(mesh: Mesh) -> Any:
    return json.loads(run(mesh, "rotate", "root", "--status", "-o", "json"))


@pytest.mark.attack_row(61)
def test_links_between_two_banned_pods_are_cut_too(mesh: Mesh) -> None:
    """The README's case: replicas under one account, which the CA and the registry refuse alike."""
    other = pod("marked-echo", serving("echo", 7002), serviceAccountName="marked")
    mesh.apply(other, service("marked-echo", 7002))
    try:
        mesh.talk(MARK, "marked-echo", 7002)
        with mesh.in_pod(
            MARK, "python", "-m", "tests.e2e.apps", "hold", "marked-echo", 7002
        ) as held:
            assert held.line(), "the link is open"
            run(mesh, "certs", "ban", "identity", IDENTITY, "--why", "a test")
            try:
                assert "ended" in held.line()
                assert mesh.attempt(MARK, "marked-echo", 7002, "x")["got"] != "x"
            finally:
                run(mesh, "certs", "unban", "identity", IDENTITY)
        eventually(
            lambda: mesh.attempt(MARK, "marked-echo", 7002, "back")["got"] == "back",
            "the ban was lifted",
        )
    finally:
        mesh.delete(other, service("marked-echo", 7002))
