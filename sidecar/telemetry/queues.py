"""Which record is kept when not all can be. Pure: no clock, no I/O.

Three lanes, so that nobody can hide a denial by making noise (threat model, row 44):

- `denied`: links that were refused. Sent first, dropped last.
- `notable`: plaintext, failed and audited links. Never sampled out; shares its room with `denied`
  and gives way to it, oldest first.
- `allowed`: allowed mTLS links (and links of a pod to itself), sampled, in a room of their own.

In the denied lane one source and destination may fill no more than a quarter, so that a thousand
refusals of the one do not push out the single refusal of the other.
"""

from collections import Counter, deque

from sidecar.report import LinkRecord

Target = tuple[str, str, int]


def is_ordinary(record: LinkRecord) -> bool:
    """True if the record may be sampled out: allowed, and protected or within the pod."""
    return record.verdict == "allowed" and record.security in ("mtls", "self")


def _target(record: LinkRecord) -> Target:
    ip = record.destination_ip or record.original_ip
    return (record.source_ip, ip, record.destination_port or record.original_port)


class RecordQueues:
    def __init__(self, allowed_room: int, reserved_room: int) -> None:
        self._allowed_room, self._reserved_room = allowed_room, reserved_room
        self._allowed: deque[LinkRecord] = deque()
        self._notable: deque[LinkRecord] = deque()
        self._denied: deque[tuple[Target, LinkRecord]] = deque()
        self._denied_by_target: Counter[Target] = Counter()
        self._share = max(1, reserved_room // 4)
        self.dropped_allowed = 0
        self.dropped_notable = 0
        self.dropped_denied = 0

    def __len__(self) -> int:
        return len(self._allowed) + len(self._notable) + len(self._denied)

    def put_allowed(self, record: LinkRecord) -> None:
        """Keep an ordinary record; when there is no room the oldest ordinary one goes."""
        if len(self._allowed) >= self._allowed_room:
            self._allowed.popleft()
            self.dropped_allowed += 1
        self._allowed.append(record)

    def put_reserved(self, record: LinkRecord) -> None:
        """Keep a denied or notable record, making room at the expense of notable ones."""
        denied, target = record.verdict == "denied", _target(record)
        if denied and self._denied_by_target[target] >= self._share:
            self.dropped_denied += 1
            return
        if len(self._denied) + len(self._notable) >= self._reserved_room:
            if self._notable:
                self._notable.popleft()
                self.dropped_notable += 1
            elif denied:
                self._pop_denied()
                self.dropped_denied += 1
            else:
                self.dropped_notable += 1
                return
        if denied:
            self._denied.append((target, record))
            self._denied_by_target[target] += 1
        else:
            self._notable.append(record)

    def pop(self) -> LinkRecord | None:
        """The next record to send: denied before notable before allowed, oldest first in each."""
        if self._denied:
            return self._pop_denied()
        if self._notable:
            return self._notable.popleft()
        return self._allowed.popleft() if self._allowed else None

    def _pop_denied(self) -> LinkRecord:
        target, record = self._denied.popleft()
        self._denied_by_target[target] -= 1
        if not self._denied_by_target[target]:
            del self._denied_by_target[target]
        return record

    def drop_all(self) -> int:
        """Drop what is left, counting each in its lane, and return how many that was."""
        left = len(self)
        self.dropped_allowed += len(self._allowed)
        self.dropped_notable += len(self._notable)
        self.dropped_denied += len(self._denied)
        self._allowed.clear()
        self._notable.clear()
        self._denied.clear()
        self._denied_by_target.clear()
        return left
