"""Which record is kept when not all can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.report import LinkRecord
from sidecar.telemetry.queues import RecordQueues, is_ordinary
from tests.sidecar.telemetry.records import denied, outbound


def drain(queues: RecordQueues) -> list[LinkRecord]:
    found = []
    while (record := queues.pop()) is not None:
        found.append(record)
    return found


def test_denials_leave_before_notable_links_and_those_before_allowed_ones() -> None:
    queues = RecordQueues(10, 10)
    allowed, plain, refused = outbound(), outbound(security="plaintext"), denied()
    queues.put_allowed(allowed)
    queues.put_reserved(plain)
    queues.put_reserved(refused)
    assert drain(queues) == [refused, plain, allowed]


@pytest.mark.attack_row(44)
def test_a_denial_takes_the_room_of_the_oldest_notable_link() -> None:
    queues = RecordQueues(4, 4)
    plains = [outbound(security="plaintext") for _ in range(4)]
    for record in plains:
        queues.put_reserved(record)
    refused = denied()
    queues.put_reserved(refused)
    assert drain(queues) == [refused, *plains[1:]]
    assert queues.dropped_notable == 1


@pytest.mark.attack_row(44)
def test_notable_links_never_take_the_room_of_a_denial() -> None:
    queues = RecordQueues(4, 4)
    refused = [denied(destination_ip=f"10.0.0.{n}") for n in range(4)]
    for record in (*refused, outbound(security="plaintext")):
        queues.put_reserved(record)
    assert drain(queues) == refused


@pytest.mark.attack_row(44)
def test_one_source_and_destination_fill_no_more_than_a_quarter_with_denials() -> None:
    queues = RecordQueues(4, 40)
    for _ in range(100):
        queues.put_reserved(denied())
    other = denied(source_ip="10.9.9.9")
    queues.put_reserved(other)
    kept = drain(queues)
    assert len(kept) == 11
    assert kept[-1] is other
    queues.put_reserved(denied())  # the share is free again once its records have left
    assert len(queues) == 1


KINDS = st.sampled_from(["denied", "plaintext", "allowed", "pop"])


@given(st.lists(KINDS, max_size=200))
def test_no_record_is_lost_without_being_counted(steps: list[str]) -> None:
    queues, put, popped = RecordQueues(5, 8), 0, 0
    for number, step in enumerate(steps):
        if step == "pop":
            popped += queues.pop() is not None
            continue
        put += 1
        record = denied(destination_ip=f"10.0.0.{number % 3}") if step == "denied" else outbound()
        if step == "plaintext":
            record.security = "plaintext"
        (queues.put_allowed if is_ordinary(record) else queues.put_reserved)(record)
        if step == "denied":
            record.destination_ip = "elsewhere"  # whoever reported it may still write into it
        assert len(queues) <= 13
    left = queues.drop_all()
    dropped = queues.dropped_allowed + queues.dropped_notable + queues.dropped_denied
    assert left <= 13
    assert put == popped + dropped
