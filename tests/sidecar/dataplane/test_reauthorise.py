"""A change of policy cuts the open links that it now denies, and no others."""

import asyncio
import socket
from ipaddress import ip_network
from typing import Any

import pytest

from kit.settings import Settings
from policy.rules import Policy, PolicySet, Rule, Source
from proto import registry_pb2 as pb
from sidecar.carrier import Carrier
from sidecar.config import SidecarConfig
from sidecar.dataplane.links.outbound import OutboundLink
from sidecar.dataplane.revocation import reauthorise
from sidecar.report import LinkRecord
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import (
    API,
    WEB,
    FakeDirectory,
    StartPair,
    connected,
    trust_from,
)
from tests.sidecar.dataplane.test_banned import echo, is_cut, say
from tests.sidecar.test_config import GOOD

pytestmark = pytest.mark.attack_row(16)


def only(account: str, port: int = 0) -> PolicySet:
    ports = frozenset({port}) if port else frozenset[int]()
    return PolicySet(
        policies=(
            Policy("shop/api", allow=(Rule("allow[0]", (Source("shop", account),), ports=ports),)),
        )
    )


async def test_a_link_that_is_now_denied_is_cut_and_names_the_policy(
    start_pair: StartPair, serve: Any
) -> None:
    pair = start_pair(await serve(echo))
    reader, writer = await pair.client()
    assert await say(reader, writer, b"open") == b"open"

    pair.far.plane.policy = only("web")
    assert reauthorise(pair.far.plane) == 0, "it still allows this one"
    assert await say(reader, writer, b"still") == b"still"

    pair.far.plane.policy = only("batch")
    assert reauthorise(pair.far.plane) == 1
    assert await is_cut(reader)
    writer.close()
    record = await pair.far.record()
    assert (record.verdict, record.close, record.reason) == ("denied", "policy", "policy_denied")
    assert (record.policy, record.rule) == ("shop/api", "no-rule")
    assert record.nearest_rule.startswith("shop/api allow[0] allows shop/batch, not shop/web")
    assert (await pair.near.record()).close == "policy"
    assert not pair.far.plane.live


async def test_a_deny_rule_that_comes_later_cuts_too(start_pair: StartPair, serve: Any) -> None:
    pair = start_pair(await serve(echo))
    reader, writer = await pair.client()
    assert await say(reader, writer, b"open") == b"open"
    policy = Policy(
        "shop/api", only("web").policies[0].allow, (Rule("deny[0]", (Source("shop"),)),)
    )
    pair.far.plane.policy = PolicySet(policies=(policy,))
    assert reauthorise(pair.far.plane) == 1
    assert await is_cut(reader)
    writer.close()
    assert (await pair.far.record()).rule == "deny[0]"


async def test_an_auditing_policy_cuts_nothing_and_marks_the_next_link(
    start_pair: StartPair, serve: Any
) -> None:
    pair = start_pair(await serve(echo))
    reader, writer = await pair.client()
    assert await say(reader, writer, b"open") == b"open"
    audit = Policy(
        "shop/new", (Rule("allow[0]", networks=(ip_network("10.0.0.0/8"),)),), audit=True
    )
    pair.far.plane.policy = PolicySet(policies=(audit,))
    assert reauthorise(pair.far.plane) == 0
    assert await say(reader, writer, b"still") == b"still"
    writer.close()
    await pair.far.record()

    reader, writer = await pair.client()
    assert await say(reader, writer, b"next") == b"next"
    writer.close()
    record = await pair.far.record(2)
    assert (record.verdict, record.policy, record.rule) == ("audited", "shop/new", "no-rule")


async def test_a_link_whose_app_is_still_being_dialled_is_refused(start_pair: StartPair) -> None:
    # A backlog that is full keeps a connect waiting for as long as the test likes.
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        pair = start_pair(full.getsockname()[1])
        reader, writer = await pair.client()
        writer.write(b"hello")
        async with asyncio.timeout(PATIENCE_S):
            while not pair.far.plane.live:
                await asyncio.sleep(0.01)
        (link,) = pair.far.plane.live
        assert link.moved == (0, 0) and link.record.verdict == "failed", "it is not accepted yet"
        pair.far.plane.policy = only("batch")
        assert reauthorise(pair.far.plane) == 1
        assert await is_cut(reader)
        writer.close()
    record = await pair.far.record()
    assert (record.verdict, record.reason, record.policy) == ("denied", "policy_denied", "shop/api")
    near = await pair.near.record()
    assert (near.verdict, near.reason) == ("denied", "policy_denied"), "told, and not tried again"


async def test_the_sidecar_judges_again_as_soon_as_the_registry_says_otherwise() -> None:
    """The carrier's own wiring, with an open plaintext link to the world outside."""
    settings = Settings({**GOOD, "PODLINK_MODE": "localhost"})
    records: list[LinkRecord] = []
    carrier = Carrier(
        asyncio.get_running_loop(),
        SidecarConfig.from_settings(settings),
        FakeDirectory(),
        records.append,
    )
    said = pb.PodSettings(mesh_default="allow-meshed", plaintext="deny", external="allow")
    carrier.settings_came(said)
    world = await asyncio.start_server(echo, "127.0.0.1", 0)
    near, app = socket.socketpair()
    near.setblocking(False)
    link = OutboundLink(carrier.plane, near, "127.0.0.1", world.sockets[0].getsockname()[1])
    carrier.plane.live.add(link)
    link.record.security, link.record.reason = "plaintext", "external"
    carrier.settings_came(said)
    assert not records, "nothing has changed"
    said.external = "deny"
    carrier.settings_came(said)
    (record,) = records
    assert (record.verdict, record.reason, record.close) == ("denied", "external_denied", "policy")
    app.close()
    near.close()
    world.close()
    carrier.close()


async def test_an_open_plaintext_link_is_judged_again_too(
    start_pair: StartPair, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = await serve(echo)
    pair = start_pair(port)
    pair.far.plane.policy = PolicySet(allow_plaintext=True)
    monkeypatch.setattr(
        "sidecar.dataplane.links.arrival.original_dst", lambda _: ("127.0.0.1", port)
    )
    reader, writer = await connected(("127.0.0.1", pair.inbound_port), b"hello")
    assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"hello"
    assert [link.record.security for link in pair.far.plane.live] == ["plaintext"]

    assert reauthorise(pair.far.plane) == 0, "it is still allowed"
    pair.far.plane.policy = PolicySet(allow_plaintext=False)
    assert reauthorise(pair.far.plane) == 1
    assert await is_cut(reader)
    writer.close()
    record = await pair.far.record()
    assert (record.verdict, record.close, record.reason) == ("denied", "policy", "plaintext_denied")
    assert not pair.far.plane.live and not pair.far.plane.plaintext


@pytest.mark.parametrize("sooner", ["own", "peer"])
async def test_a_tunnel_ends_with_whichever_leaf_ends_first(
    sooner: str, start_pair: StartPair, serve: Any, forge: Forge
) -> None:
    pair = start_pair(await serve(echo))
    own_s, peer_s = (100.0, 3600.0) if sooner == "own" else (3600.0, 100.0)
    far = trust_from(forge, API, "127.0.0.1", lifetime_s=peer_s)
    pair.far.plane.trust = far
    near = pair.near.plane
    near.trust = trust_from(forge, WEB, "127.0.0.1", lifetime_s=own_s)
    reader, writer = await pair.client()
    assert await say(reader, writer, b"open") == b"open"
    (link,) = near.live
    assert link.tunnel_expires_at is not None
    assert 90 < link.tunnel_expires_at - near.now() <= 101
    writer.close()
