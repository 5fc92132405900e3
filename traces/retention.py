"""What is deleted, and in which order: by age, then by size.

Spans go when they are too old, and before that, while the file is too large, the oldest allowed mTLS
links and requests first: denied, plaintext and failed links go last, so that nobody can push them out
with noise. Of those the edges that hold most give way first, and the ledger of certificates counts as
one of them: a million refusals of one caller leave the single refusal of another where it is.
Roll-ups outlive their spans (days for as long as a year), and an edge is remembered for as long as
any roll-up names it, so that "seen for the first time" means it.
"""

import sqlite3
from collections.abc import Iterable
from typing import Final

from traces.config import TracesConfig

_ROWS: Final = 2000
"""Deleted in one transaction, so that senders wait a moment and no longer."""
_LEDGER: Final = -1
"""In the place of an edge's number: the table of certificates."""
_DAY_S: Final = 86400
KEEP_MINUTES_S: Final = 2 * _DAY_S
KEEP_HOURS_S: Final = 31 * _DAY_S
KEEP_DAYS_S: Final = 400 * _DAY_S


class Retention:
    """Belongs to the writer's thread. `sweep` again for as long as it answers True."""

    def __init__(self, db: sqlite3.Connection, config: TracesConfig) -> None:
        self._db, self._config = db, config
        self._stale = True
        self.forgot = False
        """Numbers that others remember (of edges, ways, resources) may be gone."""

    def sweep(self, now_ns: int) -> bool:
        """Delete one portion. True if there was something, so that there may be more."""
        deleted = self._by_age(now_ns) or self._by_size()
        if deleted:
            self._stale = True
        elif self._stale:
            self._stale = False
            self._drop_unnamed(now_ns)
        self._db.execute("PRAGMA incremental_vacuum(2000)")
        return deleted > 0

    def _by_age(self, now_ns: int) -> int:
        oldest_ns = now_ns - int(self._config.keep_s * 1e9)
        deleted = self._spans("received_ns < ? ORDER BY received_ns", oldest_ns)
        now_s = now_ns // 10**9
        for step_s, keep_s in ((60, KEEP_MINUTES_S), (3600, KEEP_HOURS_S), (_DAY_S, KEEP_DAYS_S)):
            # A span is counted no earlier than an hour before it came, so this never splits a sum
            # that a question still needs.
            deleted += self._rollups(step_s, now_s - max(keep_s, step_s))
        deleted += self._db.execute(
            "DELETE FROM certificates WHERE id IN "
            "(SELECT id FROM certificates WHERE at_ns < ? ORDER BY at_ns LIMIT ?)",
            (now_ns - KEEP_DAYS_S * 10**9, _ROWS),
        ).rowcount
        return deleted

    def _by_size(self) -> int:
        if self._used_bytes() <= self._config.max_bytes:
            return 0
        return (
            self._spans("is_ordinary ORDER BY id")
            or self._notable()
            or self._rollups(60, 1 << 60)
            or self._rollups(3600, 1 << 60)
        )

    def _spans(self, which: str, *values: int | None, limit: int = _ROWS) -> int:
        return self._db.execute(
            f"DELETE FROM spans WHERE id IN (SELECT id FROM spans WHERE {which} LIMIT ?)",  # noqa: S608 - fixed text
            (*values, limit),
        ).rowcount

    def _notable(self) -> int:
        """One portion of what is deleted last."""
        counts = self._db.execute(
            "SELECT edge, count(*) FROM spans INDEXED BY notable_by_edge "
            "WHERE NOT is_ordinary GROUP BY edge"
        ).fetchall()
        (ledger,) = self._db.execute("SELECT count(*) FROM certificates").fetchone()
        counts.append((_LEDGER, ledger))
        # Never more than half: a portion must not reach down to the small ones where there is little.
        wanted = min(_ROWS, -(-sum(count for _, count in counts) // 2))
        deleted = 0
        for edge, surplus in fair_cuts(counts, wanted):
            if edge == _LEDGER:
                deleted += self._certificates(surplus)
            else:
                which = "NOT is_ordinary AND edge IS ? ORDER BY id"
                deleted += self._spans(which, edge, limit=surplus)
        return deleted

    def _certificates(self, limit: int) -> int:
        """Refusals first: anybody who reaches the CA can cause them."""
        deleted = 0
        for which in ("event = 'refused'", "true"):
            oldest = f"SELECT id FROM certificates WHERE {which} ORDER BY at_ns LIMIT ?"  # noqa: S608 - fixed text
            deleted += self._db.execute(
                f"DELETE FROM certificates WHERE id IN ({oldest})",  # noqa: S608 - fixed text
                (limit - deleted,),
            ).rowcount
        return deleted

    def _rollups(self, step_s: int, before_s: int) -> int:
        row = self._db.execute(
            "SELECT bucket_s FROM rollups WHERE step_s = ? ORDER BY bucket_s LIMIT 1", (step_s,)
        ).fetchone()
        if row is None or row[0] >= before_s:
            return 0
        return self._db.execute(
            "DELETE FROM rollups WHERE step_s = ? AND bucket_s = ?", (step_s, row[0])
        ).rowcount

    def _drop_unnamed(self, now_ns: int) -> None:
        """Numbers that no span and no roll-up names any more, told by when they were last used: to
        look for them in the spans would read the whole file."""
        row = self._db.execute("SELECT min(received_ns) FROM spans").fetchone()
        oldest_ns = now_ns if row[0] is None else int(row[0])
        self._db.execute("DELETE FROM resources WHERE last_ns < ?", (oldest_ns,))
        self._db.execute("DELETE FROM chains WHERE last_ns < ?", (oldest_ns,))
        forgotten_ns = now_ns - int(max(KEEP_DAYS_S, self._config.keep_s) * 1e9)
        self._db.execute("DELETE FROM edges WHERE last_ns < ?", (forgotten_ns,))
        self.forgot = True

    def _used_bytes(self) -> int:
        def pragma(name: str) -> int:
            return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

        return (pragma("page_count") - pragma("freelist_count")) * pragma("page_size")


def fair_cuts(
    counts: Iterable[tuple[int | None, int]], wanted: int
) -> list[tuple[int | None, int]]:
    """How many of each group go, so that about `wanted` go in all and the largest are cut down to one
    height, whatever is below it left alone. Pure."""
    ordered = sorted(((count, group) for group, count in counts), key=lambda one: -one[0])
    taken = level = 0
    for number, (count, _) in enumerate(ordered, 1):
        below = ordered[number][0] if number < len(ordered) else 0
        if taken + number * (count - below) >= wanted:
            level = count - -(-(wanted - taken) // number)
            break
        taken += number * (count - below)
    return [(group, count - level) for count, group in ordered if count > level]
