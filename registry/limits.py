"""What one address and one pod may hold of the registry. No I/O."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Every pod has an address of its own, and the leaf that it shows must name it."""

    per_pod: int = 2
    """Streams. A sidecar has one; one more, since the end of an old one may be noticed late. Over it the
    oldest ends."""
    strangers_per_source: int = 8
    """Streams of one address that have not shown whose they are."""
    begun_per_s: float = 2.0
    begun_burst: float = 20.0
    """Streams that one address may begin. A sidecar waits up to 5 s between two."""
    connections_per_source: int = 64
    """TCP connections. A sidecar has one."""


USUAL = StreamLimits()
