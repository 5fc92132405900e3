"""Proof, again and again, that capture is still in place while the proxy runs.

The rules send the canary's address to the outbound port whoever dials it, the proxy included
(`sidecar.capture.plan`); there the proxy answers with its pod's UID. When the rules are gone, the
connection leaves the pod and nobody answers: then what the app says would go out unprotected, so the
pod is not ready until the rules are back.
"""

import asyncio
import logging
from typing import Final

from kit.clock import Monotonic, monotonic
from kit.contract import CANARIES, canary_answer

EVERY_S: Final = 5.0
AGAIN_S: Final = 0.5
"""After a failure: it may have been the machine, and recovery is to be seen soon."""
_TIMEOUT_S: Final = 2.0
_FAILURES: Final = 2
"""One after the other before the rules count as gone: a loop that stood still is no proof."""
_log = logging.getLogger(__name__)


class CaptureWatch:
    """`run` dials the canary until it is cancelled; `in_place` says what came of it."""

    def __init__(self, pod_uid: str, now: Monotonic = monotonic) -> None:
        self._answer, self._now = canary_answer(pod_uid), now
        self._failures = 0
        self._seen_at: float | None = None
        self.in_place: bool | None = None
        """None until the first answer: before that the startup probe waits for other things."""

    async def run(self) -> None:
        while True:
            if await self._lands():
                self._heard()
            else:
                self._missed()
            await asyncio.sleep(AGAIN_S if self._failures else EVERY_S)

    def describe(self) -> dict[str, object]:
        """For the admin socket."""
        since = None if self._seen_at is None else round(self._now() - self._seen_at, 3)
        return {"in_place": self.in_place, "seen_s_ago": since, "failures": self._failures}

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

    async def _lands(self) -> bool:
        """Whether IPv4's canary, or IPv6's in a pod without IPv4, lands on our outbound port."""
        for ip, port in CANARIES.values():
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(ip, port)
                    try:
                        said = await reader.read(len(self._answer))
                    finally:
                        writer.close()
            except (OSError, TimeoutError):
                continue
            if said == self._answer:
                return True
        return False
