"""What a reader asks for, as a URL says it, and back. Pure.

Every view takes the same words, so that a link from one to another keeps them: the time (`since`, or
`from` and `to`), a namespace, an identity, a state, and text to find.
"""

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self
from urllib.parse import parse_qsl, urlencode

from traces.edges import STATES, Edge

_DURATION = re.compile(r"([1-9][0-9]{0,4})([mhd])", re.ASCII)
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86400}
SINCE: Final = {
    "15m": "last 15 minutes",
    "1h": "last hour",
    "24h": "last 24 hours",
    "7d": "last 7 days",
    "30d": "last 30 days",
}
"""What the form offers; any number of m, h or d is taken."""
REFRESH: Final = {
    "30s": (30, "every 30 seconds"),
    "1m": (60, "every minute"),
    "5m": (300, "every 5 minutes"),
}
"""How often a view may be made anew by itself, in seconds, if its reader asks for it."""
_DEFAULT = "24h"
_MAX_TEXT = 2048
_MAX_S = 3660 * 86400


class QueryMalformed(ValueError):
    """A parameter of the question is wrong; the message names it."""

    reason = "query_malformed"


@dataclass(frozen=True, kw_only=True)
class Asked:
    since_s: int
    until_s: int
    """Unix seconds; the time asked about is [since, until)."""
    since: str = _DEFAULT
    """The duration as it was asked for; empty if two moments were."""
    namespace: str = ""
    identity: str = ""
    state: str = ""
    text: str = ""
    refresh_s: int = 0
    """The reader wants the view anew so often; 0: only when asked."""
    now_ns: int = 0
    raw: Mapping[str, str] = field(default_factory=dict)
    """All words of the query as they came; a view may know more than these."""

    @classmethod
    def parse(cls, query: Mapping[str, str], now_ns: int, default: str = _DEFAULT) -> Self:
        """Raises QueryMalformed, naming the parameter."""
        now_s = now_ns // 10**9
        for name in ("ns", "identity", "q", "state"):
            if len(query.get(name, "")) > _MAX_TEXT:
                raise QueryMalformed(f"{name} is too long")
        refresh = query.get("refresh", "")
        if refresh and refresh not in REFRESH:
            raise QueryMalformed(f"refresh must be one of {', '.join(REFRESH)}")
        state = query.get("state", "")
        if state and state not in STATES:
            raise QueryMalformed(f"state must be one of {', '.join(STATES)}")
        since = query.get("since", "")
        if query.get("from") and not since:
            since_s = moment("from", query["from"])
            until_s = moment("to", query["to"]) if query.get("to") else now_s
            if not since_s < until_s <= since_s + _MAX_S:
                raise QueryMalformed("from must come before to, by ten years at most")
        else:
            since = since or default
            since_s, until_s = now_s - duration_s("since", since), now_s + 1
        return cls(
            since_s=max(0, since_s),
            until_s=until_s,
            since=since,
            namespace=query.get("ns", ""),
            identity=query.get("identity", ""),
            state=state,
            text=query.get("q", ""),
            refresh_s=REFRESH[refresh][0] if refresh else 0,
            now_ns=now_ns,
            raw=query,
        )

    def words(self) -> list[tuple[str, str]]:
        """The query as a form's hidden fields."""
        return parse_qsl(self.query())

    def query(self, **changes: str) -> str:
        """As the part of a URL after the `?`; a change to the empty text leaves that word out."""
        words = {
            "since": self.since,
            "from": "" if self.since else stamp(self.since_s),
            "to": "" if self.since else stamp(self.until_s),
            "ns": self.namespace,
            "identity": self.identity,
            "state": self.state,
            "q": self.text,
            "refresh": self.raw.get("refresh", "") if self.refresh_s else "",
        }
        if "from" in changes:
            words["since"] = ""
        words.update(changes)
        return urlencode({name: value for name, value in words.items() if value})

    def pinned(self) -> str:
        """The query with the time spelled out, so that it shows the same to whoever gets it."""
        words = {"from": stamp(self.since_s), "to": stamp(self.until_s), "refresh": ""}
        return self.query(**words)

    def before(self) -> "Asked":
        """The same length of time, just before."""
        length = self.until_s - self.since_s
        return replace(self, since="", since_s=max(0, self.since_s - length), until_s=self.since_s)

    @property
    def name(self) -> str:
        """The time asked about, for people."""
        if self.since:
            return SINCE.get(self.since, f"last {self.since}")
        return f"{stamp(self.since_s)} to {stamp(self.until_s)}"

    def fits(self, edge: Edge) -> bool:
        """Whether an edge is asked for; the time is the store's part."""
        ends = (edge.source, edge.destination)
        if self.namespace and all(end.place != self.namespace for end in ends):
            return False
        if self.identity and all(end.name != self.identity for end in ends):
            return False
        if (
            self.state
            and self.state != edge.state
            and not any(way.state == self.state for way in edge.ways)
        ):
            return False
        if self.text:
            said = " ".join((*(f"{e.name} {e.label}" for e in ends), *edge.services)).casefold()
            return self.text.casefold() in said
        return True


def duration_s(name: str, raw: str) -> int:
    found = _DURATION.fullmatch(raw)
    if found is None or int(found[1]) * _SECONDS[found[2]] > _MAX_S:
        raise QueryMalformed(f"{name} must be a time such as 15m, 24h or 7d")
    return int(found[1]) * _SECONDS[found[2]]


def moment(name: str, raw: str) -> int:
    """A date, or a date and time, in UTC, as Unix seconds."""
    try:
        at = dt.datetime.fromisoformat(raw)
    except ValueError as e:
        raise QueryMalformed(f"{name} must be a time such as 2026-11-24T09:30 (UTC)") from e
    at = at.replace(tzinfo=dt.UTC) if at.tzinfo is None else at
    if not 1970 < at.year < 9000:
        raise QueryMalformed(f"{name} is beyond all records")
    return int(at.timestamp())


def stamp(unix_s: int) -> str:
    return f"{dt.datetime.fromtimestamp(unix_s, dt.UTC):%Y-%m-%dT%H:%M:%S}"
