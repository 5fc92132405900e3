"""Messages between the parent and a worker, over a socketpair: length, kind, body.

What the parent says may be any value (pickle): the worker trusts it with its key anyway. What a worker
says is JSON: it reads what strangers send, and a worker that was taken over must not take the parent.
"""

import asyncio
import json
import pickle
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from sidecar.report import LinkRecord, RequestRecord

# parent to worker
SVID, BANS, SETTINGS, FOUND, ANSWER, ASK, DRAIN, HURRY = range(1, 9)
# worker to parent
LISTENING, LOOKUP, LOOKUP_ANEW, RECORD, SAID, REQUEST, LOOKUP_FOR_RECORD = range(65, 72)

_HEAD: Final = struct.Struct("!IB")
_FLUSH_S: Final = 2.0
_MAX_BODY: Final = 64 << 20
_MAX_WAITING: Final = 4 << 20
"""Bytes that may wait for a parent that is slow; then records are dropped, and counted."""


class Wire:
    """One end. `heard(kind, body)` is called for each message, `ended()` once when the other end is
    gone or breaks the rules."""

    def __init__(self, heard: Callable[[int, bytes], None], ended: Callable[[], None]) -> None:
        self._heard, self._ended = heard, ended
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._lost = asyncio.Event()
        self.dropped = 0

    async def open(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: _Protocol(self), sock=sock)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()  # what waits is still sent
            self._transport = None

    async def finish(self) -> None:
        """Close once all that was sent has been taken."""
        self.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await self._lost.wait()

    def send(self, kind: int, body: bytes = b"") -> None:
        if self._transport is not None:
            self._transport.write(_HEAD.pack(len(body), kind) + body)

    def send_value(self, kind: int, value: object) -> None:
        """For the parent only."""
        self.send(kind, pickle.dumps(value))

    def send_json(self, kind: int, value: object) -> None:
        self.send(kind, json.dumps(value).encode())

    def send_record(self, record: LinkRecord) -> None:
        """A record, unless the parent is so far behind that it must be dropped."""
        if not self._is_behind():
            self.send_json(RECORD, pack_record(record))

    def send_request(self, request: RequestRecord) -> None:
        """The record of an HTTP request, on the same terms."""
        if not self._is_behind():
            self.send_json(REQUEST, pack_request(request))

    def _is_behind(self) -> bool:
        behind = self._transport is None or (self._transport.get_write_buffer_size() > _MAX_WAITING)
        self.dropped += behind
        return behind

    def _take(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _HEAD.size:
            size, kind = _HEAD.unpack_from(buffer, at)
            if size > _MAX_BODY:
                return self.close()
            if len(buffer) - at - _HEAD.size < size:
                break
            at += _HEAD.size
            self._heard(kind, bytes(buffer[at : at + size]))
            at += size
        del buffer[:at]
        return None


class _Protocol(asyncio.Protocol):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._wire._transport = transport

    def data_received(self, data: bytes) -> None:
        self._wire._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire._transport = None
        self._wire._lost.set()
        self._wire._ended()


def value_of(body: bytes) -> Any:
    """What `send_value` sent. Only a worker calls this, on what its parent said."""
    return pickle.loads(body)  # noqa: S301 - the parent made it, and holds our key besides


def pack_record(record: LinkRecord) -> dict[str, object]:
    """A record as JSON: only what is not as in a new one; bytes in hexadecimal."""
    new, packed = LinkRecord(record.direction), {}
    for name in LinkRecord.__slots__:
        value = getattr(record, name)
        if value != getattr(new, name):
            packed[name] = {"hex": value.hex()} if isinstance(value, bytes) else value
    packed["direction"] = record.direction
    return packed


def unpack_record(raw: object) -> LinkRecord:
    """Raises ValueError for what is no record, or one of another version."""
    if not isinstance(raw, dict) or raw.get("direction") not in ("outbound", "inbound"):
        raise ValueError("no record")
    record = LinkRecord(raw["direction"])
    for name, value in raw.items():
        if name not in LinkRecord.__slots__:
            raise ValueError(f"a record has no {str(name)[:40]!r}")
        if isinstance(value, dict):
            value = bytes.fromhex(str(value.get("hex")))
        if isinstance(value, list):
            value = tuple(map(_text_of, value))
        if type(value) is not type(getattr(record, name)) and name != "direct":
            raise ValueError(f"{name} is no {type(getattr(record, name)).__name__}")
        setattr(record, name, value)
    return record


def _text_of(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text of a list is none")
    return value


_TEXTS: Final = ("method", "path", "grpc_status", "version", "claimed_traceparent")
_NUMBERS: Final = ("status", "start_ns", "end_ns")


def pack_request(request: RequestRecord) -> dict[str, object]:
    """The record of an HTTP request as JSON, its link with it."""
    packed: dict[str, object] = {name: getattr(request, name) for name in (*_TEXTS, *_NUMBERS)}
    return {**packed, "link": pack_record(request.link)}


def unpack_request(raw: object) -> RequestRecord:
    """Raises ValueError for what is none."""
    if not isinstance(raw, dict) or set(raw) != {"link", *_TEXTS, *_NUMBERS}:
        raise ValueError("no record of a request")
    if not all(type(raw[name]) is str for name in _TEXTS):
        raise ValueError("a text of a request is none")
    if not all(type(raw[name]) is int for name in _NUMBERS):
        raise ValueError("a number of a request is none")
    link = unpack_record(raw["link"])
    return RequestRecord(link, **{name: raw[name] for name in (*_TEXTS, *_NUMBERS)})
