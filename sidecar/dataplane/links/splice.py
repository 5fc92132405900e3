"""Move bytes between a near socket and a tunnel, or between two sockets. HOT PATH.

Rules for this file: no await, no logging, no tracing, nothing made per chunk but memory views. Each
direction ends on its own (half-close); a slow reader stops the reading on the other side, so at most
one buffer of a link waits in memory.
"""

import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

from sidecar.dataplane.loop.poller import Poller
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import Bug, PeerLost, SidecarError
from sidecar.sockets import connect_error, is_unanswered, reset
from sidecar.wire.frames import DATA, END, END_FRAME, HEADER, OPEN, RESET
from sidecar.wire.opening import APP_RESET, RESETS, decode_code

_BUFFER: Final = bytearray(256 * 1024 + HEADER)
"""With room behind the largest read for the END that may go with it."""
_VIEW: Final = memoryview(_BUFFER)
_PAYLOAD: Final = _VIEW[HEADER:]
_put_head: Final = struct.Struct("!I").pack_into
_DATA: Final = DATA << 24
FIRST_READ: Final = 32768 - HEADER
MAX_READ: Final = 262144 - HEADER
"""Header and payload fill whole TLS records: anything else leaves a record of a few bytes each time."""


class TunnelSplice:
    """One link from the moment both ends exist: near is a socket, far is a tunnel.

    `ended(splice, close, error)` is called once, with the near socket closed: `close` is how the
    link ended (docs/reasons.md), `error` what broke it. The tunnel is the caller's again: reusable
    after an orderly end, closed otherwise.
    """

    __slots__ = (
        "_backlog",
        "_ended",
        "_far_ended",
        "_fd",
        "_near_ended",
        "_next",
        "_poller",
        "_read_size",
        "_reading",
        "from_near",
        "near",
        "over",
        "to_near",
        "tunnel",
    )

    def __init__(
        self,
        poller: Poller,
        near: socket.socket,
        tunnel: Tunnel,
        ended: "Callable[[TunnelSplice, str, SidecarError | None], None]",
    ) -> None:
        self._poller, self.near, self._fd, self.tunnel = poller, near, near.fileno(), tunnel
        self._ended = ended
        self._backlog: bytearray | None = None
        self._near_ended = self._far_ended = self._reading = False
        self._next: list[tuple[int, bytes]] | None = None
        """Frames of the tunnel's next link, which came while our own last bytes still wait."""
        self._read_size = FIRST_READ
        self.from_near = 0
        self.to_near = 0
        self.over = False

    def start(self) -> None:
        """Both ends are up: begin to read the near one."""
        self._reading = True
        self._poller.add_reader(self._fd, self._near_readable)

    def deliver(self, held: bytearray, control: Sequence[tuple[int, bytes]]) -> None:
        """What the tunnel brought while the near socket was connecting."""
        try:
            if held:
                self.tunnel_data(memoryview(held))
            for kind, payload in control:
                if not self.over:
                    self.tunnel_control(kind, payload)
        except SidecarError as e:  # as `Tunnel` does with what it delivers itself
            return self.tunnel.lose(e)
        if self._backlog is None and not self.over:
            self.tunnel.resume()
        return None

    # --- near to far ------------------------------------------------------------------------

    def _near_readable(self) -> None:
        try:
            size = self.near.recv_into(_PAYLOAD, self._read_size)
        except BlockingIOError:
            return None
        except OSError:
            return self._near_reset()
        if not size:
            return self._near_finished()
        _put_head(_BUFFER, 0, _DATA | size)
        self.from_near += size
        if size < self._read_size:
            if self._poller.hung_up:
                try:
                    if self._at_end(size):
                        return self._finish_with(size)
                except OSError:
                    return self._near_reset()
        elif size < MAX_READ:
            self._read_size = min(MAX_READ, (size + HEADER) * 2 - HEADER)
        if not self.tunnel.write(_VIEW[: size + HEADER]):
            self._reading = False
            self._poller.pause_reader(self._fd, self._near_hung_up)
        return None

    def _at_end(self, size: int) -> bool:
        """The FIN has come: see whether it follows the `size` bytes that were just read.

        Raises OSError if a reset does. The kernel tells of it once: the next call would find an end.
        """
        try:
            return not self.near.recv_into(_PAYLOAD[size:], 1, socket.MSG_PEEK)
        except BlockingIOError:
            return False

    def _finish_with(self, size: int) -> None:
        """The last bytes of the near side and its END in one write."""
        end = size + HEADER
        _VIEW[end : end + HEADER] = END_FRAME
        self._near_ended = True
        self.tunnel.session.sent(END)
        self.tunnel.write(_VIEW[: end + HEADER])
        self._rest_or_finish()

    def tunnel_writable(self) -> None:
        if not self._near_ended and not self._reading:
            self._reading = True
            self._poller.add_reader(self._fd, self._near_readable)

    def _near_finished(self) -> None:
        """The near side sends no more: pass that on, and go on in the other direction."""
        self._near_ended = True
        self.tunnel.send(END)
        self._rest_or_finish()

    def _rest_or_finish(self) -> None:
        """Our END is sent: the link is over if the far side's has come, else only reading is."""
        if self._far_ended and self._backlog is None:
            self._finish("fin", None)  # closing stops the reading, without a call of its own
        else:
            self._stop_reading()

    def _near_hung_up(self) -> None:
        """Its reading rests. A reset is passed on all the same; an end on both sides is read in turn."""
        if connect_error(self.near):
            self._near_reset()

    def _near_reset(self) -> None:
        self.tunnel.abort(APP_RESET)
        self._finish("reset", None)

    # --- far to near ------------------------------------------------------------------------

    def tunnel_data(self, piece: memoryview) -> None:
        if self._backlog is not None:
            if self._next is not None:
                self._next.append((DATA, bytes(piece)))
            else:
                self._backlog += piece
            return self.tunnel.pause()
        try:
            sent = self.near.send(piece)
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._near_reset()
        self.to_near += sent
        if sent < len(piece):
            self._backlog = bytearray(piece[sent:])
            self.tunnel.pause()
            self._poller.add_writer(self._fd, self._near_writable)
        return None

    def _near_writable(self) -> None:
        assert self._backlog is not None
        try:
            sent = self.near.send(self._backlog)
        except BlockingIOError:
            return None
        except OSError:
            return self._near_reset()
        self.to_near += sent
        if sent < len(self._backlog):
            del self._backlog[:sent]
            return None
        self._backlog = None
        self._poller.remove_writer(self._fd)
        if self._far_ended:
            return self._shut_near()
        return self.tunnel.resume()

    def tunnel_control(self, kind: int, payload: bytes) -> None:
        if kind == OPEN or self._next is not None:
            # Both sides have said END, so the peer may begin anew before our near side has taken
            # all of this link: not a byte of the next one may go there.
            self._next = [*(self._next or ()), (kind, payload)]
            self.tunnel.pause()
        elif kind == END:
            self._far_ended = True
            if self._backlog is None:
                self._shut_near()
            # Else after the backlog; and nothing more can come, so the tunnel may rest.
        elif kind == RESET:
            self.tunnel.close()
            self._finish(RESETS.get(decode_code(payload), "reset"), None, cut=True)

    def _shut_near(self) -> None:
        if self._near_ended:
            self._finish("fin", None)
            return self._hand_on()
        with contextlib.suppress(OSError):  # it may be gone; reading will tell
            self.near.shutdown(socket.SHUT_WR)
        return self.tunnel.resume()

    def _hand_on(self) -> None:
        """The tunnel has another user now: give it what came for it, and let it read again."""
        tunnel, frames, self._next = self.tunnel, self._next or (), None
        try:
            for kind, payload in frames:
                if tunnel.closed:
                    return None
                if kind == DATA:
                    tunnel.user.tunnel_data(memoryview(payload))
                else:
                    tunnel.user.tunnel_control(kind, payload)
        except SidecarError as e:
            return tunnel.lose(e)
        return tunnel.resume()

    # --- the end ----------------------------------------------------------------------------

    def tunnel_lost(self, error: SidecarError) -> None:
        close = "lost" if isinstance(error, PeerLost) else "protocol_error"
        self._finish("bug" if isinstance(error, Bug) else close, error, cut=True)

    def broken(self, error: Exception) -> None:
        """Our own code failed: the link ends, and the peer is told."""
        if self.over:
            self._poller.tell(self._ended, error)
        else:
            self.tunnel.close()
            self._finish("bug", Bug.of(error), cut=True)

    def cut(self, code: int) -> None:
        """End the link now, on both sides: policy, expiry or shutdown asks for it."""
        self.tunnel.abort(code)
        self._finish(RESETS[code], None, cut=True)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._poller.pause_reader(self._fd, self._near_hung_up)

    def _finish(self, close: str, error: SidecarError | None, *, cut: bool = False) -> None:
        if self.over:
            return
        self.over = True
        self._reading, self._backlog = False, None
        self._poller.forget(self._fd)
        if cut:
            reset(self.near)
        else:
            self.near.close()
        self._ended(self, close, error)


class _Half:
    """One direction of a RawSplice."""

    __slots__ = ("_backlog", "_over", "_poller", "_reading", "_source", "_target", "ended", "moved")

    def __init__(
        self,
        poller: Poller,
        source: socket.socket,
        target: socket.socket,
        over: Callable[[bool], None],
    ) -> None:
        self._poller, self._source, self._target, self._over = poller, source, target, over
        self._backlog: bytearray | None = None
        self._reading = False
        self.ended = False
        self.moved = 0

    def start(self) -> None:
        self._reading = True
        self._poller.add_reader(self._source.fileno(), self._readable)

    def send_first(self, head: bytes) -> None:
        """Bytes of the source that were read before the splice began."""
        if head:
            self._send(memoryview(head))

    def _readable(self) -> None:
        try:
            size = self._source.recv_into(_PAYLOAD)
        except BlockingIOError:
            return None
        except OSError:
            return self._over(True)
        if size:
            return self._send(_PAYLOAD[:size])
        self.ended = True
        self.stop()
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        return self._over(False)

    def _send(self, piece: memoryview) -> None:
        try:
            sent = self._target.send(piece)
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._over(True)
        self.moved += sent
        if sent < len(piece):
            self.stop()
            self._backlog = bytearray(piece[sent:])
            self._poller.add_writer(self._target.fileno(), self._writable)
        return None

    def _writable(self) -> None:
        assert self._backlog is not None
        try:
            sent = self._target.send(self._backlog)
        except BlockingIOError:
            return None
        except OSError:
            return self._over(True)
        self.moved += sent
        if sent < len(self._backlog):
            del self._backlog[:sent]
            return None
        self._backlog = None
        self._poller.remove_writer(self._target.fileno())
        return self.start()

    def broken(self, error: Exception) -> None:
        """Our own code failed, at this half or at what it told of."""
        self._poller.tell(self._over, error)

    def _source_hung_up(self) -> None:
        if connect_error(self._source):
            self._over(True)

    def stop(self) -> None:
        if self._reading:
            self._reading = False
            self._poller.pause_reader(self._source.fileno(), self._source_hung_up)
        if self._backlog is not None:
            self._backlog = None
            self._poller.remove_writer(self._target.fileno())


class RawSplice:
    """One plaintext link: two sockets, nothing in between.

    `ended(splice, close, error)` is called once, with both sockets closed.
    """

    __slots__ = ("_ended", "_in", "_near", "_other", "_out", "_poller", "over")

    def __init__(
        self,
        poller: Poller,
        near: socket.socket,
        other: socket.socket,
        ended: "Callable[[RawSplice, str, SidecarError | None], None]",
    ) -> None:
        self._poller, self._near, self._other, self._ended = poller, near, other, ended
        self.over = False
        self._out = _Half(poller, near, other, self._half_over)
        self._in = _Half(poller, other, near, self._half_over)

    @property
    def from_near(self) -> int:
        return self._out.moved

    @property
    def to_near(self) -> int:
        return self._in.moved

    def start(self, head: bytes = b"") -> None:
        """Begin both directions; `head` is what was read of the near socket already."""
        self._in.start()
        self._out.start()
        self._out.send_first(head)

    def cut(self, close: str) -> None:
        self._finish(close, None, broken=True)

    def look(self) -> None:
        """Called every few seconds: end it if one side is gone and data is under way to it."""
        if is_unanswered(self._near) or is_unanswered(self._other):
            self._finish("lost", PeerLost("one side answers nothing any more"), broken=True)

    def broken(self, error: Exception) -> None:
        """Our own code failed: the link ends."""
        if self.over:
            self._poller.tell(self._ended, error)
        else:
            self._finish("bug", Bug.of(error), broken=True)

    def _half_over(self, broken: bool) -> None:
        if broken:
            self._finish("reset", None, broken=True)
        elif self._out.ended and self._in.ended:
            self._finish("fin", None, broken=False)

    def _finish(self, close: str, error: SidecarError | None, *, broken: bool) -> None:
        self.over = True
        self._out.stop()
        self._in.stop()
        for sock in (self._near, self._other):
            self._poller.forget(sock.fileno())
            reset(sock) if broken else sock.close()
        # The halves call back into this object: without this every link would be left to the
        # garbage collector.
        del self._out._over, self._in._over
        self._ended(self, close, error)
