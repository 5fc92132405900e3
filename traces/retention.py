"""What is deleted, and in which order: by age, then by size.

Spans go when they are too old, and before that while the file is too large. Then whoever has told most
gives way first (`fair_cuts`), by bytes and only down to the next, so that no sender pushes out what
another has told. Of one sender's spans the oldest allowed mTLS links and requests go first, and denied,
plaintext and failed links last, of those the edges that hold most: so nobody who can be denied, or be
refused by the CA, as often as he likes pushes out another's denial. The ledger of certificates and each
sender's roll-ups by the minute count like further senders.
Roll-ups outlive their spans (days for as long as a year), and an edge is remembered for as long as
any roll-up names it, so that "seen for the first time" means it.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from traces.config import TracesConfig
from traces.schema import SPAN_OVERHEAD

_ROWS: Final = 2000
"""Deleted in one transaction, so that senders wait a moment and no longer."""
_BYTES: Final = 1 << 20
"""Likewise, about."""
_LEAF_BYTES: Final = 500
_ROLLUP_BYTES: Final = 170
"""What a row takes with its indexes, about."""
_AT_ONCE: Final = 200
"""Senders cut in one portion: where many hold as much, some of them now and the others next."""
_COUNT_EVERY: Final = 64
"""Sweeps between two counts of the roll-ups by sender: it reads them all."""
_DAY_S: Final = 86400
KEEP_MINUTES_S: Final = 2 * _DAY_S
KEEP_HOURS_S: Final = 31 * _DAY_S
KEEP_DAYS_S: Final = 400 * _DAY_S


Group = TypeVar("Group")


class Retention:
    """Belongs to the writer's thread. `sweep` again for as long as it answers True."""

    def __init__(self, db: sqlite3.Connection, config: TracesConfig) -> None:
        self._db, self._config = db, config
        self._stale = True
        self._rollups_of: dict[int, int] = {}
        self._count_in = 0
        self.forgot = False
        """Numbers that others remember (of edges, ways, resources) may be gone."""

    def sweep(self, now_ns: int) -> bool:
        """Delete one portion. True if there was something, so that there may be more."""
        with self._db:  # rows and what their sender is said to hold go together
            self._db.execute("BEGIN IMMEDIATE")
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
        rows = self._db.execute(
            "DELETE FROM spans WHERE id IN (SELECT id FROM spans WHERE received_ns < ? "
            "ORDER BY received_ns LIMIT ?) RETURNING sender, size",
            (oldest_ns, _ROWS),
        ).fetchall()
        freed = Counter[int]()
        for sender, size in rows:
            freed[sender] += size
        for sender, size in freed.items():
            self._freed(sender, size)
        deleted = len(rows)
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
            self._count_in = 0
            return 0
        return self._of_senders() or self._rollups(60, 1 << 60) or self._rollups(3600, 1 << 60)

    def _of_senders(self) -> int:
        """One portion of what those hold who hold most."""
        held: list[tuple[tuple[str, int], int]] = [
            (("spans", sender), size)
            for sender, size in self._db.execute("SELECT id, bytes FROM senders WHERE bytes > 0")
        ]
        (ledger,) = self._db.execute("SELECT count(*) FROM certificates").fetchone()
        held.append((("ledger", 0), ledger * _LEAF_BYTES))
        held += [(("rollups", of), size) for of, size in self._minutes_of_senders()]
        # Never more than half: a portion must not reach down to the small ones where there is little.
        wanted = min(_BYTES, -(-sum(size for _, size in held) // 2))
        deleted = 0
        for (kind, sender), surplus in fair_cuts(held, wanted)[:_AT_ONCE]:
            if kind == "spans":
                deleted += self._of_sender(sender, surplus)
            elif kind == "ledger":
                deleted += self._certificates(max(1, surplus // _LEAF_BYTES))
            else:
                deleted += self._minutes(sender, max(1, surplus // _ROLLUP_BYTES))
        return deleted

    def _of_sender(self, sender: int, surplus: int) -> int:
        """Delete about so many bytes of what this sender has told; returns how many rows went."""
        rows = self._db.execute(
            "SELECT id, size FROM spans INDEXED BY ordinary_by_sender "
            "WHERE is_ordinary AND sender = ? ORDER BY id LIMIT ?",
            (sender, _ROWS),
        ).fetchall()
        gone = self._cut(sender, rows, surplus)
        if not gone:
            held = self._db.execute(
                "SELECT coalesce(edge, name), sum(size) FROM spans INDEXED BY notable_by_sender "
                "WHERE NOT is_ordinary AND sender = ? GROUP BY coalesce(edge, name)",
                (sender,),
            ).fetchall()
            wanted = min(surplus, -(-sum(size for _, size in held) // 2))
            for group, part in fair_cuts(held, wanted):
                rows = self._db.execute(
                    "SELECT id, size FROM spans INDEXED BY notable_by_sender "
                    "WHERE NOT is_ordinary AND sender = ? AND coalesce(edge, name) = ? "
                    "ORDER BY id LIMIT ?",
                    (sender, group, _ROWS),
                ).fetchall()
                gone += self._cut(sender, rows, part)
        gone += self._resources(sender)
        if not gone:  # the sum was wrong: nobody else is to pay for it
            self._db.execute("UPDATE senders SET bytes = 0 WHERE id = ?", (sender,))
        return gone

    def _cut(self, sender: int, rows: Sequence[tuple[int, int]], surplus: int) -> int:
        """Delete as many of these spans, in this order, as `surplus` bytes are."""
        ids: list[tuple[int]] = []
        size = 0
        for number, bytes_of in rows:
            if size >= surplus:
                break
            ids.append((number,))
            size += bytes_of
        self._db.executemany("DELETE FROM spans WHERE id = ?", ids)
        self._freed(sender, size)
        return len(ids)

    def _freed(self, sender: int, size: int) -> None:
        self._db.execute(
            "UPDATE senders SET bytes = max(0, bytes - ?) WHERE id = ?", (size, sender)
        )

    def _resources(self, sender: int) -> int:
        """Resources of this sender that none of its spans can name any more."""
        oldest = self._db.execute(
            "SELECT received_ns FROM spans WHERE id = (SELECT min(id) FROM ("
            "SELECT min(id) AS id FROM spans INDEXED BY ordinary_by_sender "
            "WHERE is_ordinary AND sender = ?1 UNION ALL "
            "SELECT min(id) FROM spans INDEXED BY notable_by_sender "
            "WHERE NOT is_ordinary AND sender = ?1))",
            (sender,),
        ).fetchone()
        name = "(SELECT name FROM senders WHERE id = ?)"
        rows = self._db.execute(
            f"DELETE FROM resources WHERE sender = {name} AND last_ns < ? "  # noqa: S608 - fixed text
            "RETURNING length(resource)",
            (sender, 1 << 62 if oldest is None else oldest[0]),
        ).fetchall()
        if rows:
            self._freed(sender, sum(size for (size,) in rows) + SPAN_OVERHEAD * len(rows))
            self.forgot = True
        return len(rows)

    def _minutes_of_senders(self) -> list[tuple[int, int]]:
        """Of each sender the bytes of its roll-ups by the minute: of edges that it told of first."""
        if self._count_in == 0:
            self._count_in = _COUNT_EVERY
            rows = self._db.execute(
                "SELECT sender, count(*) FROM rollups JOIN edges ON edges.id = edge "
                "WHERE step_s = 60 GROUP BY sender"
            )
            self._rollups_of = {sender: count * _ROLLUP_BYTES for sender, count in rows}
        self._count_in -= 1
        return list(self._rollups_of.items())

    def _minutes(self, sender: int, limit: int) -> int:
        deleted = self._db.execute(
            "DELETE FROM rollups WHERE (step_s, bucket_s, edge, way) IN (SELECT step_s, bucket_s, "
            "edge, way FROM rollups WHERE step_s = 60 AND edge IN "
            "(SELECT id FROM edges WHERE sender = ?) ORDER BY bucket_s LIMIT ?)",
            (sender, limit),
        ).rowcount
        self._rollups_of[sender] -= deleted * _ROLLUP_BYTES
        if not deleted:
            self._rollups_of.pop(sender)
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
        for (sender,) in self._db.execute("SELECT id FROM senders").fetchall():
            self._resources(sender)
        self._db.execute(
            "DELETE FROM senders WHERE NOT EXISTS "
            "(SELECT 1 FROM resources WHERE resources.sender = senders.name) AND "
            "id NOT IN (SELECT sender FROM edges) AND id NOT IN (SELECT sender FROM ways)"
        )
        self._db.execute("DELETE FROM chains WHERE last_ns < ?", (oldest_ns,))
        forgotten_ns = now_ns - int(max(KEEP_DAYS_S, self._config.keep_s) * 1e9)
        self._db.execute("DELETE FROM edges WHERE last_ns < ?", (forgotten_ns,))
        self.forgot = True

    def _used_bytes(self) -> int:
        def pragma(name: str) -> int:
            return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

        return (pragma("page_count") - pragma("freelist_count")) * pragma("page_size")


def fair_cuts(counts: Iterable[tuple[Group, int]], wanted: int) -> list[tuple[Group, int]]:
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
