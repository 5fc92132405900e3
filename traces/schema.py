"""The tables of the span store, and how its file is opened.

One file in WAL mode: readers never wait for the writer, and a process killed at any moment leaves a
file that the next one opens as if nothing had happened, with every committed span in it.
(SQLite, "Write-Ahead Logging" and "PRAGMA synchronous": NORMAL may lose commits when the machine
loses power, never when the process dies, and never corrupts.)
"""

import sqlite3
from pathlib import Path

from traces.rows import TEXT_COLUMNS

VERSION = 1
_TEXTS = ",\n    ".join(f"{name} TEXT" for name in TEXT_COLUMNS)
_TABLES = f"""
CREATE TABLE IF NOT EXISTS resources (
    digest BLOB PRIMARY KEY,
    resource BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spans (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    received_ns INTEGER NOT NULL,
    trace_id BLOB NOT NULL,
    span_id BLOB NOT NULL,
    parent_span_id BLOB,
    name TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    is_link INTEGER NOT NULL,
    is_ordinary INTEGER NOT NULL,
    {_TEXTS},
    source_namespace TEXT,
    destination_namespace TEXT,
    resource_digest BLOB NOT NULL,
    span BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS spans_by_trace ON spans (trace_id);
CREATE INDEX IF NOT EXISTS spans_by_age ON spans (received_ns);
CREATE INDEX IF NOT EXISTS links_to_review ON spans (id) WHERE is_link AND NOT is_ordinary;
CREATE INDEX IF NOT EXISTS ordinary_by_id ON spans (id) WHERE is_ordinary;
"""


class StoreUnusable(Exception):
    """The file is not a span store of this version, or cannot be opened. One line for a person."""


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open, or make, the store. The connection may move to another thread once."""
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA journal_size_limit = {64 << 20}")
        db.execute("PRAGMA cache_size = -8192")
        db.execute("PRAGMA temp_store = MEMORY")  # the root filesystem may be read-only
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, VERSION):
            db.close()
            raise StoreUnusable(f"{path} was written by another version (schema {found})")
        db.executescript(_TABLES)
        db.execute(f"PRAGMA user_version = {VERSION}")
    except sqlite3.Error as e:
        raise StoreUnusable(f"cannot use {path}: {e}") from e
    return db


def open_for_reading(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA temp_store = MEMORY")
    return db
