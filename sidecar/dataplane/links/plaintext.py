"""A plaintext link from outside that pod and policy let in: straight to the app, with a record."""

import socket

from certs.trust.facts import LeafFacts
from policy.judge import Permit
from sidecar.dataplane.links.splice import RawSplice
from sidecar.dataplane.loop.connect import APP_TIMEOUT_S, Connect
from sidecar.dataplane.plane import Plane
from sidecar.dataplane.records import explain, is_silent, no_app, permitted
from sidecar.directory import Found, Workload, is_no_pod
from sidecar.errors import Bug, SidecarError
from sidecar.report import LinkRecord, PlaintextReason
from sidecar.sockets import reset
from sidecar.source_address import Source
from sidecar.wire.opening import CUT_BY_POLICY


class PlaintextLink:
    """A plaintext link that pod and policy let in."""

    __slots__ = (
        "_connect",
        "_failed",
        "_head",
        "_permit",
        "_places",
        "_plane",
        "_sock",
        "_splice",
        "_to",
        "record",
    )

    def __init__(
        self,
        plane: Plane,
        sock: socket.socket,
        to: tuple[str, int],
        permit: Permit,
        record: LinkRecord,
    ) -> None:
        self._places: list[str] = []
        """Where the app may listen and was not tried yet."""
        self._plane, self._sock, self._to, self.record = plane, sock, to, record
        self._splice: RawSplice | None = None
        self._connect: Connect | None = None
        self._head = b""
        self._failed = False
        self._permit = permit
        record.policy, record.rule = permit.policy, permit.rule
        record.security, record.reason = "plaintext", "permissive"
        plane.live.add(self)
        plane.plaintext += 1

    def start(self, head: bytes, source: Found | None) -> None:
        """`source` is who is at the other end's address, if that is known already."""
        self._head = head
        if source is not None:
            self._source_known(source)
        else:
            self._plane.directory.ask(
                self.record.source_ip,
                lambda found: self._plane.poller.call(self._source_known, found),
                for_record=True,
            )
        seen = self._plane.sources.seen(self.record.source_ip, self.record.source_port)
        self._places = self._plane.app_ips(*self._to)
        self._try(self._places.pop(0), seen)

    def _source_known(self, found: Found | None) -> None:
        if self not in self._plane.live:
            return
        reason: PlaintextReason = "external" if is_no_pod(found) else "permissive"
        self.record.reason = self.record.reason if self._failed else reason
        if isinstance(found, Workload):
            self.record.source_pod = found.pod

    def _try(self, ip: str, source: Source | None = None) -> None:
        to_port = self._to[1]
        connect = Connect(self._plane, ip, to_port, APP_TIMEOUT_S, self._answered, source)
        self._connect = connect
        connect.start()

    def _answered(self, app: socket.socket | None, error: SidecarError | None) -> None:
        if app is not None:
            return self._begin(app)
        if self._places and not is_silent(error):
            return self._try(self._places.pop(0))
        self._failed = True
        port = self._to[1]
        unreachable = no_app(port, error, on_loopback=port in self._plane.loopback_listeners())
        self.record.reason, self.record.error = unreachable.reason, str(unreachable)
        reset(self._sock)
        return self._report(0, 0, "refused")

    def _begin(self, app: socket.socket) -> None:
        self._connect = None
        permitted(self.record, self._permit)
        self._splice = RawSplice(self._plane.poller, self._sock, app, self._ended)
        self._splice.start(self._head)

    def _ended(self, splice: RawSplice, close: str, error: SidecarError | None) -> None:
        if error is not None:  # `reason` goes on to say why there was no tunnel
            self.record.error = str(error)
        self._report(splice.from_near, splice.to_near, close)

    @property
    def moved(self) -> tuple[int, int]:
        return (self._splice.from_near, self._splice.to_near) if self._splice else (0, 0)

    @property
    def peer(self) -> LeafFacts | None:
        return None

    @property
    def tunnel(self) -> None:
        """None carries it."""

    @property
    def tunnel_expires_at(self) -> float | None:
        return None

    def look(self, now: float) -> None:
        if self._splice is not None:
            self._splice.look()

    def cut(self, code: int, close: str) -> None:
        if self._splice is not None:
            return self._splice.cut(close)
        if self._connect is not None:
            self._connect.abandon()
        reset(self._sock)
        return self._report(0, 0, close)

    def deny(self, error: SidecarError) -> None:
        self._failed = True  # whoever tells its source's name later leaves the reason alone
        self.record.verdict = "denied"
        explain(self.record, error)
        self.cut(CUT_BY_POLICY, "policy")

    def broken(self, error: Exception) -> None:
        """Our own code failed while it served this link (see `loop.poller`): it ends, alone."""
        if self._splice is not None and not self._splice.over:
            return self._splice.broken(error)
        if self not in self._plane.live:
            return None
        self._failed = True
        self.record.verdict = "failed"
        explain(self.record, Bug.of(error))
        if self._connect is not None:
            self._connect.abandon()
        reset(self._sock)
        return self._report(0, 0, "bug")

    def _report(self, sent: int, received: int, close: str) -> None:
        self._plane.plaintext -= 1
        self._plane.link_over(self, sent, received, close)
