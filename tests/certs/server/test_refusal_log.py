"""A flood of refusals neither fills the disk nor hides that it happened."""

import logging

import pytest

from certs.server.refusal_log import BURST, RefusalLog
from certs.server.refusals import TokenRefused


class Hand:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.attack_row(31)
def test_past_the_limit_lines_are_counted_and_the_count_is_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Hand()
    log = RefusalLog(clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(BURST + 5000):
            log.write("Sign", "ipv4:10.0.0.7:1", "UNAUTHENTICATED", TokenRefused("token_missing"))
        assert len(caplog.records) == BURST
        clock.now = 1.0
        log.write("Sign", "ipv4:10.0.0.7:1", "UNAUTHENTICATED", TokenRefused("token_missing"))
    last = vars(caplog.records[-1])
    assert (last["unwritten_before"], last["reason"]) == (5000, "token_missing")
    assert log.unwritten == 0


def test_a_bug_is_written_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        RefusalLog(Hand()).write("Sign", "x", "INTERNAL", ZeroDivisionError("oops"))
    assert "ZeroDivisionError: oops" in caplog.text
