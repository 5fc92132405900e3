"""What is deleted, and in which order: by age, then by size.

Spans go when they are too old, and before that, while the file is too large, the oldest allowed mTLS
links first: denied, plaintext and failed ones go last, so that nobody can push them out with noise.
Roll-ups outlive their spans (days for as long as a year), and an edge is remembered for as long as
any roll-up names it, so that "seen for the first time" means it.
"""

import sqlite3
from typing import Final

from traces.config import TracesConfig

_ROWS: Final = 2000
"""Deleted in one transaction, so that senders wait a moment and no longer."""
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
            or self._spans("true ORDER BY id")
            or self._rollups(60, 1 << 60)
            or self._rollups(3600, 1 << 60)
        )

    def _spans(self, which: str, *values: int) -> int:
        return self._db.execute(
            f"DELETE FROM spans WHERE id IN (SELECT id FROM spans WHERE {which} LIMIT ?)",  # noqa: S608 - fixed text
            (*values, _ROWS),
        ).rowcount

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
