"""What the views read: sums and small tables, never the spans, so that none grows with their number."""

import itertools
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.traces.page import shop
from traces import views
from traces.page.asked import Asked
from traces.page.questions import QUESTIONS


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    folder: Path = tmp_path_factory.mktemp("shop")
    shop.write(folder, shop.days(time.time_ns()))
    with closing(sqlite3.connect(folder / "traces.db")) as it:
        it.row_factory = sqlite3.Row
        it.execute("SELECT count(*) FROM edges").fetchone()  # opens what SQLite opens late
        yield it


def forbid_spans(action: int, table: str | None, *_: object) -> int:
    refused = action == sqlite3.SQLITE_READ and table == "spans"
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK


@pytest.mark.parametrize("name", [name for name in QUESTIONS if name != "trace"])
@pytest.mark.parametrize("since", ["1h", "24h", "7d"])
def test_no_view_reads_the_spans_themselves(db: sqlite3.Connection, name: str, since: str) -> None:
    asked = Asked.parse({"since": since}, time.time_ns())
    db.set_authorizer(forbid_spans)
    try:
        answer = QUESTIONS[name](db, asked)
        with pytest.raises(sqlite3.DatabaseError):
            db.execute("SELECT count(span) FROM spans")  # the guard does guard
    finally:
        db.set_authorizer(None)
    assert name in ("replay", "failed") or since == "1h" or answer.rows


def test_links_are_counted_once_whichever_sides_told_of_them(db: sqlite3.Connection) -> None:
    now_s = int(time.time())
    found = views.edges(db, now_s - 86400 * 3, now_s + 1)
    counted = {(e.source.label, e.destination.label): e.links for e in found}
    assert counted["shop/web", "shop/orders"] == 9 * 47
    assert counted["batch/report", "prod/ledger"] == 6


def test_every_bar_of_the_timeline_adds_up_to_the_edges(db: sqlite3.Connection) -> None:
    now_s = int(time.time())
    bars = views.timeline(db, now_s - 86400, now_s + 1)
    edges = views.edges(db, (now_s - 86400) // 3600 * 3600, now_s + 1)
    denied = sum(edge.count("denied") for edge in edges)
    assert sum(bar.links.get("denied", 0) for bar in bars) == denied > 0
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(bars))
