"""The informer against every form in which an API server ends, refuses or forgets a watch."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from kit.backoff import Backoff
from kit.informer import Informer
from kit.kube import Object
from kit.tasks import spawn, stop
from tests.kit.fake_api import (
    PATH,
    Answer,
    FakeApi,
    event,
    events,
    fake_api,
    listing,
    pod,
    refusal,
)
from tests.patience import PATIENCE_S

Change = tuple[str, str | None, str | None]
GONE = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}


class Watched:
    def __init__(self, api: FakeApi, informer: Informer[str], changes: list[Change]) -> None:
        self.api, self.informer, self.changes = api, informer, changes

    async def until(self, count: int) -> list[Change]:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.changes) < count:
                await asyncio.sleep(0.005)
        return self.changes

    async def until_asked(self, count: int) -> list[dict[str, str]]:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.api.asked) < count:
                await asyncio.sleep(0.005)
        return self.api.asked


def image(raw: Object) -> str:
    return str(raw["spec"]["image"])


@asynccontextmanager
async def informed(*script: Answer, **settings: Any) -> AsyncIterator[Watched]:
    changes: list[Change] = []
    async with fake_api(*script) as (api, kube):
        informer = Informer(
            kube,
            PATH,
            lambda key, old, new: changes.append((key, old, new)),
            image,
            backoff=Backoff(first_s=0.01, longest_s=0.05),
            **settings,
        )
        task = spawn(informer.run(), name="informer")
        try:
            yield Watched(api, informer, changes)
        finally:
            await stop(task)


async def test_what_is_listed_is_told_and_then_synced() -> None:
    async with informed(listing("5", pod("a", image="x"), pod("b", image="y"))) as it:
        await asyncio.wait_for(it.informer.synced.wait(), PATIENCE_S)
        assert it.changes == [("shop/a", None, "x"), ("shop/b", None, "y")]
        assert it.informer.items == {"shop/a": "x", "shop/b": "y"}
        assert (await it.until_asked(2))[1]["resourceVersion"] == "5"


async def test_a_list_in_pages_is_one_list() -> None:
    first = listing("5", pod("a", image="x"), more="next page")
    async with informed(first, listing("5", pod("b", image="y"))) as it:
        await it.until(2)
        assert it.api.asked[1]["continue"] == "next page"
        assert set(it.informer.items) == {"shop/a", "shop/b"}


async def test_events_change_the_state_and_what_is_trimmed_away_is_not_told() -> None:
    same = event("MODIFIED", pod("a", "7", image="x", status="other"))
    script = (
        event("ADDED", pod("a", "6", image="x")),
        same,
        event("MODIFIED", pod("a", "8", image="z")),
        event("DELETED", pod("a", "9", image="z")),
    )
    async with informed(listing("5"), events(*script)) as it:
        assert await it.until(3) == [
            ("shop/a", None, "x"),
            ("shop/a", "x", "z"),
            ("shop/a", "z", None),
        ]


async def test_the_next_watch_starts_from_the_last_bookmark_without_a_list() -> None:
    marked = events(event("BOOKMARK", {"metadata": {"resourceVersion": "99"}}))
    async with informed(listing("5"), marked) as it:
        asked = await it.until_asked(3)
        assert [one.get("resourceVersion") for one in asked] == [None, "5", "99"]


@pytest.mark.fault_row("watch-gone")
@pytest.mark.parametrize(
    "gone", [refusal(410, "Expired"), events(event("ERROR", GONE))], ids=["status", "event"]
)
async def test_gone_lists_again_and_tells_only_the_differences(gone: Answer) -> None:
    before = listing("5", pod("a", image="x"), pod("b", image="y"), pod("c", image="z"))
    after = listing("50", pod("b", image="y"), pod("c", image="new"), pod("d", image="w"))
    async with informed(before, gone, after) as it:
        changes = await it.until(6)
        assert changes[3:] == [
            ("shop/a", "x", None),
            ("shop/c", "z", "new"),
            ("shop/d", None, "w"),
        ]
        assert (await it.until_asked(4))[3]["resourceVersion"] == "50"


@pytest.mark.fault_row("watch-gone")
async def test_the_last_known_state_stays_while_listing_again_fails() -> None:
    away = [refusal(503, "ServiceUnavailable")] * 4
    script = (listing("5", pod("a", image="x")), refusal(410, "Expired"), *away)
    async with informed(*script, listing("60", pod("a", image="x"))) as it:
        await it.until_asked(5)
        assert it.informer.items == {"shop/a": "x"}
        assert it.informer.synced.is_set()
        await it.until_asked(8)
        assert it.changes == [("shop/a", None, "x")]


@pytest.mark.fault_row("api-server-slow")
async def test_retry_after_is_honoured() -> None:
    busy = refusal(429, "TooManyRequests", {"Retry-After": "1"})
    began = asyncio.get_running_loop().time()
    async with informed(busy, listing("5")) as it:
        await it.until_asked(2)
        assert asyncio.get_running_loop().time() - began >= 0.9


@pytest.mark.fault_row("api-server-slow")
async def test_a_server_that_hangs_up_at_once_is_asked_ever_more_rarely() -> None:
    async with informed(listing("5"), *[events()] * 500) as it:
        await asyncio.sleep(0.5)
        assert len(it.api.asked) < 60


async def test_a_watch_that_fails_three_times_is_replaced_by_a_list() -> None:
    broken = [refusal(504, "Timeout")] * 4
    async with informed(listing("5"), *broken, listing("2", pod("a", image="x"))) as it:
        assert await it.until(1) == [("shop/a", None, "x")]


async def test_a_watch_cut_in_mid_line_goes_on_from_the_last_event() -> None:
    cut = events(event("ADDED", pod("a", "6", image="x")), b'{"type": "MODI')
    rest = events(event("MODIFIED", pod("a", "7", image="y")))
    async with informed(listing("5"), cut, rest) as it:
        assert (await it.until(2))[1] == ("shop/a", "x", "y")
        assert it.api.asked[2]["resourceVersion"] == "6"


async def test_an_object_that_cannot_be_read_counts_as_absent_and_the_rest_goes_on() -> None:
    bad = event("MODIFIED", {"metadata": {"namespace": "shop", "name": "a"}})
    good = event("ADDED", pod("b", image="y"))
    async with informed(listing("5", pod("a", image="x")), events(bad, good)) as it:
        assert (await it.until(3))[1:] == [("shop/a", "x", None), ("shop/b", None, "y")]


async def test_an_unknown_event_makes_a_new_list() -> None:
    strange = events(event("SPLIT", pod("a", image="x")))
    async with informed(listing("5"), strange, listing("6", pod("b", image="y"))) as it:
        assert await it.until(1) == [("shop/b", None, "y")]


async def test_an_api_server_that_answers_with_a_page_of_text_is_only_away() -> None:
    page: Answer = lambda _: web.Response(text="<html>")  # noqa: E731
    async with informed(page, listing("5", pod("a", image="x"))) as it:
        assert await it.until(1) == [("shop/a", None, "x")]


@pytest.mark.fault_row("api-server-slow")
async def test_a_watch_that_has_gone_silent_is_opened_anew_where_it_stood() -> None:
    """A path that swallows everything looks like a quiet cluster; nothing is listed again for it."""
    hanging = events(event("ADDED", pod("a", "6", image="x")), then_hang=True)
    rest = events(event("MODIFIED", pod("a", "7", image="y")), then_hang=True)
    async with informed(listing("5"), hanging, rest, silence_s=0.2) as it:
        assert (await it.until(2))[1] == ("shop/a", "x", "y")
        watches = [asked for asked in it.api.asked if "watch" in asked]
        assert [asked["resourceVersion"] for asked in watches[:2]] == ["5", "6"]
        assert len(it.api.asked) == 1 + len(watches)


async def test_what_a_lost_event_had_spoilt_is_healed_by_a_list_now_and_then() -> None:
    first, later = listing("5", pod("a", image="x")), listing("9", pod("b", image="y"))
    async with informed(first, events(then_hang=True), later, resync_s=0.1, silence_s=1.5) as it:
        changes = await it.until(3)
        assert changes == [("shop/a", None, "x"), ("shop/a", "x", None), ("shop/b", None, "y")]


async def test_a_kind_that_is_not_installed_has_no_objects_until_it_is() -> None:
    missing = [refusal(404, "NotFound")] * 3
    found = listing("5", pod("a", image="x"))
    async with informed(*missing, found, may_be_absent=True) as it:
        await asyncio.wait_for(it.informer.synced.wait(), PATIENCE_S)
        assert await it.until(1) == [("shop/a", None, "x")]


async def test_a_kind_that_is_gone_for_a_moment_is_not_forgotten() -> None:
    gone = [refusal(410, "Expired"), refusal(404, "NotFound"), refusal(404, "NotFound")]
    script = (listing("5", pod("a", image="x")), *gone, listing("6", pod("a", image="x")))
    async with informed(*script, may_be_absent=True) as it:
        await it.until_asked(6)
        assert it.changes == [("shop/a", None, "x")]


async def test_without_that_a_kind_that_is_missing_is_a_failure() -> None:
    async with informed(*[refusal(404, "NotFound")] * 4, listing("5")) as it:
        await it.until_asked(3)
        assert not it.informer.synced.is_set()


async def test_every_list_asks_for_the_newest_state_and_not_for_a_cached_one() -> None:
    """Without a resourceVersion a list is consistent (Kubernetes, "API concepts"): after a break it
    never goes back behind what was known."""
    gone = refusal(410, "Expired")
    async with informed(listing("5"), gone, listing("9", pod("a", image="x"))) as it:
        await it.until(1)
        lists = [asked for asked in it.api.asked if "watch" not in asked]
        assert len(lists) == 2
        assert all("resourceVersion" not in asked for asked in lists)


@pytest.mark.fault_row("watch-gone")
async def test_a_list_whose_next_page_has_expired_begins_again() -> None:
    first = listing("5", pod("a", image="x"), more="next page")
    again = listing("9", pod("b", image="y"))
    async with informed(first, refusal(410, "Expired"), again) as it:
        assert await it.until(1) == [("shop/b", None, "y")], "half a list is no list"
