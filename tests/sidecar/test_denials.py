"""Denied links in the log: each by its reason, and never a flood."""

import json
import logging

import pytest

from kit.logs import JsonFormatter
from sidecar.denials import Denials
from sidecar.report import LinkRecord


def denied(error: str = "") -> LinkRecord:
    record = LinkRecord("inbound")
    record.verdict, record.reason, record.error = "denied", "plaintext_denied", error
    record.source_ip, record.original_port = "10.0.0.9", 80
    record.trace_id = b"t" * 16
    return record


def allowed() -> LinkRecord:
    record = LinkRecord("inbound")
    record.verdict = "allowed"
    return record


def test_a_denial_says_who_and_why_and_is_handed_on(caplog: pytest.LogCaptureFixture) -> None:
    handed: list[LinkRecord] = []
    record = denied()
    Denials(handed.append).report(record)
    assert handed == [record]
    (line,) = caplog.records
    said = vars(line)
    assert (line.message, said["reason"], said["source"], said["port"]) == (
        "link denied",
        "plaintext_denied",
        "10.0.0.9",
        80,
    )


def test_an_allowed_link_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    Denials(lambda record: None).report(allowed())
    assert not caplog.records


@pytest.mark.attack_row(44)
def test_a_flood_of_denials_is_counted_and_still_handed_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now, handed = 0.0, list[LinkRecord]()
    denials = Denials(handed.append, lambda: now)
    for _ in range(1000):
        denials.report(denied())
    assert len(handed) == 1000
    assert len(caplog.records) == 20
    now = 1.0
    denials.report(denied())
    assert vars(caplog.records[-1])["unsaid_before"] == 980


@pytest.mark.attack_row(43)
def test_what_a_peer_wrote_cannot_forge_a_second_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    Denials(lambda record: None).report(denied('x\n{"level": "info"}\x1b[2J'))
    line = JsonFormatter().format(caplog.records[0])
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line)["error"].startswith("x\n")
