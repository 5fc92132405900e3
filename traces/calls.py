"""How many calls each sender may have open, and how long one may take to come. Pure but for counting."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

PER_POD: Final = 4
"""A sidecar has one; after a reconnect the old one may linger."""
PER_IDENTITY: Final = 32
"""Pods of one service account. Each waits for one commit of all that wait: hundreds a second."""
READ_S: Final = 10.0
"""From a call's begin until all of its request is here."""


class TooManyCalls(Exception):
    """This sender has as many calls open as one may."""

    reason = "too_many_calls"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called. `pod` tells the pods of one identity apart: the part of its leaf's serial that the CA
    makes of the pod's UID (certs.trust.bans)."""

    identity: str
    pod: int = 0


NOBODY: Final = Caller("")


class Calls:
    """Belongs to one event loop. Who proves nothing is not counted: they cannot be told apart."""

    def __init__(self, read_s: float = READ_S) -> None:
        self.read_s = read_s
        self._of_pods: Counter[Caller] = Counter()
        self._of_identities: Counter[str] = Counter()

    @contextmanager
    def one(self, caller: Caller) -> Iterator[None]:
        """Count a call for as long as it lasts. Raises TooManyCalls."""
        if caller.identity and (
            self._of_pods[caller] >= PER_POD or self._of_identities[caller.identity] >= PER_IDENTITY
        ):
            raise TooManyCalls(caller.identity)
        self._of_pods[caller] += 1
        self._of_identities[caller.identity] += 1
        try:
            yield
        finally:
            self._of_pods -= Counter({caller: 1})  # drops what comes to nothing
            self._of_identities -= Counter({caller.identity: 1})
