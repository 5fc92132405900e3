"""HTTP/2 requests and answers (gRPC among them), read in passing. As `http1`: for telling only.

Frames are walked by their headers alone; only header blocks are read, since HPACK's state must be kept
whole. (RFC 9113, sections 3.4, 4 and 6; RFC 7541.)
"""

from typing import Final, NamedTuple

from hpack import Decoder
from hpack.exceptions import HPACKError

from sidecar.wire.http1 import Exchange, NotFollowed, Told, path_of

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_STREAMS: Final = 1000
_MAX_BLOCK: Final = 64 * 1024
_HEADER: Final = 9
_DATA, _HEADERS, _RST_STREAM, _PUSH_PROMISE, _CONTINUATION = 0, 1, 3, 5, 9
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20
_KEPT: Final = frozenset({_HEADERS, _PUSH_PROMISE, _CONTINUATION})
_TABLE_BYTES: Final = 64 * 1024

Fields = dict[str, list[str]]
_SETTINGS = 4


def may_begin_answers(early: bytes) -> bool:
    """Whether a server of HTTP/2 may have begun with these bytes: with SETTINGS, of no stream."""
    head = early[:_HEADER]
    return head[3:4] in (b"", bytes((_SETTINGS,))) and not any(head[4:])


class _Event(NamedTuple):
    stream: int
    fields: Fields | None
    ended: bool
    reset: bool = False


class _Half:
    """One direction: header blocks, and the ends of streams."""

    def __init__(self, skip: int = 0) -> None:
        self._skip = skip
        self._head = b""
        self._payload = bytearray()
        self._left = 0
        self._kind = self._flags = self._stream = 0
        self._block = b""
        self._ends = self._promised = False
        self._open_stream = 0
        self._decoder = Decoder(max_header_list_size=_MAX_BLOCK)
        self._decoder.max_allowed_table_size = _TABLE_BYTES
        self.found: list[_Event] = []

    def feed(self, view: memoryview) -> list[_Event]:
        """What these bytes completed. Raises NotFollowed."""
        self.found = []
        at, size = min(self._skip, len(view)), len(view)
        self._skip -= at
        while at < size:
            if len(self._head) < _HEADER:
                step = min(_HEADER - len(self._head), size - at)
                self._head += bytes(view[at : at + step])
                at += step
                if len(self._head) == _HEADER:
                    self._begin()
                continue
            step = min(self._left, size - at)
            if self._kind in _KEPT:
                self._payload += view[at : at + step]
            at += step
            self._left -= step
            if not self._left:
                self._end()
        return self.found

    def _begin(self) -> None:
        head = self._head
        self._left = int.from_bytes(head[:3], "big")
        self._kind, self._flags = head[3], head[4]
        self._stream = int.from_bytes(head[5:9], "big") & 0x7FFFFFFF
        if self._kind in _KEPT and self._left > _MAX_BLOCK:
            raise NotFollowed("a header frame is too long")
        if self._open_stream and self._kind != _CONTINUATION:
            raise NotFollowed("a header block was broken off")
        if not self._left:
            self._end()

    def _end(self) -> None:
        kind, flags, payload = self._kind, self._flags, bytes(self._payload)
        self._head, self._payload = b"", bytearray()
        if kind in (_HEADERS, _PUSH_PROMISE):
            if flags & _PADDED:
                if not payload or payload[0] >= len(payload):
                    raise NotFollowed("more padding than frame")
                payload = payload[1 : len(payload) - payload[0]]
            if kind == _PUSH_PROMISE:
                payload = payload[4:]
            elif flags & _PRIORITY:
                payload = payload[5:]
            self._block, self._open_stream = payload, self._stream
            self._ends = bool(kind == _HEADERS and flags & _END_STREAM)
            self._promised = kind == _PUSH_PROMISE
        elif kind == _CONTINUATION:
            if self._stream != self._open_stream or len(self._block) + len(payload) > _MAX_BLOCK:
                raise NotFollowed("a header block does not go on")
            self._block += payload
        elif kind == _RST_STREAM or (kind == _DATA and flags & _END_STREAM):
            self.found.append(_Event(self._stream, None, True, kind == _RST_STREAM))
            return
        else:
            return
        if flags & _END_HEADERS:
            self._finish_block()

    def _finish_block(self) -> None:
        stream, self._open_stream = self._open_stream, 0
        try:
            decoded = self._decoder.decode(self._block, raw=True)
        except (HPACKError, IndexError, ValueError) as e:
            raise NotFollowed("a header block that is none") from e
        self._block = b""
        if self._promised:
            return  # the state of the compression is all that matters of it
        fields: Fields = {}
        for name, value in decoded:
            fields.setdefault(bytes(name).decode("latin-1"), []).append(
                bytes(value).decode("latin-1")
            )
        self.found.append(_Event(stream, fields, self._ends))


class Http2:
    """Both directions of one connection that began with the preface."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._requests, self._answers = _Half(len(PREFACE)), _Half()
        self._streams: dict[int, Exchange] = {}

    def request(self, view: memoryview, now_ns: int) -> None:
        """Bytes on their way to the app. Raises NotFollowed."""
        for stream, fields, _, was_reset in self._requests.feed(view):
            if was_reset:
                self._finish(stream, now_ns)
            if fields is None or ":method" not in fields:
                continue  # the end of a body, or trailers
            if len(self._streams) >= MAX_STREAMS:
                raise NotFollowed("too many streams")
            traceparents = fields.get("traceparent", [])
            self._streams[stream] = Exchange(
                fields[":method"][0],
                path_of(fields.get(":path", [""])[0]),
                traceparents[0] if len(traceparents) == 1 else "",
                now_ns,
                version="2",
            )

    def answer(self, view: memoryview, now_ns: int) -> None:
        """Bytes that the app sent. Raises NotFollowed."""
        for stream, fields, ended, _ in self._answers.feed(view):
            exchange = self._streams.get(stream)
            if exchange is None:
                continue
            if fields is not None:
                raw = fields.get(":status", [""])[0]
                if raw.isascii() and raw.isdigit() and len(raw) == 3 and int(raw) >= 200:
                    exchange.status = int(raw)
                exchange.grpc_status = fields.get("grpc-status", [exchange.grpc_status])[0][:8]
            if ended:
                self._finish(stream, now_ns)

    def _finish(self, stream: int, now_ns: int) -> None:
        exchange = self._streams.pop(stream, None)
        if exchange is not None:
            exchange.ended_ns = now_ns
            self._told(exchange)

    def end(self, now_ns: int) -> None:
        """The link is over: tell what was begun, too."""
        for exchange in self._streams.values():
            exchange.ended_ns = now_ns
            self._told(exchange)
        self._streams.clear()
