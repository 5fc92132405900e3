"""A leaf counts only from where its pod is: not from another pod's address, nor after its pod."""

import asyncio
import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from certs.trust.bans import pod_serial
from certs.trust.contexts import TlsMaterial
from certs.trust.facts import LeafFacts
from certs.trust.identity import WorkloadIdentity
from kit.clock import monotonic
from sidecar.carrier import trust_of
from sidecar.dataplane.tunnels import place
from sidecar.dataplane.tunnels.place import contradiction, places
from sidecar.directory import EXTERNAL, Found, Gone, Workload
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import API, WEB, Pair, StartPair

POD = Workload("uid-web", "shop", "web-0", WEB, ("127.0.0.1",))
OTHER = replace(POD, uid="uid-other", name="other-0")
NODE = Workload("", "", "", None, ("127.0.0.1",), host_network=True)
NOW = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)


def leaf(uid: str = "uid-web", *ips: str, identity: WorkloadIdentity = WEB) -> LeafFacts:
    serial = f"{pod_serial(uid, 7):x}"
    return LeafFacts(identity, frozenset(ips), serial, "00", NOW, NOW)


@pytest.mark.parametrize(
    ("found", "own", "said"),
    [
        (POD, True, ""),
        (POD, False, ""),
        (replace(POD, terminating=True), True, ""),
        (OTHER, True, "shop/other-0's"),
        (OTHER, False, "shop/other-0's"),
        (replace(OTHER, identity=None), False, "shop/other-0's"),
        (Gone("shop/web-0"), True, "any more"),
        (Gone("shop/web-0"), False, "any more"),
        (Gone(""), True, "any more"),
        (Gone(""), False, ""),
        (EXTERNAL, True, "no pod has"),
        (EXTERNAL, False, ""),
        (NODE, True, ""),
        (NODE, False, ""),
        (None, True, ""),
        (None, False, ""),
    ],
)
def test_what_the_registry_says_of_an_address_may_contradict_a_leaf(
    found: Found | None, own: bool, said: str
) -> None:
    why = contradiction(leaf(), "10.0.0.7", found, tagged=True, own=own)
    assert said in why if said else why == ""


def test_where_leaves_name_no_pods_the_identity_must_be_the_pods() -> None:
    other = replace(OTHER, identity=API)
    assert contradiction(leaf("x"), "10.0.0.7", OTHER, tagged=False, own=False) == ""
    assert "other-0" in contradiction(leaf("x"), "10.0.0.7", other, tagged=False, own=False)


def test_a_peer_whose_address_something_rewrote_is_looked_for_at_its_leafs_address() -> None:
    assert places(leaf("u", "10.0.0.7", "fd00::7"), "10.0.0.7") == [("10.0.0.7", True)]
    assert places(leaf("u", "10.0.0.7"), "192.168.9.1") == [
        ("192.168.9.1", False), ("10.0.0.7", True),
    ]  # fmt: skip
    assert places(leaf("u"), "192.168.9.1") == [("192.168.9.1", False)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "WAIT_S", 0.5)


@pytest.fixture
async def pair(start_pair: StartPair, serve: Any, forge: Forge, quick: None) -> Pair:
    """The dialler's leaf is of the pod `uid-web`."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        await writer.drain()
        writer.close()

    made = start_pair(await serve(echo))
    key_pem, chain_pem = forge.leaf(
        str(WEB), ips=["127.0.0.1"], serial=pod_serial("uid-web", 12345),
        not_after=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1),
    )  # fmt: skip
    material = TlsMaterial(key_pem, chain_pem, forge.root_pem)
    made.near.plane.trust = trust_of(material, str(WEB), monotonic() + 3600)
    return made


async def answer(pair: Pair) -> bytes:
    reader, writer = await pair.client()
    try:
        writer.write(b"hello")
        async with asyncio.timeout(PATIENCE_S):
            return await reader.read(100)
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.attack_row(63)
@pytest.mark.parametrize("found", [OTHER, EXTERNAL, Gone("shop/web-0")])
async def test_a_leaf_that_was_carried_off_is_refused_before_the_app_hears_of_it(
    pair: Pair, found: Found
) -> None:
    pair.far.directory.entries["127.0.0.1"] = found
    assert await answer(pair) == b""
    record = await pair.far.record()
    assert (record.verdict, record.reason) == ("denied", "leaf_elsewhere")
    assert record.source_identity == str(WEB) and record.close == "refused"
    pair.far.directory.entries["127.0.0.1"] = POD
    assert await answer(pair) == b"hello", "the positive control"


@pytest.mark.attack_row(63)
async def test_a_deleted_pods_open_tunnel_carries_no_link_more(pair: Pair) -> None:
    pair.far.directory.entries["127.0.0.1"] = POD
    assert await answer(pair) == b"hello"
    await pair.far.record()
    pair.far.directory.entries["127.0.0.1"] = Gone("shop/web-0")
    assert await answer(pair) == b""
    assert (await pair.far.record(2)).reason == "leaf_elsewhere"


async def test_a_new_pod_that_the_registry_does_not_know_yet_is_waited_for(pair: Pair) -> None:
    pair.far.directory.entries["127.0.0.1"] = EXTERNAL
    asked = asyncio.ensure_future(answer(pair))
    await asyncio.sleep(0.2)
    assert not asked.done()
    pair.far.directory.entries["127.0.0.1"] = POD
    assert await asked == b"hello"
    assert pair.far.directory.anew, "it was asked for"


async def test_while_the_registry_says_nothing_the_leaf_alone_counts(pair: Pair) -> None:
    assert await answer(pair) == b"hello"
