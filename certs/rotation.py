"""The rotation of a root as a state machine. Pure: what is seen and the time go in, a move comes out.

    none -> PUBLISHING -> SIGNING -> none      old+new published; new signs; old dropped
            PUBLISHING -> none                 aborted: new dropped
                          SIGNING -> RETURNING -> none   aborted late: old signs again, new dropped

A step is taken when every gate before it is open, or was forced by name. Nothing here acts: whoever
asks makes the move by one guarded write, so that any number of CAs may ask at once and a CA that is
killed at any point finds the state as it was or as it shall be, never in between.
"""

import datetime as dt
import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

SKEW = dt.timedelta(seconds=60)
MAX_NAMES = 50
"""Stragglers that one gate names; it counts the rest."""


class RotationMalformed(ValueError):
    """A stored rotation or an order cannot be read; the text says why."""

    reason = "rotation_malformed"


class RotationRefused(Exception):
    """An order that does not fit the state; the text is for the operator."""

    reason = "rotation_refused"


class Phase(enum.Enum):
    PUBLISHING = "publishing"
    """Both roots are published and the old one signs: everybody must learn the new one."""
    SIGNING = "signing"
    """Both are published and the new one signs: the leaves of the old one must end."""
    RETURNING = "returning"
    """Aborted after the switch: the old one signs again, the leaves of the new one must end."""


LEGAL: Mapping[Phase | None, frozenset[Phase | None]] = {
    None: frozenset({Phase.PUBLISHING}),
    Phase.PUBLISHING: frozenset({Phase.SIGNING, None}),
    Phase.SIGNING: frozenset({Phase.RETURNING, None}),
    Phase.RETURNING: frozenset({None}),
}
"""Phase -> what may follow; None is no rotation."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation under way, as it is stored."""

    phase: Phase
    since: dt.datetime
    """When the phase began."""
    by: str
    """Who asked for it: a person, the schedule, a Secret that was replaced."""
    automatic: bool = False
    """Steps are taken as soon as their gates are open; else each waits for an order."""
    leaves_end: dt.datetime | None = None
    """When the last leaf of the signer that went must have ended, once one has gone."""
    forced: frozenset[str] = frozenset()
    """Names that no gate waits for: pods, namespaces, CAs or gates."""

    def to_json(self) -> str:
        found = asdict(self)
        found["phase"], found["since"] = self.phase.value, self.since.isoformat()
        found["leaves_end"] = self.leaves_end.isoformat() if self.leaves_end else None
        found["forced"] = sorted(self.forced)
        return json.dumps(found, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Rotation":
        """Raises RotationMalformed."""
        try:
            found = json.loads(text)
            end = found.get("leaves_end")
            rotation = cls(
                phase=Phase(found["phase"]),
                since=_time(found["since"]),
                by=str(found["by"])[:256],
                automatic=found["automatic"] is True,
                leaves_end=_time(end) if end is not None else None,
                forced=frozenset(map(str, found["forced"])),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise RotationMalformed(f"{type(e).__name__}: {e}"[:256]) from e
        if rotation.phase is not Phase.PUBLISHING and rotation.leaves_end is None:
            raise RotationMalformed(f"phase {rotation.phase.value} without leaves_end")
        return rotation


def _time(text: Any) -> dt.datetime:
    found = dt.datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"a time without its zone: {text!r}")
    return found


Action = Literal["start", "advance", "abort"]
ACTIONS: frozenset[str] = frozenset({"start", "advance", "abort"})


@dataclass(frozen=True, slots=True)
class RotationOrder:
    """What an operator asked for, once. `id` tells a new order from one that was carried out."""

    id: str
    action: Action
    by: str = ""
    automatic: bool = False
    force: frozenset[str] = frozenset()

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "force": sorted(self.force)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "RotationOrder":
        """Raises RotationMalformed; an order with anything unknown in it is not guessed at."""
        try:
            found = json.loads(text)
            unknown = found.keys() - {"id", "action", "by", "automatic", "force"}
            if unknown or found["action"] not in ACTIONS:
                raise ValueError(f"unknown {sorted(unknown) or found['action']!r}")
            order = cls(
                id=str(found["id"])[:64],
                action=found["action"],
                by=str(found.get("by", ""))[:256],
                automatic=found.get("automatic", False) is True,
                force=frozenset(map(str, found.get("force", ()))),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise RotationMalformed(f"{type(e).__name__}: {e}"[:256]) from e
        if not order.id:
            raise RotationMalformed("an order needs an id")
        return order


@dataclass(frozen=True, slots=True)
class Seen:
    """What the step depends on, as it is at `now`."""

    now: dt.datetime
    unacknowledged: tuple[str, ...] = ()
    """Pods, `namespace/name`, that hold a living leaf or watch, and do not use the bundle yet."""
    unpublished: tuple[str, ...] = ()
    """Enrolled namespaces whose ConfigMap does not hold the bundle."""
    behind: tuple[str, ...] = ()
    """Living CAs that do not serve the bundle yet."""
    old_leaves: tuple[str, ...] = ()
    """Pods that still show a leaf of the signer that goes."""


@dataclass(frozen=True, slots=True)
class Timing:
    settle: dt.timedelta = dt.timedelta(minutes=2)
    """How long a new root must have been published at least: the kubelet's delay in updating a
    mounted ConfigMap, and a webhook's caBundle on its way."""
    longest_leaf: dt.timedelta = dt.timedelta(hours=1)
    stale: dt.timedelta = dt.timedelta(seconds=60)
    """How long a CA that cannot read the state goes on signing with what it knew."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What a step waits for. `name` is a slug; forcing it by that name opens it."""

    name: str
    text: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """What to do next. `to` None with `moves` True ends the rotation."""

    moves: bool
    to: Phase | None = None
    rotation: Rotation | None = None
    """The rotation after the move; None if there is none any more, or none begins."""
    waits: tuple[Gate, ...] = ()
    said: str = ""
    """The answer to the order, for the operator."""


def gates(rotation: Rotation, seen: Seen, timing: Timing) -> tuple[Gate, ...]:
    """What the next step still waits for; nothing, if it may be taken."""
    found: list[Gate] = []
    if rotation.phase is Phase.PUBLISHING:
        _name(
            found,
            rotation,
            "unacknowledged",
            "pods do not use the new root yet",
            seen.unacknowledged,
        )
        _name(found, rotation, "unpublished", "namespaces lack the new bundle", seen.unpublished)
        _name(found, rotation, "behind", "CAs do not serve the new bundle yet", seen.behind)
        ends = rotation.since + timing.settle
        if seen.now < ends:
            found.append(Gate("settling", f"mounted bundles get until {_iso(ends)}"))
    else:
        assert rotation.leaves_end is not None
        if seen.now < rotation.leaves_end:
            text = f"leaves of the root that goes may live until {_iso(rotation.leaves_end)}"
            names = tuple(sorted(set(seen.old_leaves) - rotation.forced))
            found.append(Gate("old_leaves", text, _cut(names)))
        _name(found, rotation, "behind", "CAs do not serve the bundle yet", seen.behind)
    return tuple(gate for gate in found if gate.name not in rotation.forced)


def _name(
    found: list[Gate], rotation: Rotation, name: str, text: str, names: Iterable[str]
) -> None:
    left = tuple(sorted(set(names) - rotation.forced))
    if left:
        found.append(Gate(name, f"{len(left)} {text}", _cut(left)))


def _cut(names: tuple[str, ...]) -> tuple[str, ...]:
    more = len(names) - MAX_NAMES
    return names if more <= 0 else (*names[:MAX_NAMES], f"and {more} more")


def decide(
    rotation: Rotation | None,
    seen: Seen,
    timing: Timing,
    order: RotationOrder | None = None,
    due: str = "",
) -> Move:
    """The next move. `order` is one not carried out yet; `due` says why a rotation is to begin by
    itself. Raises RotationRefused for an order that does not fit."""
    if rotation is None:
        return _begin(seen, order, due)
    if order is None:
        waits = gates(rotation, seen, timing)
        if rotation.automatic and not waits:
            return _step(rotation, seen, timing)
        return Move(False, rotation.phase, rotation, waits)
    if order.action == "start":
        raise RotationRefused(f"a rotation is under way already (phase {rotation.phase.value})")
    if order.action == "abort":
        return _abort(rotation, seen, timing)
    known = _names_of(gates(rotation, seen, timing)) | set(seen.unacknowledged)
    if strange := sorted(order.force - known - rotation.forced):
        raise RotationRefused(f"nothing waits for {', '.join(strange)[:512]}")
    forced = replace(rotation, forced=rotation.forced | order.force)
    waits = gates(forced, seen, timing)
    if waits:
        text = "; ".join(_line(gate) for gate in waits)
        return Move(False, forced.phase, forced, waits, f"not yet: {text}"[:2048])
    return _step(forced, seen, timing)


def _names_of(waits: Iterable[Gate]) -> set[str]:
    return {name for gate in waits for name in (gate.name, *gate.names)}


def _line(gate: Gate) -> str:
    return f"{gate.text} ({', '.join(gate.names)})" if gate.names else gate.text


def _begin(seen: Seen, order: RotationOrder | None, due: str) -> Move:
    if order is not None and order.action != "start":
        raise RotationRefused("no rotation is under way")
    if order is None and not due:
        return Move(False)
    by, automatic = (order.by, order.automatic) if order is not None else (due, True)
    return _to(Phase.PUBLISHING, Rotation(Phase.PUBLISHING, seen.now, by, automatic), None)


def _step(rotation: Rotation, seen: Seen, timing: Timing) -> Move:
    if rotation.phase is Phase.PUBLISHING:
        return _to(Phase.SIGNING, _switched(Phase.SIGNING, rotation, seen, timing), rotation.phase)
    return _to(None, None, rotation.phase)


def _abort(rotation: Rotation, seen: Seen, timing: Timing) -> Move:
    if rotation.phase is Phase.RETURNING:
        raise RotationRefused("it is being aborted already")
    if rotation.phase is Phase.PUBLISHING:
        return _to(None, None, rotation.phase)
    back = _switched(Phase.RETURNING, rotation, seen, timing)
    return _to(Phase.RETURNING, replace(back, automatic=True), rotation.phase)


def _switched(to: Phase, rotation: Rotation, seen: Seen, timing: Timing) -> Rotation:
    end = seen.now + timing.longest_leaf + timing.stale + SKEW
    return replace(rotation, phase=to, since=seen.now, leaves_end=end, forced=frozenset())


def _to(phase: Phase | None, rotation: Rotation | None, of: Phase | None) -> Move:
    assert phase in LEGAL[of]
    said = {
        Phase.PUBLISHING: "begun: old and new root are published",
        Phase.SIGNING: "the new root signs",
        Phase.RETURNING: "aborted: the old root signs again",
        None: "ended: one root is left",
    }[phase]
    return Move(True, phase, rotation, (), said)


def is_due(
    root_begins: dt.datetime, root_ends: dt.datetime, now: dt.datetime, every: dt.timedelta
) -> bool:
    """Whether a root is to be replaced by schedule: it is `every` old, or nine tenths of its life
    are over. `every` of nothing means never."""
    if not every:
        return False
    return now >= min(root_begins + every, root_begins + (root_ends - root_begins) * 0.9)


def _iso(at: dt.datetime) -> str:
    return at.replace(microsecond=0).isoformat().replace("+00:00", "Z")
