"""A change of policy cuts the open links that it now denies, and no others."""

import asyncio
from ipaddress import ip_network
from typing import Any

import pytest

from policy.rules import Policy, PolicySet, Rule, Source
from sidecar.dataplane.reauthorise import reauthorise
from tests.sidecar.dataplane.conftest import StartPair
from tests.sidecar.dataplane.test_banned import echo, is_cut, say

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


async def test_a_link_whose_app_is_still_being_dialled_is_cut_as_well(
    start_pair: StartPair, serve: Any
) -> None:
    pair = start_pair(await serve(echo))
    reader, writer = await pair.client()
    writer.write(b"hello")
    async with asyncio.timeout(3):
        while not pair.far.plane.live:
            await asyncio.sleep(0)
        pair.far.plane.policy = only("batch")
        assert reauthorise(pair.far.plane) == 1
    assert await is_cut(reader)
    writer.close()
    assert (await pair.far.record()).verdict == "denied"
