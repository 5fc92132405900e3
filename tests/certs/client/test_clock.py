"""Wrong clocks, and clocks that are set while a client runs."""

import base64
import dataclasses
import datetime as dt
import json
import logging
import re
from pathlib import Path

import pytest

from certs.client import ca as client_ca
from certs.client.ca import CaClient
from certs.client.wire import CaAddress
from certs.server.refusals import RETRY_AFTER
from certs.trust.clock import ALLOWANCE, TrustedClock
from certs.trust.svid import SvidChecker, SvidRefused
from kit.clock import monotonic, utcnow
from tests.certs.client.test_ca import ready, run, until
from tests.certs.forge import Forge
from tests.certs.running_ca import CA_NAME, RunningCa

HOUR = dt.timedelta(hours=1)


class Hands:
    """A wall clock and a monotonic one that a test sets."""

    def __init__(self) -> None:
        self.wall, self.steady = utcnow(), 1000.0

    def pass_time(self, by: dt.timedelta) -> None:
        self.wall += by
        self.steady += by.total_seconds()

    def clock(self) -> dt.datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.steady


@pytest.mark.attack_row(47)
def test_an_expired_leaf_is_not_revived_by_setting_the_clock_back(
    forge: Forge, caplog: pytest.LogCaptureFixture
) -> None:
    hands = Hands()
    clock = TrustedClock(hands.clock, hands.monotonic)
    clock.heard(hands.wall, hands.steady)
    leaf = forge.leaf(not_after=hands.wall.replace(microsecond=0) + HOUR / 2)
    check = SvidChecker("cluster.local", clock)
    assert check(leaf.der), "the positive control"
    hands.pass_time(HOUR)
    with pytest.raises(SvidRefused, match="leaf_expired"):
        check(leaf.der)
    with caplog.at_level(logging.ERROR):
        hands.wall -= HOUR  # now it would be valid again
        for _ in range(3):
            with pytest.raises(SvidRefused, match="leaf_expired"):
                check(leaf.der)
    assert len(caplog.records) == 1, "said, and not at every handshake"
    assert "set back" in caplog.text


@pytest.mark.fault_row("clock-skew")
def test_a_clock_that_runs_ahead_or_a_little_behind_is_left_alone() -> None:
    hands = Hands()
    clock = TrustedClock(hands.clock, hands.monotonic)
    assert clock() == hands.wall, "nothing was heard yet"
    clock.heard(hands.wall - ALLOWANCE / 2, hands.steady)
    assert clock() == hands.wall
    clock.heard(hands.wall + ALLOWANCE / 2, hands.steady)
    assert clock() == hands.wall
    hands.wall += HOUR
    assert clock() == hands.wall, "later is stricter, never more lenient"


def test_an_older_word_of_the_ca_does_not_loosen_a_newer_one() -> None:
    hands = Hands()
    clock = TrustedClock(hands.clock, hands.monotonic)
    clock.heard(hands.wall + HOUR, hands.steady)
    clock.heard(hands.wall, hands.steady)
    assert clock() == hands.wall + HOUR - ALLOWANCE
    assert clock.unix_s() == clock().timestamp()


@pytest.mark.attack_row(47)
async def test_our_own_leaf_ends_on_time_though_the_clock_was_set_back(ca: RunningCa) -> None:
    hands = Hands()
    ca.client(ca.fake.add_pod())
    client = CaClient(
        ca.address,
        ca.folder / "pod" / "token",
        ca.folder / "pod" / "root.pem",
        "cluster.local",
        server_name=CA_NAME,
        clock=hands.clock,
        monotonic=hands.monotonic,
    )
    async with run(client):
        svid = await ready(client)
        assert svid.said_at is not None and svid.heard_at == hands.steady
        hands.wall -= HOUR
        assert client.current is svid
        hands.steady = svid.deadline
        assert client.current is None


@pytest.mark.fault_row("clock-skew")
@pytest.mark.parametrize("off", [HOUR * -1, dt.timedelta(minutes=-5), HOUR * 2])
async def test_a_wrong_clock_is_named_and_makes_no_hot_loop(
    ca: RunningCa, off: dt.timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    ca.client(ca.fake.add_pod())
    client = CaClient(
        ca.address,
        ca.folder / "pod" / "token",
        ca.folder / "pod" / "root.pem",
        "cluster.local",
        server_name=CA_NAME,
        clock=lambda: utcnow() + off,
    )
    with caplog.at_level(logging.WARNING):
        async with run(client):
            await until(lambda: client.failures >= 2)
    assert client.current is None
    assert len(ca.issued) <= 4, "no hot loop"
    text = " ".join(str(vars(record)) for record in caplog.records)
    said = re.search(r"this node's clock is ([+-][0-9]+) s off the CA's", text)
    assert said is not None
    assert abs(int(said[1]) - off.total_seconds()) <= 5


@pytest.mark.fault_row("clock-skew")
@pytest.mark.parametrize("seconds", [-5, 5, -50])
async def test_a_few_seconds_are_covered_by_backdating(ca: RunningCa, seconds: int) -> None:
    ca.client(ca.fake.add_pod())
    client = CaClient(
        ca.address,
        ca.folder / "pod" / "token",
        ca.folder / "pod" / "root.pem",
        "cluster.local",
        server_name=CA_NAME,
        clock=lambda: utcnow() + dt.timedelta(seconds=seconds),
    )
    async with run(client):
        await ready(client)
    assert client.failures == 0
    assert abs(client.clock_ahead_s - seconds) < 3


def token(issued: dt.datetime, ends: dt.datetime) -> str:
    claims = json.dumps({"iat": issued.timestamp(), "exp": ends.timestamp()}).encode()
    return f"head.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.signature"


@pytest.mark.fault_row("clock-skew")
@pytest.mark.parametrize(
    ("off", "says"),
    [(-HOUR, "at least 3600 s behind"), (HOUR * 3, "is it ahead?"), (HOUR * 0, "")],
)
def test_a_token_from_the_future_or_the_past_puts_the_clock_in_doubt(
    tmp_path: Path, off: dt.timedelta, says: str
) -> None:
    now = utcnow()
    (tmp_path / "token").write_text(token(now, now + HOUR))
    address = CaAddress("ca.x.svc:1", tmp_path / "token", tmp_path / "none", "cluster.local")
    found = address.clock_doubt(now + off)
    assert (says in found) if says else found == ""


@pytest.mark.parametrize("content", ["", "a.b.c", "a.bm90IGpzb24.c", "a.e30.c", "x"])
def test_a_token_that_says_nothing_raises_no_doubt(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    address = CaAddress("ca.x.svc:1", tmp_path / "token", tmp_path / "none", "cluster.local")
    assert address.clock_doubt(utcnow()) == ""


def test_client_and_server_call_the_hint_by_one_name() -> None:
    assert client_ca._RETRY_AFTER == RETRY_AFTER


async def test_a_bundle_older_than_the_one_in_use_is_neither_used_nor_acknowledged(
    ca: RunningCa,
) -> None:
    """One CA of several may be behind: going back would undo an acknowledgement."""
    from certs.trust.bundle import TrustBundle

    old = ca.authority.bundle
    async with run(ca.client(ca.fake.add_pod())) as client:
        await ready(client)
        newer = TrustBundle.of("cluster.local", 3, (*old.roots, Forge(name="next").root_der))
        ca.server.feed.publish(newer)
        await until(lambda: ca.server.feed.using(3) == ("shop/api-1",))
        stale = dataclasses.replace(ca.server.feed.news, bundle=old)
        ca.server.feed.news = dataclasses.replace(stale, revision=stale.revision + 1)
        passed, ca.server.feed.changed = ca.server.feed.changed, type(ca.server.feed.changed)()
        passed.set()
        began = monotonic()
        await until(lambda: not ca.server.feed.watchers or monotonic() - began > 1)
        assert client.current is not None
        assert client.current.bundle_generation == 3
