"""The proxy's own test of source addresses: what it tells, and how often it asks. The kernel's part is
in tests/sidecar/capture/test_source.py."""

from typing import Any

import pytest

from sidecar import source_check
from sidecar.dataplane.sources import Sources
from sidecar.source_check import AGAIN_S, EVERY_S, SourceCheck


class FakeLoop:
    """Keeps what is to be called later."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.call: Any = None

    def call_later(self, delay: float, call: Any) -> "FakeLoop":
        self.waits.append(delay)
        self.call = call
        return self

    def cancel(self) -> None:
        self.call = None


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


def check(loop: Any, sources: Sources) -> SourceCheck:
    return SourceCheck(loop, sources, {"10.244.0.5", "fd44::5"}, 0)


def test_the_first_test_is_over_before_the_first_link(
    loop: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_check, "prove", lambda ip, mark: "")
    sources = Sources(True)
    check(loop, sources).start()
    assert sources.proven == {4, 6}
    assert loop.waits == [EVERY_S]


def test_each_ip_version_is_told_of_by_itself_and_asked_less_often_while_it_fails(
    loop: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"10.244.0.5": "no way", "fd44::5": ""}
    monkeypatch.setattr(source_check, "prove", lambda ip, mark: said[ip])
    sources = Sources(True)
    watch = check(loop, sources)
    watch.start()
    assert sources.proven == {6}
    assert sources.why_not == {4: "no way"}
    for _ in range(40):
        loop.call()
    assert loop.waits[0] <= AGAIN_S[0] * 2 and max(loop.waits) <= AGAIN_S[1] * 2
    assert sum(loop.waits[-30:]) / 30 > 2 * EVERY_S
    said["10.244.0.5"] = ""
    loop.call()
    assert sources.proven == {4, 6}
    assert not sources.why_not
    assert loop.waits[-1] == EVERY_S
    watch.close()
    assert loop.call is None


def test_where_nobody_wants_it_nothing_is_tested(
    loop: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_check, "prove", lambda ip, mark: pytest.fail("it was tested"))
    check(loop, Sources(False)).start()
    assert loop.waits == []


def test_an_address_that_is_not_ours_says_why() -> None:
    assert "Cannot assign requested address" in source_check.prove("203.0.113.7", 0)
