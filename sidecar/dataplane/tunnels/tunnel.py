"""One TLS connection that carries `podlink/1` or `podlink/2`. HOT PATH: read docs/performance.md first.

TLS runs over memory BIOs and the socket stays raw, so that one receive and one send move up to
256 KiB at a time instead of a record of 16 KiB, and so that half-close is ours to do. Rules for this
file: no await, no logging, no object made per chunk beyond memory views.

One receive buffer and one plaintext buffer serve every tunnel of the process; nothing stays in them
between two events.
"""

import contextlib
import hashlib
import socket
import ssl
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Final, Protocol

from certs.trust.facts import LeafFacts
from certs.trust.lean import forget_handshake, stop_after_each_message
from certs.trust.renewal import OwnLeaf
from kit.contract import ALPN, ALPNS
from sidecar.dataplane.loop.poller import Poller
from sidecar.errors import Bug, PeerLost, ProtocolViolation, SidecarError
from sidecar.sockets import is_unanswered, reset_on_close
from sidecar.wire.frames import (
    DATA,
    FRAMES_BESIDES,
    GOAWAY,
    HEADER,
    KIND_NAMES,
    LIMITS_1,
    LIMITS_2,
    LIMITS_2_PROOF,
    PING,
    PING_FRAME,
    PONG,
    PONG_FRAME,
    RENEW,
    RESET,
    FrameReader,
    encode,
)
from sidecar.wire.opening import encode_code
from sidecar.wire.session import Phase, Role, Session

RECORD: Final = 16384
_SEALED: Final = RECORD + 22
"""What a full record takes on the wire: its header, content type and tag (RFC 8446, section 5.2)."""
FIRST_CHUNK: Final = 2 * _SEALED
MAX_CHUNK: Final = 16 * _SEALED
"""Bytes asked of one receive: grows to this while a tunnel fills them, because the BIO of a tunnel
keeps the size it once had. Just what a peer's largest write takes, so that one receive brings whole
records, and one frame."""
RESET_HEARD_WITHIN_S: Final = 1.0
"""How long a peer has to close a tunnel whose link we have reset."""
_MOST_LEFT: Final = 16 << 20
"""More than the kernel keeps unread for one connection (tcp_rmem)."""
MAX_OWED: Final = 1 << 20
"""Encrypted bytes that may wait in the BIO behind a write that the kernel did not take whole. One
chunk of a link is a quarter of it; more piles up only if the peer asks for answers (KeyUpdate) and
does not read them."""

SLICE: Final = 64
"""TLS records of one tunnel that are read in a row; a chunk of full ones is 16. Then the others have
their turn: thousands of records of a few bytes are as much work as a megabyte."""
FRAMES_PER_RECORD: Final = 4
"""What a lawful peer puts into one record at most: OPEN, DATA and END. A record of thousands of frames
is there to cost time."""
SPARE: Final = 64
"""Frames and TLS messages that carry nothing of the app's (PING, PONG, GOAWAY, those of a renewal, a
KeyUpdate) which a peer may send between two looks at the tunnel, some 5 s apart. It
needs three or four of them."""

_received = memoryview(bytearray(MAX_CHUNK))
_plain = memoryview(bytearray(16 * RECORD))
_PLAIN_FULL: Final = 15 * RECORD
_head: Final = struct.Struct("!I").unpack_from
_WHOLE: Final = (DATA << 24) - HEADER
"""Plus a size: the header of a DATA frame that fills so many bytes."""


class TunnelUser(Protocol):
    """Who gets what comes out of a tunnel: a link while there is one, else the tunnel's keeper."""

    def tunnel_data(self, piece: memoryview) -> None:
        """Payload of a DATA frame; valid only during the call."""

    def tunnel_control(self, kind: int, payload: bytes) -> None:
        """Any frame that the tunnel does not answer itself; may raise ProtocolViolation."""

    def tunnel_writable(self) -> None:
        """A write had returned False, and all of it has left."""

    def tunnel_lost(self, error: SidecarError) -> None:
        """The tunnel is gone. Called at most once, never from within a write."""


class Renews(Protocol):
    """Who minds the renewals of all tunnels (`renewal`)."""

    ours: Counter[str]
    """What peers said of our proofs, by outcome."""
    theirs: Counter[str]
    """What we said of theirs."""

    def frame(self, tunnel: "Tunnel", kind: int, payload: bytes) -> None:
        """A frame of a renewal; may raise ProtocolViolation, and may close the tunnel."""

    def forget(self, tunnel: "Tunnel") -> None:
        """The tunnel is closed."""

    def look(self) -> None:
        """Renew what carries a link and is believed by an older leaf of ours."""


class _NoRenewals:
    """For a plane that renews nothing."""

    def __init__(self) -> None:
        self.ours, self.theirs = Counter[str](), Counter[str]()

    def frame(self, tunnel: "Tunnel", kind: int, payload: bytes) -> None:
        raise ProtocolViolation("a frame of a renewal")

    def forget(self, tunnel: "Tunnel") -> None: ...

    def look(self) -> None: ...


NO_RENEWALS: Final = _NoRenewals()


class _Nobody:
    """The user of a closed tunnel."""

    def tunnel_data(self, piece: memoryview) -> None: ...

    def tunnel_control(self, kind: int, payload: bytes) -> None: ...

    def tunnel_writable(self) -> None: ...

    def tunnel_lost(self, error: SidecarError) -> None: ...


_NOBODY: Final = _Nobody()


class _LastWords:
    """The user of a tunnel that has broken while its reading rested."""

    def __init__(self, user: "TunnelUser") -> None:
        self._user = user

    def tunnel_data(self, piece: memoryview) -> None:
        """The link is over: nobody gets it."""

    def tunnel_control(self, kind: int, payload: bytes) -> None:
        if kind == RESET:
            self._user.tunnel_control(kind, payload)

    def tunnel_writable(self) -> None: ...

    def tunnel_lost(self, error: SidecarError) -> None:
        self._user.tunnel_lost(error)


class _Lingering:
    """The socket of a tunnel that we have ended by RESET, until the peer closes its end too."""

    __slots__ = ("_poller", "_sock", "_timer")

    def __init__(self, poller: Poller, sock: socket.socket) -> None:
        self._poller, self._sock = poller, sock

    def start(self) -> None:
        self._timer = self._poller.call_later(RESET_HEARD_WITHIN_S, self._not_heard)
        self._poller.add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            if self._sock.recv_into(_received):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close()

    def _not_heard(self) -> None:
        reset_on_close(self._sock)
        self._close()

    def broken(self, error: Exception) -> None:
        self._close()

    def _close(self) -> None:
        self._timer.cancel()
        self._poller.forget(self._sock.fileno())
        self._sock.close()


class Tunnel:
    """A tunnel after its handshake. Whoever makes one sets `user` before calling `start`."""

    __slots__ = (
        "_backlog",
        "_chunk",
        "_fd",
        "_incoming",
        "_outgoing",
        "_paused",
        "_poller",
        "_pong_due",
        "_reader",
        "_sock",
        "_spare",
        "_ssl",
        "cipher",
        "closed",
        "direct",
        "expires_at",
        "going_away",
        "idle_since",
        "key",
        "link",
        "links",
        "own",
        "peer",
        "peer_ip",
        "peer_name",
        "peer_port",
        "pinged",
        "renewals",
        "session",
        "user",
    )

    user: TunnelUser

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *,
        role: Role,
        peer: LeafFacts,
        peer_address: tuple[str, int],
        own: OwnLeaf,
        renewals: Renews,
        limits: Mapping[int, int],
        expires_at: float,
    ) -> None:
        self._poller, self._sock, self._fd = poller, sock, sock.fileno()
        # The inner object: SSLObject would be one more Python call for each read and write.
        self._ssl = tls._sslobj  # type: ignore[attr-defined]
        self._incoming, self._outgoing = incoming, outgoing
        self._reader = FrameReader(limits)
        self._backlog: memoryview | None = None
        """What the kernel did not take; more waits encrypted in the BIO."""
        self._chunk = FIRST_CHUNK
        self._paused = False
        self._pong_due = False
        self._spare = SPARE
        self.session = Session(role)
        self.peer = peer
        """Who is at the other end: the facts of its checked leaf, the last one that it has proved."""
        self.own, self.renewals = own, renewals
        """Our own leaf, as the peer has last believed it."""
        self.peer_name = sys.intern(str(peer.identity))  # one text for all tunnels of a peer
        self.peer_ip, self.peer_port = peer_address
        self.cipher = sys.intern((tls.cipher() or ("",))[0])
        self.direct = self.peer_ip in peer.ips
        """Nothing between the two pods rewrote the address."""
        self.expires_at = expires_at
        """Monotonic: when the first of both leaves ends; no link may outlive it. A proof moves it."""
        self.going_away = False
        """The peer will open or take no new link here."""
        self.closed = False
        self.pinged = False
        """A PING has no answer yet."""
        self.links = 0
        """How many links it has carried."""
        self.idle_since = 0.0
        self.key: object = None
        """The pool's: under what it lies while idle."""
        self.link: object = None
        """The link that it carries (`plane.LiveLink`), for whoever must find the one by the other."""

    def start(self) -> None:
        """Begin to read; what the handshake left in the BIO is delivered at once."""
        self._poller.add_reader(self._fd, self._readable)
        self._drain()
        forget_handshake(self._ssl)
        stop_after_each_message(self._ssl)

    @property
    def renewable(self) -> bool:
        """Whether the peer knows of proofs at all (`podlink/2`)."""
        return not self.closed and self._reader.limits is not LIMITS_1

    @property
    def alpn(self) -> str:
        """The protocol that both sides agreed on."""
        return ALPNS[-1] if self._reader.limits is LIMITS_1 else ALPN

    @property
    def channel(self) -> bytes | None:
        """What only the two ends of this TLS connection know of it, in 32 bytes; None where TLS does not
        say.

        A digest of the dialler's Finished message, which covers both sides' key shares. RFC 9266 gives
        TLS 1.3 no `tls-unique` to authenticate by; here it names a tunnel to a peer that is
        authenticated already.
        """
        finished = self._ssl.get_channel_binding("tls-unique")
        return hashlib.sha256(b"podlink tunnel" + finished).digest() if finished else None

    @property
    def near_port(self) -> int:
        """The TCP port of our own end."""
        port: int = self._sock.getsockname()[1]
        return port

    def await_proof(self, awaited: bool) -> None:
        """Whether a PROOF may come now: only then are its kilobytes taken."""
        self._reader.limits = LIMITS_2_PROOF if awaited else LIMITS_2

    def look(self) -> None:
        """Called every few seconds: end it if the peer is gone and data is under way to it."""
        self.allow_again()
        if not self.closed and is_unanswered(self._sock):
            # Perhaps only one direction is cut, and the peer hears what we send again and again: it
            # would take that for a sign of life until we stop.
            reset_on_close(self._sock)
            self.lose(PeerLost("the peer answers nothing any more"))

    def allow_again(self) -> None:
        """Some time has passed: what the peer may send besides its apps' bytes is full again."""
        self._spare = SPARE

    def afford(self) -> bool:
        """Whether the peer may cost us one thing more that its apps have nothing of."""
        self._spare -= 1
        return self._spare >= 0

    @property
    def misbehaved(self) -> bool:
        """Whether the tunnel ended for what no lawful peer sends, or so much of."""
        return self._spare < 0

    def is_unanswered(self, for_ms: int) -> bool:
        """Whether the peer's kernel has acknowledged nothing for so long, though data is under way."""
        return not self.closed and is_unanswered(self._sock, for_ms)

    def ping(self) -> None:
        """Ask whether the far proxy still lives; `pinged` until it answers. For idle tunnels: the
        kernel answers keepalives of a process that hangs."""
        self.pinged = True
        self.write(PING_FRAME)

    @property
    def reusable(self) -> bool:
        return not self.closed and not self.going_away and self.session.phase is Phase.IDLE

    # --- towards the peer -------------------------------------------------------------------

    def write(self, frames: bytes | bytearray | memoryview) -> bool:
        """Send whole frames. False: the peer is slow; write no DATA before `tunnel_writable`."""
        try:
            self._ssl.write(frames)
        except ssl.SSLError as e:
            # Half a KeyUpdate from the peer is enough. Told later, as in `_flush`.
            self._poller.call_soon(self.lose, ProtocolViolation(f"TLS: {e.reason}"))
            return True
        if self._backlog is not None:
            return False
        return self._flush()

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send one control frame and move the session on."""
        self.session.sent(kind)
        self.write(encode(kind, payload))

    def _flush(self) -> bool:
        out = self._outgoing.read()
        try:
            sent = self._sock.send(out)
        except BlockingIOError:
            sent = 0
        except OSError as e:
            # Told later: whoever is writing must not find itself closed underneath.
            self._poller.call_soon(self.lose, PeerLost(f"send: {e.strerror}"))
            return True
        if sent == len(out):
            return True
        self._backlog = memoryview(out)[sent:]
        self._poller.add_writer(self._fd, self._writable)
        return False

    def _writable(self) -> None:
        assert self._backlog is not None
        try:
            sent = self._sock.send(self._backlog)
        except BlockingIOError:
            return None
        except OSError as e:
            return self.lose(PeerLost(f"send: {e.strerror}"))
        if sent < len(self._backlog):
            self._backlog = self._backlog[sent:]
            return None
        self._backlog = None
        self._poller.remove_writer(self._fd)
        if self._pong_due:
            self._answer()
        elif self._outgoing.pending:
            self._flush()
        if self._backlog is None:
            self.user.tunnel_writable()
        return None

    # --- from the peer ----------------------------------------------------------------------

    def pause(self) -> None:
        """Read no more: whoever takes the data is slow, and TCP tells the peer."""
        if not self._paused:
            self._paused = True
            self._poller.pause_reader(self._fd, self._hung_up)

    def resume(self) -> None:
        """Read again, beginning with what lies decrypted or waiting in the BIO.

        Never from within `tunnel_data`: the plaintext buffer is in use there.
        """
        if self._paused and not self.closed:
            self._paused = False
            self._poller.add_reader(self._fd, self._readable)
            self._drain()

    def _hung_up(self) -> None:
        """Reading rests, and the peer has reset the connection or it broke. Of what lies unread only the
        word that says why is of use."""
        self._paused = False
        self.user = _LastWords(self.user)
        for _ in range(_MOST_LEFT // FIRST_CHUNK):
            if self.closed:
                return
            self._readable()
        self.lose(PeerLost("the peer's connection was reset"))

    def _readable(self) -> None:
        try:
            size = self._sock.recv_into(_received, self._chunk)
        except BlockingIOError:
            return None
        except OSError as e:
            return self.lose(PeerLost(f"receive: {e.strerror}"))
        if not size:  # a bare FIN: anybody on the path can say that
            return self.lose(PeerLost("the peer's connection ended"))
        self._incoming.write(_received[:size])
        if size == self._chunk and size < MAX_CHUNK:
            self._chunk = size * 2
        return self._drain()

    def _drain(self) -> None:
        """Decrypt all that has come and pass it on. Data left in the BIO raises no event."""
        incoming, read, reader = self._incoming, self._ssl.read, self._reader
        try:
            while (waiting := incoming.pending) and not self._paused:
                size, got, room, records = 0, 1, _plain, 1
                try:
                    while got := read(RECORD, room):
                        size += got
                        if size > _PLAIN_FULL or records == SLICE or not incoming.pending:
                            break
                        records += 1
                        room = _plain[size:]
                except ssl.SSLWantReadError:
                    if incoming.pending or (not size and waiting >= FIRST_CHUNK):
                        self._message(waiting)
                if (
                    size > HEADER
                    and _head(_plain)[0] == _WHOLE + size
                    and not reader.left
                    and not reader.partial
                    and self.session.data_allowed
                ):
                    self.user.tunnel_data(_plain[HEADER:size])  # one whole DATA frame, as mostly
                elif size:
                    # What comes at once has one OPEN at most: the next one waits for an answer.
                    reader.feed(
                        _plain[:size], self, FRAMES_PER_RECORD * records + FRAMES_BESIDES, 1
                    )
                if self.closed:
                    return None
                if not got:
                    return self.lose(PeerLost("the peer closed the tunnel", orderly=True))
                if records == SLICE and incoming.pending:
                    self._poller.remove_reader(self._fd)
                    self._poller.call_soon(self._go_on)
                    break
            if self._pong_due or self._outgoing.pending:
                self._answer()
        except SidecarError as e:
            self.lose(e)
        except ssl.SSLError as e:
            self.lose(PeerLost(f"TLS: {e.reason}"))
        return None

    def _message(self, waiting: int) -> None:
        """TLS said something of its own (KeyUpdate), after which reading stopped. Where it cannot be
        made to stop, `waiting` bytes have all been read and not one was the app's. Raises
        ProtocolViolation."""
        if not self.afford() or (not self._incoming.pending and waiting >= FIRST_CHUNK):
            raise ProtocolViolation("a flood of KeyUpdates")

    def _go_on(self) -> None:
        """The others have had their turn."""
        if not self.closed and not self._paused:
            self._poller.add_reader(self._fd, self._readable)
            self._drain()

    def _answer(self) -> None:
        """Send what we owe the peer: one PONG however many PINGs came, and what TLS itself says.

        Nothing while the peer does not read: it would pile up without bound.
        """
        if self._backlog is not None:
            if self._outgoing.pending > MAX_OWED:
                self.lose(ProtocolViolation("the peer asks for answers and does not read them"))
        elif self._pong_due:
            self._pong_due = False
            self.write(PONG_FRAME)
        else:
            self._flush()

    def data(self, piece: memoryview) -> None:
        """FrameSink."""
        if self.closed:
            return
        if not self.session.data_allowed:
            raise ProtocolViolation(f"DATA while {self.session.phase.value}")
        self.user.tunnel_data(piece)

    def control(self, kind: int, payload: bytes) -> None:
        """FrameSink."""
        if self.closed:
            return
        self.session.received(kind)
        if kind >= PING and not self.afford():
            raise ProtocolViolation(f"a flood of frames, the last one {KIND_NAMES[kind]}")
        if kind == PING:
            self._pong_due = True
        elif kind == PONG:
            if self.pinged:
                self.pinged = False
                self.user.tunnel_control(kind, payload)
        elif kind >= RENEW:
            self.renewals.frame(self, kind, payload)
        else:
            if kind == GOAWAY:
                self.going_away = True
            self.user.tunnel_control(kind, payload)

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Close now, saying nothing to `user`. What the kernel has taken is still delivered.

        The peer is told by TLS that this is the end (RFC 8446, section 6.1), as far as that can
        be said at once: a dialler that reads it knows that its link was never begun.
        """
        if self.closed:
            return
        self.closed = True
        if self._backlog is None and not self._outgoing.pending:
            with contextlib.suppress(OSError):  # SSLWantReadError: said, and not answered yet
                self._ssl.shutdown()
            with contextlib.suppress(OSError):
                self._sock.send(self._outgoing.read())
        self._poller.forget(self._fd)
        self._sock.close()
        # Whoever minded it refers to it: without this TLS's buffers wait for the garbage collector.
        self.user = _NOBODY
        self.link = None
        self.renewals.forget(self)

    def abort(self, code: int) -> None:
        """End the link by RESET, and the tunnel with it, saying nothing to `user`.

        A peer whose app reads nothing does not read RESET either: if it has not closed its end soon,
        TCP tells it. At once where RESET itself cannot leave.
        """
        if self.closed:
            return
        self.send(RESET, encode_code(code))
        if self._backlog is not None or self._outgoing.pending:
            reset_on_close(self._sock)
            return self.close()
        self.closed = True
        self.user = _NOBODY
        self.link = None
        self.renewals.forget(self)
        with contextlib.suppress(OSError):
            self._ssl.shutdown()
        with contextlib.suppress(OSError):
            self._sock.send(self._outgoing.read())
        self._poller.remove_reader(self._fd)
        return _Lingering(self._poller, self._sock).start()

    def broken(self, error: Exception) -> None:
        """Our own code, or that of the link that uses it, failed."""
        user = self.user
        self.close()
        if not self._poller.tell(user.tunnel_lost, error):
            user.tunnel_lost(Bug.of(error))

    def lose(self, error: SidecarError) -> None:
        """The peer, or the way to it, has failed: close, and tell `user`."""
        if not self.closed:
            if isinstance(error, ProtocolViolation):
                self._spare = -1
            user = self.user
            self.close()
            user.tunnel_lost(error)
