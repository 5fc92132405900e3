"""The tables of the span store, and how its file is opened.

One file in WAL mode: readers never wait for the writer, and a process killed at any moment leaves a
file that the next one opens as if nothing had happened, with every committed span in it.
(SQLite, "Write-Ahead Logging" and "PRAGMA synchronous": NORMAL may lose commits when the machine
loses power, never when the process dies, and never corrupts.)

A span's texts repeat from link to link, so it names them by number: its `edge` (who to whom) and its
`way` (protected how, allowed or not, by what). `link_spans` is the spans of links with both spelled
out. `rollups` counts links per edge and way by the minute, the hour and the day, in the transaction
that keeps the spans: what a view adds up is a few thousand rows, however many spans there are.
docs/design/2026-11-24-trace-store.md says why.
"""

import sqlite3
from pathlib import Path

from traces import policy_history

VERSION = 4
_TABLES = """
CREATE TABLE IF NOT EXISTS resources (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    resource BLOB NOT NULL,
    sender TEXT NOT NULL,               -- identity that the connection proved; empty: nobody
    last_ns INTEGER NOT NULL            -- when spans of it last arrived
);
CREATE TABLE IF NOT EXISTS senders (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,          -- identity that the connection proved; empty: nobody
    bytes INTEGER NOT NULL              -- what its spans and resources take, about
);
CREATE TABLE IF NOT EXISTS edges (
    id INTEGER PRIMARY KEY,
    source_kind TEXT NOT NULL,          -- identity, pod or address; other: beyond the bound
    source TEXT NOT NULL,
    source_namespace TEXT NOT NULL,     -- empty: outside the cluster, or not known
    destination_kind TEXT NOT NULL,     -- identity, pod, service or address; other
    destination TEXT NOT NULL,
    destination_namespace TEXT NOT NULL,
    service TEXT NOT NULL,
    port INTEGER NOT NULL,
    first_ns INTEGER NOT NULL,          -- outlives the spans: see retention
    last_ns INTEGER NOT NULL,
    first_trace BLOB NOT NULL,
    sender INTEGER NOT NULL DEFAULT 0,  -- who told of it first: its share of the bound is used
    UNIQUE (source, destination, service, port, source_kind, destination_kind,
            source_namespace, destination_namespace)
);
CREATE INDEX IF NOT EXISTS edges_by_first ON edges (first_ns);
CREATE TABLE IF NOT EXISTS ways (
    id INTEGER PRIMARY KEY,
    security TEXT NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT NOT NULL,
    policy TEXT NOT NULL,
    rule TEXT NOT NULL,
    nearest_rule TEXT NOT NULL,
    sender INTEGER NOT NULL DEFAULT 0,
    UNIQUE (security, verdict, reason, policy, rule, nearest_rule)
);
CREATE TABLE IF NOT EXISTS rollups (
    step_s INTEGER NOT NULL,            -- 60, 3600 or 86400
    bucket_s INTEGER NOT NULL,          -- Unix seconds, a multiple of step_s
    edge INTEGER NOT NULL,
    way INTEGER NOT NULL,
    out_links INTEGER NOT NULL,         -- told by the source's side
    in_links INTEGER NOT NULL,          -- told by the destination's side: the same links
    out_opened INTEGER NOT NULL,        -- had been open for a minute: counted again when they ended
    in_opened INTEGER NOT NULL,
    out_sent INTEGER NOT NULL,          -- bytes from source to destination
    out_received INTEGER NOT NULL,
    in_sent INTEGER NOT NULL,
    in_received INTEGER NOT NULL,
    first_ns INTEGER NOT NULL,
    last_ns INTEGER NOT NULL,
    last_trace BLOB NOT NULL,
    PRIMARY KEY (step_s, bucket_s, edge, way)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS certificates (
    id INTEGER PRIMARY KEY,             -- rowid of the span it was read from
    event TEXT NOT NULL,                -- issued, refused or banned
    at_ns INTEGER NOT NULL,
    serial TEXT NOT NULL,
    identity TEXT NOT NULL,
    pod TEXT NOT NULL,
    pod_uid TEXT NOT NULL,
    node TEXT NOT NULL,
    issuer TEXT NOT NULL,
    not_before_ns INTEGER NOT NULL,
    not_after_ns INTEGER NOT NULL,
    reason TEXT NOT NULL,
    sender TEXT NOT NULL                -- who told us; only the CA is to be believed
);
CREATE INDEX IF NOT EXISTS certificates_by_serial ON certificates (serial);
CREATE INDEX IF NOT EXISTS certificates_by_time ON certificates (at_ns);
CREATE INDEX IF NOT EXISTS refused_by_time ON certificates (at_ns) WHERE event = 'refused';
CREATE INDEX IF NOT EXISTS certificates_by_pod ON certificates (pod, at_ns);
CREATE INDEX IF NOT EXISTS certificates_by_end ON certificates (not_after_ns);
CREATE INDEX IF NOT EXISTS certificates_not_issued ON certificates (at_ns)
    WHERE event <> 'issued';
CREATE TABLE IF NOT EXISTS chains (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,                 -- podlink.chain.id: one run of one sidecar
    resource INTEGER NOT NULL,
    first_ns INTEGER NOT NULL,          -- when records of it first and last arrived
    last_ns INTEGER NOT NULL,
    UNIQUE (name, resource)
);
CREATE TABLE IF NOT EXISTS spans (
    id INTEGER PRIMARY KEY,             -- grows with the time of arrival
    received_ns INTEGER NOT NULL,
    trace_id BLOB NOT NULL,
    digest BLOB NOT NULL,
    span_id BLOB NOT NULL,
    parent_span_id BLOB,
    name TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    direction TEXT,                     -- outbound or inbound: NULL for what is no link
    edge INTEGER,
    way INTEGER,
    source_pod TEXT,
    destination_pod TEXT,
    is_ordinary INTEGER NOT NULL,
    chain INTEGER,
    sequence INTEGER,
    resource INTEGER NOT NULL,
    span BLOB NOT NULL,                 -- squeezed: traces/blob.py
    sender INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 0     -- what it takes, about: counted in its sender's bytes
);
CREATE UNIQUE INDEX IF NOT EXISTS spans_by_ids ON spans (trace_id, span_id, digest);
CREATE INDEX IF NOT EXISTS spans_by_age ON spans (received_ns);
CREATE INDEX IF NOT EXISTS spans_by_edge ON spans (edge, id) WHERE edge IS NOT NULL;
CREATE INDEX IF NOT EXISTS spans_by_chain ON spans (chain, sequence) WHERE chain IS NOT NULL;
CREATE INDEX IF NOT EXISTS links_to_review ON spans (id)
    WHERE direction IS NOT NULL AND NOT is_ordinary;
CREATE INDEX IF NOT EXISTS ordinary_by_sender ON spans (sender, id) WHERE is_ordinary;
CREATE INDEX IF NOT EXISTS notable_by_sender ON spans (sender, coalesce(edge, name), id, size)
    WHERE NOT is_ordinary;
CREATE INDEX IF NOT EXISTS notable_by_edge ON spans (edge, id) WHERE NOT is_ordinary;
CREATE INDEX IF NOT EXISTS links_unchained ON spans (id)
    WHERE direction IS NOT NULL AND chain IS NULL;
CREATE INDEX IF NOT EXISTS resources_by_sender ON resources (sender, last_ns);
CREATE INDEX IF NOT EXISTS others_by_name ON spans (name, id) WHERE direction IS NULL;
CREATE VIEW IF NOT EXISTS link_spans AS
    SELECT spans.id, received_ns, trace_id, span_id, parent_span_id, name, start_ns, end_ns,
        direction, edge, way, source_pod, destination_pod, is_ordinary, chain, sequence,
        spans.resource, span,
        source_kind, source, source_namespace, destination_kind, destination,
        destination_namespace, service, port,
        security, verdict, reason, policy, rule, nearest_rule
    FROM spans JOIN edges ON edges.id = spans.edge JOIN ways ON ways.id = spans.way;
"""


SPAN_OVERHEAD = 300
"""Bytes that a span takes beside its message: columns and indexes."""
_FROM_3 = f"""
BEGIN;
CREATE TABLE senders (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL);
INSERT INTO senders (name, bytes) SELECT DISTINCT sender, 0 FROM resources;
ALTER TABLE spans ADD COLUMN sender INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spans ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
ALTER TABLE edges ADD COLUMN sender INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ways ADD COLUMN sender INTEGER NOT NULL DEFAULT 0;
UPDATE spans SET size = length(span) + {SPAN_OVERHEAD}, sender = coalesce((SELECT senders.id FROM
    senders JOIN resources ON resources.sender = senders.name WHERE resources.id = spans.resource), 0);
UPDATE senders SET bytes = coalesce((SELECT sum(size) FROM spans WHERE spans.sender = senders.id), 0);
DROP INDEX spans_by_trace;
DROP INDEX ordinary_by_id;
PRAGMA user_version = 4;
COMMIT;
"""  # noqa: S608 - a constant


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
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        db.execute("PRAGMA cache_size = -32768")
        db.execute("PRAGMA temp_store = MEMORY")  # the root filesystem may be read-only
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, 3, VERSION):
            db.close()
            raise StoreUnusable(f"{path} was written by another version (schema {found})")
        if found == 3:
            db.executescript(_FROM_3)
        db.executescript(_TABLES + policy_history.TABLES)
        db.execute(f"PRAGMA user_version = {VERSION}")
    except sqlite3.Error as e:
        raise StoreUnusable(f"cannot use {path}: {e}") from e
    return db


def open_for_reading(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA temp_store = MEMORY")
    return db
