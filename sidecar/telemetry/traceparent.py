"""Reads a traceparent that an app or a peer claimed. Claimed only: it may become a span link,
never a parent, an id or a sampling decision of ours, since anybody can send any header.
(W3C Trace Context, section 3.2.)
"""

import re
from dataclasses import dataclass

MAX_LENGTH = 512
_FORM = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-[ -~]*)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ClaimedContext:
    trace_id: bytes
    span_id: bytes
    flags: int


def parse_claimed(raw_header: str) -> ClaimedContext | None:
    """What the header says, or None if it is not a traceparent. Version 00 has nothing after its
    flags; later versions may."""
    if len(raw_header) > MAX_LENGTH:
        return None
    found = _FORM.fullmatch(raw_header)
    if found is None or found["version"] == "ff" or (found["version"] == "00" and found["more"]):
        return None
    trace_id, span_id = bytes.fromhex(found["trace"]), bytes.fromhex(found["span"])
    if not any(trace_id) or not any(span_id):
        return None
    return ClaimedContext(trace_id, span_id, int(found["flags"], 16))
