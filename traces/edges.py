"""Who talks to whom, and how: the roll-ups put together for a reader. Pure.

An *edge* is everything that one end sent to another end's port. Its ways (protected or not, allowed
or not, why) are kept apart, so that no sum can hide a single plaintext link: an edge is called
`mtls` only if every link of it was.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from traces.rollups import Traffic

State = Literal["mtls", "self", "mixed", "plaintext", "denied", "failed"]
STATES: Final[tuple[State, ...]] = ("denied", "plaintext", "mixed", "failed", "mtls", "self")
"""Worst first: the order in which a reader sees them."""


@dataclass(frozen=True, slots=True, order=True)
class End:
    """One end of an edge, by the best name there is. `kind` is `identity`, `pod`, `service`,
    `address` or `other` (too many names to keep apart)."""

    kind: str
    name: str
    namespace: str

    @property
    def label(self) -> str:
        """Short and for people: `namespace/service account` of an identity, else the name."""
        if self.kind == "identity":
            parts = self.name.split("/")
            if len(parts) == 7 and parts[3] == "ns" and parts[5] == "sa":
                return f"{parts[4]}/{parts[6]}"
        if self.kind == "other":
            return "others"
        return self.name or "not known"

    @property
    def place(self) -> str:
        """The namespace; `outside` for what has none."""
        return self.namespace or "outside"


@dataclass(frozen=True, slots=True)
class Way:
    """How some links of an edge went. `links` have ended; `opened` had lived for a minute by then."""

    security: str
    verdict: str
    reasons: tuple[str, ...]
    policies: tuple[str, ...]
    """Of each policy that decided, `namespace/name rule`."""
    nearest: tuple[str, ...]
    links: int
    opened: int
    bytes_sent: int
    bytes_received: int
    first_ns: int
    last_ns: int
    last_trace: str

    @property
    def state(self) -> State:
        if self.verdict == "denied":
            return "denied"
        if self.verdict == "failed":
            return "failed"
        if self.security == "plaintext":
            return "plaintext"
        if self.security == "self":
            return "self"
        return "mtls" if self.security == "mtls" else "failed"

    @property
    def size_bytes(self) -> int:
        return self.bytes_sent + self.bytes_received

    @property
    def count(self) -> int:
        """Links that ended; of a long one that still lives at least that it is there."""
        return self.links or self.opened


@dataclass(frozen=True, slots=True)
class Edge:
    source: End
    destination: End
    port: int
    services: tuple[str, ...]
    ways: tuple[Way, ...]
    """Worst first."""

    @property
    def links(self) -> int:
        return sum(way.count for way in self.ways)

    @property
    def size_bytes(self) -> int:
        return sum(way.size_bytes for way in self.ways)

    @property
    def first_ns(self) -> int:
        return min(way.first_ns for way in self.ways)

    @property
    def last_ns(self) -> int:
        return max(way.last_ns for way in self.ways)

    @property
    def last_trace(self) -> str:
        return max(self.ways, key=lambda way: way.last_ns).last_trace

    def count(self, state: State) -> int:
        return sum(way.count for way in self.ways if way.state == state)

    @property
    def carried(self) -> State | None:
        """How what was let through went; None if nothing was."""
        states = {way.state for way in self.ways} & {"mtls", "plaintext", "self"}
        if not states:
            return None
        if states <= {"self"}:
            return "self"
        if "plaintext" not in states:
            return "mtls"
        return "plaintext" if states == {"plaintext"} else "mixed"

    @property
    def state(self) -> State:
        """The worst that can be said of it."""
        if self.count("denied"):
            return "denied"
        return self.carried or "failed"

    @property
    def protected_percent(self) -> float | None:
        """Of the links that were let through and left the pod, how many went over mutual TLS."""
        return percent(self.count("mtls"), self.count("mtls") + self.count("plaintext"))


def percent(part: int, whole: int) -> float | None:
    """Rounded so that only all is 100 and only nothing is 0; None of nothing."""
    if whole == 0:
        return None
    if part in (0, whole):
        return 100.0 * part / whole
    return min(99.9, max(0.1, round(100.0 * part / whole, 1)))


def edges_of(traffic: Iterable[Traffic]) -> list[Edge]:
    """The edges of all this traffic, worst first, then busiest.

    Both sides of a link tell of it, and only the source knows the Service that was asked for: rows
    of one way are counted by whichever side told more.
    """
    groups: dict[tuple[End, End, int], dict[tuple[str, str], list[Traffic]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for t in traffic:
        source = End(t.source_kind, t.source, t.source_namespace)
        destination = End(t.destination_kind, t.destination, t.destination_namespace)
        groups[source, destination, t.port][t.security, t.verdict].append(t)
    found = [
        Edge(
            source,
            destination,
            port,
            _texts(t.service for rows in ways.values() for t in rows),
            tuple(sorted((_way(rows) for rows in ways.values()), key=_badness)),
        )
        for (source, destination, port), ways in groups.items()
    ]
    found.sort(key=lambda edge: (STATES.index(edge.state), -edge.links, edge.source, edge.port))
    return found


def _way(rows: Sequence[Traffic]) -> Way:
    def told(side: str, name: str) -> int:
        return sum(int(getattr(t, name)) for t in rows if t.sides in (side, "both"))

    def most(name: str) -> int:
        return max(told("outbound", name), told("inbound", name))

    last = max(rows, key=lambda t: t.last_ns)
    return Way(
        security=last.security,
        verdict=last.verdict,
        reasons=_texts(t.reason for t in rows),
        policies=_texts(f"{t.policy} {t.rule}".strip() for t in rows),
        nearest=_texts(t.nearest_rule for t in rows),
        links=most("links"),
        opened=most("opened"),
        bytes_sent=most("bytes_sent"),
        bytes_received=most("bytes_received"),
        first_ns=min(t.first_ns for t in rows),
        last_ns=last.last_ns,
        last_trace=last.last_trace.hex(),
    )


def _badness(way: Way) -> tuple[int, int]:
    return STATES.index(way.state), -way.count


def _texts(said: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({text for text in said if text}))


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what was let through between pods and beyond went over mutual TLS."""

    mtls_links: int
    plaintext_links: int
    mtls_bytes: int
    plaintext_bytes: int
    denied_links: int
    failed_links: int

    @property
    def links_percent(self) -> float | None:
        return percent(self.mtls_links, self.mtls_links + self.plaintext_links)

    @property
    def bytes_percent(self) -> float | None:
        return percent(self.mtls_bytes, self.mtls_bytes + self.plaintext_bytes)


def coverage(edges: Iterable[Edge]) -> Coverage:
    """Links of a pod to itself count on neither side: they never left it."""
    links: dict[State, int] = defaultdict(int)
    size: dict[State, int] = defaultdict(int)
    for edge in edges:
        for way in edge.ways:
            links[way.state] += way.count
            size[way.state] += way.size_bytes
    return Coverage(
        links["mtls"],
        links["plaintext"],
        size["mtls"],
        size["plaintext"],
        links["denied"],
        links["failed"],
    )
