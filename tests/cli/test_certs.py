"""`podlink certs` and `podlink rotate root` against a real CA and real clients of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from click.testing import CliRunner, Result

from certs.server.report import BanChange
from cli.__main__ import podlink
from tests.certs.client.test_ca import ready, run, until
from tests.certs.fake_kube import FakeKube
from tests.certs.kubeconfig import write_kubeconfig
from tests.certs.running_ca import RunningCa, running_ca

API = "spiffe://cluster.local/ns/shop/sa/api"


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncIterator[RunningCa]:
    async with running_ca(tmp_path) as running:
        yield running


async def cli(ca: RunningCa, *argv: str) -> Result:
    """Run the command as an operator would; it has a loop of its own, so in a thread."""
    config = write_kubeconfig(ca.folder / "kubeconfig", ca.fake.url)
    words = [*argv, "--kubeconfig", str(config)]
    return await asyncio.to_thread(CliRunner().invoke, podlink, words)


@pytest.mark.attack_row(45)
@pytest.mark.parametrize("kind", ["identity", "pod", "serial"])
async def test_a_ban_reaches_every_pod_and_the_ca_and_can_be_lifted(
    ca: RunningCa, kind: str
) -> None:
    victim, token = ca.client(ca.fake.add_pod("prod", "db-0", "db"), "db"), ca.fake.add_pod()
    async with run(victim):
        await ready(victim)
        issued = (await ca.sign(token)).chain_der
        assert issued
        serial = ca.issued[-1].serial
        value = {"identity": API, "pod": "shop/api-1", "serial": serial}[kind]
        await until(lambda: ca.server.feed.using(1) != ())

        done = await cli(ca, "certs", "ban", kind, value, "--why", "its laptop was stolen")
        assert done.exit_code == 0, done.output
        await until(lambda: len(victim.bans) == 1)
        assert victim.bans.covers(facts_of(ca)) == kind
        if kind != "serial":
            refused = await ca.refusal(token)
            assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
            assert ca.refused[-1].reason == "banned"

        listed = json.loads((await cli(ca, "certs", "bans", "-o", "json")).output)["bans"]
        assert [(b["kind"], b["why"]) for b in listed] == [(kind, "its laptop was stolen")]
        done = await cli(ca, "certs", "unban", kind, listed[0]["value"])
        assert done.exit_code == 0, done.output
        await until(lambda: len(victim.bans) == 0)
        assert (await ca.sign(token)).chain_der
        changes = [(i.note.ban.kind, i.lifted) for i in ca.items if isinstance(i, BanChange)]
        assert changes == [(kind, False), (kind, True)]


def facts_of(ca: RunningCa) -> Any:
    from certs.trust.facts import LeafFacts
    from certs.trust.identity import WorkloadIdentity

    of = next(i for i in reversed(ca.issued) if i.identity == API)
    identity = WorkloadIdentity.parse(of.identity)
    return LeafFacts(identity, frozenset(of.ips), of.serial, of.sha256, of.not_before, of.not_after)


@pytest.mark.attack_row(45)
async def test_the_stream_of_a_banned_pod_is_ended(ca: RunningCa) -> None:
    client = ca.client(ca.fake.add_pod())
    async with run(client):
        await ready(client)
        await until(lambda: ca.server.feed.using(1) == ("shop/api-1",))
        assert (await cli(ca, "certs", "ban", "identity", API)).exit_code == 0
        await until(lambda: not ca.server.feed.watchers)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("ban", "identity", "shop/api"), "not a workload identity"),
        (("ban", "serial", "XYZ"), "not a serial in lower-case hex"),
        (("ban", "pod", "a b"), "not the UID of a pod"),
        (("ban", "pod", "shop/none"), "there is no pod shop/none"),
        (("unban", "serial", "5f"), "serial 5f is not banned"),
    ],
)
async def test_a_wrong_ban_is_one_clear_line(ca: RunningCa, argv: Any, says: str) -> None:
    done = await cli(ca, "certs", *argv)
    assert done.exit_code == 1
    assert says in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not ca.server.feed.news.bans


async def test_a_ban_that_cannot_be_read_is_told_of_and_leaves_the_others_in_force(
    ca: RunningCa,
) -> None:
    assert (await cli(ca, "certs", "ban", "identity", API)).exit_code == 0
    await until(lambda: len(ca.server.feed.news.bans) == 1)
    path = "/api/v1/namespaces/podlink-system/configmaps/podlink-bans"
    data = dict(ca.fake.objects[path]["data"])
    ca.fake.put(path, {"data": {**data, "broken": "{", "unknown": '{"kind":"node","value":"x"}'}})
    await until(lambda: any(e["reason"] == "BanMalformed" for e in ca.fake.of_kind("events")))
    assert len(ca.server.feed.news.bans) == 1


async def test_the_living_leaves_are_listed_with_pod_serial_age_expiry_and_issuer(
    ca: RunningCa,
) -> None:
    await ca.sign(ca.fake.add_pod())
    await ca.sign(ca.fake.add_pod("prod", "db-0", "db"))
    await ca.server._writer.write()
    done = await cli(ca, "certs")
    assert done.exit_code == 0, done.output
    for text in ("shop/api-1", "prod/db-0", API, ca.issued[0].serial, "ok"):
        assert text in done.output
    found = json.loads((await cli(ca, "certs", "-n", "prod", "-o", "json")).output)["leaves"]
    assert [leaf["pod"] for leaf in found] == ["prod/db-0"]
    assert found[0]["issuer"] == ca.authority.issuer_sha256
    assert found[0]["serial"] == ca.issued[1].serial
    assert "PRIVATE" not in done.output


async def test_a_rotation_is_started_watched_and_aborted_by_command(ca: RunningCa) -> None:
    await ca.sign(ca.fake.add_pod(name="stopped"))
    started = await cli(ca, "rotate", "root", "--start")
    assert (started.exit_code, started.output.splitlines()[0]) == (
        0,
        "begun: old and new root are published",
    ), started.output
    early = await cli(ca, "rotate", "root", "--advance")
    assert early.exit_code == 1
    assert "shop/stopped" in early.output
    status = json.loads((await cli(ca, "rotate", "root", "--status", "-o", "json")).output)
    assert (status["phase"], status["generation"]) == ("publishing", 2)
    assert [s["role"] for s in status["signers"]] == ["signs", "comes"]
    forced = await cli(ca, "rotate", "root", "--advance", "--force-name", "shop/stopped")
    assert "the new root signs" in forced.output, forced.output
    aborted = await cli(ca, "rotate", "root", "--abort")
    assert "aborted: the old root signs again" in aborted.output
    again = await cli(ca, "rotate", "root", "--abort")
    assert (again.exit_code, "refused: it is being aborted" in again.output) == (1, True)


async def test_who_may_not_is_told_what_it_takes(tmp_path: Path) -> None:
    fake = FakeKube()
    maps = "/api/v1/namespaces/podlink-system/configmaps"
    async with running_ca(tmp_path, fake) as ca:
        fake.answers["GET", f"{maps}/podlink-bans"] = (
            403,
            {"reason": "Forbidden", "message": "no"},
        )
        done = await cli(ca, "certs", "ban", "identity", API)
        assert done.exit_code == 1
        assert "it takes `get`, `create` and `patch` on ConfigMap podlink-bans" in done.output


@pytest.mark.attack_row(45)
async def test_a_ca_that_cannot_read_the_bans_lifts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certs.server.app.BANS_WAIT_S", 0.2)
    fake = FakeKube()
    token, maps = fake.add_pod("prod", "db-0", "db"), "/api/v1/namespaces/podlink-system/configmaps"
    async with running_ca(tmp_path, fake) as first:
        client, address = first.client(token, "db"), first.address
        running = asyncio.ensure_future(client.run())
        await ready(client)
        assert (await cli(first, "certs", "ban", "identity", API)).exit_code == 0
        await until(lambda: len(client.bans) == 1)
    fake.answers["GET", maps] = (403, {"reason": "Forbidden", "message": "no"})
    async with running_ca(tmp_path, fake, listen=address) as second:
        await until(lambda: second.server.feed.using(1) != (), 20)
        assert len(client.bans) == 1, "it says nothing of bans, so they stay"
        fake.answers.clear()
        await until(lambda: second.server.feed.news.bans_known, 20)
        fake.put(f"{maps}/podlink-bans", None)
        await until(lambda: len(client.bans) == 0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
