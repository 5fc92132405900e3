"""What one address may ask of the webhook's port."""

import asyncio
import ssl

import pytest

from injector import limits
from injector.limits import ALL_BYTES, REVIEWS_BURST, SOURCE_BYTES, Limits, TooMuch
from tests.injector.pods import namespace, pod
from tests.injector.test_app import HOST, injector
from tests.injector.test_review import review
from tests.patience import PATIENCE_S


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def over(it: Limits, source: str, size: int = 1) -> TooMuch:
    with pytest.raises(TooMuch) as caught, it.review(source, size):
        pass
    return caught.value


@pytest.mark.attack_row(31)
def test_one_address_that_floods_is_bounded_and_another_is_not_hurt_by_it() -> None:
    clock = Clock()
    it = Limits(clock)
    for _ in range(int(REVIEWS_BURST)):
        with it.review("10.0.0.1", 1000):
            pass
    first, second = over(it, "10.0.0.1"), over(it, "10.0.0.1")
    assert (first.reason, first.tell, second.tell) == ("review_rate", True, False)
    with it.review("10.0.0.2", 1000):
        pass
    clock.now += 1.0
    with it.review("10.0.0.1", 1000):
        pass


@pytest.mark.attack_row(31)
def test_bodies_at_one_time_are_bounded_by_address_and_in_all() -> None:
    it = Limits(Clock())
    with it.review("10.0.0.1", SOURCE_BYTES):
        assert over(it, "10.0.0.1").reason == "review_bytes"
        with it.review("10.0.0.2", SOURCE_BYTES):
            pass
        # Released on the way out, and whatever goes wrong.
        with pytest.raises(RuntimeError), it.review("10.0.0.2", SOURCE_BYTES):
            raise RuntimeError
        with it.review("10.0.0.2", SOURCE_BYTES):
            pass
    with it.review("10.0.0.1", SOURCE_BYTES):
        pass
    assert over(it, "10.0.0.3", ALL_BYTES + 1).reason == "review_bytes"


@pytest.mark.attack_row(31)
async def test_what_is_not_enrolled_asks_the_api_server_only_so_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each such review has the injector ask for the namespace: a flood of them must not go on to the
    API server; and what is not asked is not let in."""
    monkeypatch.setattr(limits, "AFRESH_BURST", 3.0)
    monkeypatch.setattr(limits, "AFRESH_PER_S", 0.001)
    async with injector(namespace(None)) as it:
        answers = [await it.call(review(pod())) for _ in range(5)]
    assert [status for status, _ in answers] == [200, 200, 200, 429, 429]
    assert "asked_afresh" in answers[-1][1]["error"]


@pytest.mark.attack_row(24)
async def test_a_body_that_does_not_come_is_waited_for_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("injector.server.BODY_WITHIN_S", 0.2)
    async with injector(namespace()) as it:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", it.server.port, ssl=context, server_hostname=HOST
        )
        head = f"POST /mutate HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5000\r\n\r\n"
        writer.write(head.encode() + b'{"half":')
        answer = await asyncio.wait_for(reader.readline(), PATIENCE_S)
        assert b" 408 " in answer
        await asyncio.wait_for(reader.read(), PATIENCE_S)  # and then the connection is closed
        writer.close()
        await writer.wait_closed()
        status, _ = await it.call(review(pod()))
        assert status == 200
