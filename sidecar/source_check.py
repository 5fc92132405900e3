"""Proof, at start and again and again, that an app would see its peer's address.

The proxy stands for both sides: it listens on the pod's own IP at a port that is free, and connects to
it as it connects to the app, in the name of an address that nobody has. Nothing leaves the pod. What
`accept` says must be that address. When it is not, apps see the pod's own address from then on, as
without all this; why, the admin socket says.
"""

import asyncio
import logging
import socket
from collections.abc import Iterable
from typing import Final

from kit.backoff import Backoff
from sidecar.dataplane.sources import Sources
from sidecar.sockets import peer_ip, reset, start_connect
from sidecar.source_address import EXAMPLES, stand_in

EVERY_S: Final = 5.0
AGAIN_S: Final = (1.0, 60.0)
"""After a failure, the first time and at most: it may have been the machine, but a test whose connection
gets no answer holds the loop up for a moment, and where there is no way it need not be asked often."""
_ANSWER_S: Final = 0.25
_TRIES: Final = 2
_log = logging.getLogger(__name__)


class SourceCheck:
    """Tests from the start on, if `sources` are wanted at all, until `close`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sources: Sources, own: Iterable[str], mark: int
    ) -> None:
        self._loop, self.sources, self._mark = loop, sources, mark
        self._own = sorted(own)
        self._backoff = Backoff(*AGAIN_S)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The first test is over when this returns: no link is older than its result."""
        if self.sources.wanted:
            self._test()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _test(self) -> None:
        well = True
        for ip in self._own:
            version = 6 if ":" in ip else 4
            before = self.sources.why_not.get(version, "")
            why_not = prove(ip, self._mark)
            self.sources.tested(version, why_not)
            well = well and not why_not
            if why_not and why_not != before:
                _log.warning(
                    "the app sees the pod's own address as its callers'",
                    extra={"ip_version": version, "why": why_not},
                )
            elif before and not why_not:
                _log.info("the app sees its callers' addresses", extra={"ip_version": version})
        if well:
            self._backoff.reset()
        self._timer = self._loop.call_later(EVERY_S if well else self._backoff.next_s(), self._test)


def prove(ip: str, mark: int) -> str:
    """Why an app that listens on the pod's address `ip` would not see its peer's; "" if it does."""
    why_not = ""
    for _ in range(_TRIES):
        try:
            why_not = _try(ip, mark)
        except TimeoutError:
            why_not = "a connection in a peer's name gets no answer: are there foreign NAT rules?"
            continue
        except OSError as e:
            return f"{e.strerror or e}: was this pod captured by an older podlink?"
        break
    return why_not


def _try(ip: str, mark: int) -> str:
    """Raises OSError."""
    shown = EXAMPLES[6 if ":" in ip else 4]
    source = stand_in(shown)
    assert source is not None
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((ip, 0))
        listener.listen(1)
        listener.settimeout(_ANSWER_S)
        sock = start_connect(ip, listener.getsockname()[1], mark, source)
        try:
            app, (seen, *_) = listener.accept()
        finally:
            reset(sock)  # leaves no TIME_WAIT behind
    app.close()
    seen = peer_ip(seen)
    return "" if seen == shown else f"a connection in the name of {shown} is seen to be {seen}'s"
