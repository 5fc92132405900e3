"""What goes between a parent and its workers, and what a worker that was taken over may say."""

import asyncio
import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.admin.views import merge
from sidecar.directory import EXTERNAL
from sidecar.report import LinkRecord, RequestRecord
from sidecar.workers import wire as w
from sidecar.workers.directory import How, WorkerDirectory
from sidecar.workers.wire import Wire, pack_record, unpack_record
from tests.patience import PATIENCE_S

VALUES = {
    str: st.text(max_size=20),
    int: st.integers(0, 2**63),
    bytes: st.binary(max_size=16),
    bool: st.booleans(),
}


@given(st.data())
def test_a_record_comes_out_as_it_went_in(data: st.DataObject) -> None:
    record = LinkRecord(data.draw(st.sampled_from(["inbound", "outbound"])))
    for name in LinkRecord.__slots__:
        strategy = VALUES.get(type(getattr(record, name)))
        if strategy is not None and name != "direction":
            setattr(record, name, data.draw(strategy))
    record.direct = data.draw(st.sampled_from([True, False, None]))
    came = unpack_record(json.loads(json.dumps(pack_record(record))))
    for name in LinkRecord.__slots__:
        assert getattr(came, name) == getattr(record, name), name


def test_a_request_comes_out_as_it_went_in_and_nonsense_is_none() -> None:
    link = LinkRecord("inbound")
    link.trace_id, link.source_identity = bytes(range(16)), "spiffe://cluster.local/ns/a/sa/b"
    request = RequestRecord(link, "GET", "/ä", 200, "", "1.1", 5, 9, "00-aa-bb-01")
    packed = json.loads(json.dumps(w.pack_request(request)))
    came = w.unpack_request(packed)
    assert (came.link.trace_id, came.link.source_identity) == (link.trace_id, link.source_identity)
    assert came.path == "/ä" and (came.status, came.end_ns) == (200, 9)
    for wrong in ({}, {**packed, "status": "200"}, {**packed, "path": 1}, {**packed, "more": 1}):
        with pytest.raises(ValueError):
            w.unpack_request(wrong)


@pytest.mark.parametrize(
    "raw",
    [
        [],
        {},
        {"direction": "sideways"},
        {"direction": "inbound", "__class__": "x"},
        {"direction": "inbound", "bytes_sent": "many"},
        {"direction": "inbound", "trace_id": {"hex": "zz"}},
        {"direction": "inbound", "reason": 7},
    ],
)
def test_nonsense_is_no_record(raw: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        unpack_record(raw)


async def test_messages_arrive_whole_and_in_order_whatever_the_pieces() -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    heard: list[tuple[int, bytes]] = []
    over = asyncio.Event()
    wire = Wire(lambda kind, body: heard.append((kind, body)), over.set)
    await wire.open(near)
    sent = [(w.RECORD, b"x" * 70_000), (w.LISTENING, b""), (w.SAID, b"[1,2]")]
    stream = b"".join(w._HEAD.pack(len(body), kind) + body for kind, body in sent)
    loop = asyncio.get_running_loop()
    for at in range(0, len(stream), 999):
        await loop.sock_sendall(far, stream[at : at + 999])
    far.close()
    await asyncio.wait_for(over.wait(), PATIENCE_S)
    assert heard == sent


async def test_a_message_beyond_all_measure_ends_the_wire() -> None:
    near, far = socket.socketpair()
    over = asyncio.Event()
    wire = Wire(lambda kind, body: None, over.set)
    await wire.open(near)
    far.sendall(w._HEAD.pack((64 << 20) + 1, w.RECORD))
    await asyncio.wait_for(over.wait(), PATIENCE_S)
    far.close()


async def test_records_for_a_parent_that_does_not_read_are_dropped_and_counted() -> None:
    near, far = socket.socketpair()
    wire = Wire(lambda kind, body: None, lambda: None)
    await wire.open(near)
    record = LinkRecord("inbound")
    record.error = "x" * 10_000
    for _ in range(1000):
        wire.send_record(record)
    assert 0 < wire.dropped < 1000
    far.close()
    wire.close()
    await asyncio.sleep(0.01)


async def test_a_question_is_passed_on_once_and_answered_to_all_who_ask() -> None:
    asked: list[tuple[How, str]] = []
    directory = WorkerDirectory(lambda how, key: asked.append((how, key)))
    answers: list[object] = []
    directory.ask("10.0.0.7", answers.append)
    directory.ask("10.0.0.7", answers.append)
    assert asked == [(How.ASK, "10.0.0.7")]
    directory.came("10.0.0.7", EXTERNAL)
    directory.answered("10.0.0.7")
    assert answers == [EXTERNAL, EXTERNAL]
    assert directory.known("10.0.0.7") is EXTERNAL
    directory.ask_anew("10.0.0.7", answers.append)
    assert asked[-1] == (How.ANEW, "10.0.0.7")
    directory.came("10.0.0.7", None)
    directory.answered("10.0.0.7")
    assert answers[-1] is None


def test_pages_of_workers_become_one() -> None:
    counts = {"draining": False, "links_open": 2, "turned_away": {"links": 1}, "workers": 1}
    other = {"draining": True, "links_open": 3, "turned_away": {"memory": 1}, "workers": 1}
    assert merge("counts", [counts, other]) == {
        "draining": True,
        "links_open": 5,
        "turned_away": {"links": 1, "memory": 1},
        "workers": 2,
    }
    assert merge("loop", [{"lag_s": 0.1, "stalls": 1}, {"lag_s": 0.3, "stalls": 2}]) == {
        "lag_s": 0.3,
        "stalls": 3,
    }
    assert merge("links", [{"links": [1]}, {"links": [2]}]) == {"links": [1, 2]}
    endpoint = {"ip": "10.0.0.7", "ports": {"80": {"open_links": 1, "ejected": False}}}
    twin = {"ip": "10.0.0.7", "ports": {"80": {"open_links": 2, "ejected": True}}}
    parts = [
        {
            "services": [{"key": "db.prod", "endpoints": [each]}],
            "pods": [],
            "external": ["1.1.1.1"],
            "gone": [],
            "by_port": ["10.0.0.1"],
            "forwards": [{"key": "10.0.0.1:30080", "service": "api.shop"}],
            "ejected": ejected,
        }
        for each, ejected in ((endpoint, []), (twin, [{"ip": "10.0.0.7", "port": 80}]))
    ]
    merged = merge("endpoints", parts)
    assert merged.keys() == parts[0].keys(), "no part of the page is lost"
    assert merged["ejected"] == [{"ip": "10.0.0.7", "port": 80}]
    assert merged["external"] == ["1.1.1.1"]
    assert merged["by_port"] == ["10.0.0.1"]
    assert merged["forwards"] == [{"key": "10.0.0.1:30080", "service": "api.shop"}]
    assert merged["services"] == [
        {
            "key": "db.prod",
            "endpoints": [{"ip": "10.0.0.7", "ports": {"80": {"open_links": 3, "ejected": True}}}],
        }
    ]
