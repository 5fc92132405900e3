"""Looks at a proxy when somebody asks for its metrics."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from certs.client.source import Svid
from kit.contract import VERSION
from kit.exposition import Family, Labels, one
from sidecar.carrier import Carrier
from sidecar.metrics import catalogue as c
from sidecar.metrics import process


@dataclass(frozen=True, slots=True)
class ControlFacts:
    """What the one process knows that holds the certificate and the registry's stream."""

    svid: Svid | None
    refreshes: Mapping[str, int]
    """Renewals of the leaf by result, `ok` and `failed`."""
    spans: Mapping[str, int]
    """The exporter's `stats`."""
    registry_connected: bool
    registry_refused: Mapping[str, int]
    """What the registry said and was left out, by reason."""
    ready: bool
    captured: bool | None
    """None where there is no capture, or nobody has looked yet."""
    now: float
    """Monotonic."""


def of_carrier(carrier: Carrier) -> list[Family]:
    """The families of one process that carries links, and of the process itself."""
    plane, arrivals, lag = carrier.plane, carrier.arrivals, carrier.lag
    tunnels: dict[Labels, float] = {
        ("dialled",): len(plane.pool),
        ("accepted",): len(arrivals.tunnels),
    }
    return [
        *carrier.meter.families(plane.live),
        *plane.handshakes.families(),
        Family(c.RENEWALS, _renewals(carrier)),
        Family(c.TURNED_AWAY, {(limit,): n for limit, n in _turned_away(carrier).items()}),
        one(c.INTERNAL_ERRORS, plane.poller.bugs),
        Family(c.SOURCE_ADDRESS, {(result,): n for result, n in plane.sources.counts.items()}),
        one(c.ACCEPT_PAUSES, carrier.accept_pauses),
        Family(c.TUNNELS, tunnels),
        one(c.STRANGERS, arrivals.strangers),
        one(c.LOOP_LAG, lag.worst_lately_s),
        one(c.LOOP_STALLS, lag.stalls),
        one(c.WORKERS, 1),
        *process.families(),
    ]


def _renewals(carrier: Carrier) -> dict[Labels, float]:
    """How many of each outcome; of the usual one also while there has been none."""
    by_leaf = {"own": carrier.renewals.ours, "peer": carrier.renewals.theirs}
    return {
        (leaf, outcome): n
        for leaf, counts in by_leaf.items()
        for outcome, n in {"believed": 0, **counts}.items()
    }


def _turned_away(carrier: Carrier) -> dict[str, int]:
    return {**carrier.plane.turned_away, "descriptors": carrier.shed}


def of_control(facts: ControlFacts) -> list[Family]:
    """The families that there is one of, however many processes carry links."""
    svid = facts.svid
    ends = 0.0 if svid is None else svid.expires_at.timestamp()
    left = 0.0 if svid is None else max(0.0, svid.deadline - facts.now)
    dropped: dict[Labels, float] = {
        (name.removeprefix("dropped_"),): count
        for name, count in facts.spans.items()
        if name.startswith("dropped_")
    }
    return [
        one(c.CERTIFICATE_ENDS, ends),
        one(c.CERTIFICATE_LEFT, left),
        Family(c.REFRESHES, {(result,): n for result, n in facts.refreshes.items()}),
        one(c.SPANS_EXPORTED, facts.spans["exported"]),
        Family(c.SPANS_DROPPED, dropped),
        one(c.REGISTRY_CONNECTED, facts.registry_connected),
        Family(c.REGISTRY_REFUSED, {(reason,): n for reason, n in facts.registry_refused.items()}),
        one(c.READY, facts.ready),
        *([] if facts.captured is None else [one(c.CAPTURED, facts.captured)]),
        Family(c.BUILD, {(VERSION, platform.python_version()): 1}),
    ]
