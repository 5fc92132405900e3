"""HTTP/1.1 requests and answers, read in passing. Pure, and for telling only: it never changes, holds
or refuses a byte, and where anything is ambiguous it stops telling rather than guess.
(RFC 9112, sections 2 to 7.)
"""

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

MAX_HEAD: Final = 64 * 1024
MAX_PENDING: Final = 128
_MAX_DIGITS: Final = 16
_CHUNK_DIGITS: Final = re.compile(rb"[0-9A-Fa-f]{1,%d}" % _MAX_DIGITS)
METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
)


class NotFollowed(Exception):
    """What comes is no HTTP that can be followed without guessing."""

    reason = "not_followed"


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as far as they were seen. Everything in it is claimed."""

    method: str
    path: str
    """Without its query, which may hold secrets."""
    claimed_traceparent: str = ""
    started_ns: int = 0
    ended_ns: int = 0
    status: int = 0
    """0: no answer was seen."""
    grpc_status: str = ""
    version: str = "1.1"


Told = Callable[[Exchange], None]
"""Called with each exchange once its answer has ended."""


@dataclass(slots=True)
class _Head:
    first: bytes
    length: int | None = None
    chunked: bool = False
    traceparents: list[str] = field(default_factory=list)
    size: int = 0


_START, _FIELDS, _BODY, _CHUNK_SIZE, _CHUNK_END, _TRAILERS, _REST = range(7)


class _Half:
    """One direction: finds heads, and counts bodies without looking at them."""

    __slots__ = ("_body_ends", "_head", "_headed", "_left", "_line", "_state", "_then")

    def __init__(self, headed: Callable[[_Head], bool], body_ends: Callable[[], None]) -> None:
        self._headed, self._body_ends = headed, body_ends
        self._state, self._then, self._left = _START, _START, 0
        self._line = bytearray()
        self._head = _Head(b"")

    def feed(self, view: memoryview) -> None:
        at, size = 0, len(view)
        copied, start = b"", 0  # what is searched for lines, and where it begins: one copy of all
        while at < size:
            if self._state == _BODY:
                step = min(self._left, size - at)
                self._left -= step
                at += step
                if not self._left:
                    self._state = self._then
                    if self._then == _START:
                        self._body_ends()
                continue
            if self._state == _REST:
                return
            if at >= start + len(copied):
                copied, start = bytes(view[at : at + MAX_HEAD]), at
            end = copied.find(b"\n", at - start)
            stop = end if end >= 0 else len(copied)
            self._line += copied[at - start : stop]
            if len(self._line) > MAX_HEAD:
                raise NotFollowed("a line is too long")
            at = start + stop + (end >= 0)
            if end < 0:
                continue
            line = bytes(self._line)
            self._line.clear()
            self._take(line[:-1] if line.endswith(b"\r") else line)

    def _take(self, line: bytes) -> None:
        state, head = self._state, self._head
        if state == _START:
            if line:  # an empty line before a message is allowed (RFC 9112, 2.2)
                self._head, self._state = _Head(line), _FIELDS
        elif state == _FIELDS:
            if line:
                head.size += len(line)
                if head.size > MAX_HEAD:
                    raise NotFollowed("a head is too long")
                _read_field(head, line)
            else:
                self._begin_body(head)
        elif state == _CHUNK_SIZE:
            digits = line.split(b";", 1)[0].strip()
            if not _CHUNK_DIGITS.fullmatch(digits):  # int() alone would take 0x4, +4 and 4_0, too
                raise NotFollowed("a chunk without a size")
            self._left = int(digits, 16)
            self._state, self._then = (_BODY, _CHUNK_END) if self._left else (_TRAILERS, _START)
        elif state == _CHUNK_END:
            if line:
                raise NotFollowed("a chunk is longer than its size")
            self._state = _CHUNK_SIZE
        elif not line:
            self._state = _START
            self._body_ends()

    def _begin_body(self, head: _Head) -> None:
        if head.chunked and head.length is not None:
            raise NotFollowed("a length and chunks: two readers may read two messages")
        no_body = self._headed(head)
        if no_body:
            self._state = _START
            self._body_ends()
        elif head.chunked:
            self._state = _CHUNK_SIZE
        elif head.length:
            self._state, self._then, self._left = _BODY, _START, head.length
        elif head.length == 0:
            self._state = _START
            self._body_ends()
        else:
            self._state = _REST  # until the connection ends


def _read_field(head: _Head, line: bytes) -> None:
    name, colon, value = line.partition(b":")
    if not colon or name != name.strip() or not name:
        raise NotFollowed("a field without a name")  # folding and smuggling alike
    key, value = name.lower(), value.strip()
    if key == b"content-length":
        if not value.isdigit() or len(value) > _MAX_DIGITS:
            raise NotFollowed("a length that is none")
        if head.length not in (None, int(value)):
            raise NotFollowed("two lengths")
        head.length = int(value)
    elif key == b"transfer-encoding":
        codings = [coding.strip().lower() for coding in value.split(b",")]
        if head.chunked or codings[-1:] != [b"chunked"]:
            raise NotFollowed("a transfer coding that is not chunked")
        head.chunked = True
    elif key == b"traceparent":
        head.traceparents.append(value.decode("latin-1"))


class Http1:
    """Both directions of one connection."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._pending: deque[Exchange] = deque()
        self._requests = _Half(self._request_head, lambda: None)
        self._answers = _Half(self._answer_head, self._answer_ends)
        self._now_ns = 0
        self._current: Exchange | None = None
        self._over = False

    def request(self, view: memoryview, now_ns: int) -> None:
        """Bytes on their way to the app. Raises NotFollowed."""
        self._now_ns = now_ns
        if not self._over:
            self._requests.feed(view)

    def answer(self, view: memoryview, now_ns: int) -> None:
        """Bytes that the app sent. Raises NotFollowed."""
        self._now_ns = now_ns
        if not self._over:
            self._answers.feed(view)

    def end(self, now_ns: int) -> None:
        """The link is over: tell what was begun, too."""
        for exchange in (*([self._current] if self._current else []), *self._pending):
            exchange.ended_ns = now_ns
            self._told(exchange)
        self._current = None
        self._pending.clear()
        self._over = True

    def _request_head(self, head: _Head) -> bool:
        words = head.first.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            raise NotFollowed("no request line")
        if len(self._pending) >= MAX_PENDING:
            raise NotFollowed("too many requests without an answer")
        self._pending.append(
            Exchange(
                words[0].decode("latin-1"),
                path_of(words[1].decode("latin-1")),
                # Of several none is believed more than another.
                head.traceparents[0] if len(head.traceparents) == 1 else "",
                self._now_ns,
                version=words[2][5:8].decode("latin-1"),
            )
        )
        return head.length is None and not head.chunked

    def _answer_head(self, head: _Head) -> bool:
        words = head.first.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or len(words[1]) != 3:
            raise NotFollowed("no status line")
        if not words[1].isdigit() or not self._pending:
            raise NotFollowed("an answer that nobody asked for")
        status = int(words[1])
        if 100 <= status < 200 and status != 101:
            return True  # another one follows
        exchange = self._current = self._pending.popleft()
        exchange.status = status
        if status == 101 or (exchange.method == "CONNECT" and 200 <= status < 300):
            self._answer_ends()
            raise NotFollowed("another protocol from here on")
        return exchange.method == "HEAD" or status in (204, 304)

    def _answer_ends(self) -> None:
        exchange, self._current = self._current, None
        if exchange is not None:
            exchange.ended_ns = self._now_ns
            self._told(exchange)


def path_of(target: str) -> str:
    """The path of a request's target, without query and fragment."""
    path = target.partition("?")[0].partition("#")[0]
    if "://" in path:
        path = "/" + path.partition("://")[2].partition("/")[2]
    return path
