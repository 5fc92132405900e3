"""Proof, again and again, that capture is still in place while the proxy runs.

The rules send the canary's address to the outbound port whoever dials it, the proxy included
(`sidecar.capture.plan`); there the proxy answers with its pod's UID. When the rules are gone, the
connection leaves the pod and nobody answers: then what the app says would go out unprotected, so the
pod is not ready until the rules are back.

Only the kernel's own word counts as a miss. Where the rules are in place it connects the canary to our
listening socket by itself, however late this process is; an answer that merely comes late is neither.
"""

import asyncio
import enum
import logging
import socket
from typing import Final

from kit.clock import Monotonic, monotonic
from kit.contract import CANARIES, canary_answer
from sidecar.sockets import OUT_OF_RESOURCES, is_connected

EVERY_S: Final = 5.0
AGAIN_S: Final = 0.5
"""After a failure: it may have been the machine, and recovery is to be seen soon."""
_TIMEOUT_S: Final = 2.0
_FAILURES: Final = 2
"""One after the other before the rules count as gone: a loop that stood still is no proof."""
_log = logging.getLogger(__name__)


class Canary(enum.Enum):
    LANDED = "landed"
    LATE = "late"
    """Connected by the kernel, and not answered in time."""
    MISSED = "missed"


class CaptureWatch:
    """`run` dials the canary until it is cancelled; `in_place` says what came of it."""

    def __init__(self, pod_uid: str, now: Monotonic = monotonic) -> None:
        self._answer, self._now = canary_answer(pod_uid), now
        self._failures = 0
        self.late = 0
        """How often it landed and was not answered in time: by a busy machine, or a full queue."""
        self._seen_at: float | None = None
        self.in_place: bool | None = None
        """None until the first answer: before that the startup probe waits for other things."""

    async def run(self) -> None:
        while True:
            found = await self._lands()
            if found is Canary.LANDED:
                self._heard()
            elif found is Canary.MISSED:
                self._missed()
            else:
                self.late += 1
            await asyncio.sleep(AGAIN_S if self._failures else EVERY_S)

    def describe(self) -> dict[str, object]:
        """For the admin socket."""
        since = None if self._seen_at is None else round(self._now() - self._seen_at, 3)
        return {
            "in_place": self.in_place,
            "seen_s_ago": since,
            "failures": self._failures,
            "late": self.late,
        }

    def _heard(self) -> None:
        if self.in_place is False:
            _log.info("capture is in place again")
        self.in_place, self._failures, self._seen_at = True, 0, self._now()

    def _missed(self) -> None:
        self._failures += 1
        if self._failures == _FAILURES:
            self.in_place = False
            _log.error(
                "capture is gone: connections of the app would leave unprotected, so this pod is "
                "not ready; who flushed the pod's nft rules? restart the pod to have them again"
            )

    async def _lands(self) -> Canary:
        """What became of IPv4's canary, and of IPv6's in a pod without IPv4."""
        found = Canary.MISSED
        for ip, port in CANARIES.values():
            said = await dial(ip, port, self._answer)
            if said is Canary.LANDED:
                return said
            found = Canary.LATE if said is Canary.LATE else found
        return found


async def dial(ip: str, port: int, answer: bytes, timeout_s: float = _TIMEOUT_S) -> Canary:
    """Dial the canary and read what is said there, which should be `answer`."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:  # no descriptor left, or no IPv6: that says nothing of the rules
        return Canary.LATE if family == socket.AF_INET else Canary.MISSED
    with sock:
        try:
            async with asyncio.timeout(timeout_s):
                await loop.sock_connect(sock, (ip, port))
                said = await loop.sock_recv(sock, len(answer))
        except TimeoutError:
            return Canary.LATE if is_connected(sock) else Canary.MISSED
        except OSError as e:
            return Canary.LATE if e.errno in OUT_OF_RESOURCES else Canary.MISSED
    return Canary.LANDED if said == answer else Canary.MISSED
