"""The evidence report: what the record says of a time, signed by the store that kept it.

The store signs with the key of its own leaf, as every workload may: the CA signs certificates and
nothing else. What the record cannot know (pods without a sidecar, annotations, policies in force) the
operator's command reads from the API and hands in; it stands apart, under `cluster`, and the signature
says of it only that it was handed in then.
docs/design/2026-11-24-report.md says why.
"""

import datetime as dt
import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from certs.evidence.chain import CHECKPOINT, EvidenceMalformed, Signed
from certs.evidence.chain import STATEMENT as CHAIN_STATEMENT
from certs.evidence.signed import StatementRefused, WorkloadSigner, check_statement
from certs.evidence.verify import read_checkpoint, verify_spans
from certs.names import CONTROL_PLANE_ACCOUNTS
from certs.trust.bundle import TrustBundle
from traces import policy_history, views
from traces.blob import read_span
from traces.edges import Edge, coverage
from traces.page.asked import stamp
from traces.page.render import edge_row, iso_second, way_row
from traces.query import chain_items
from traces.rows import plain_attributes

VERSION: Final = 1
KIND: Final = "podlink report"
MAX_CLUSTER_BYTES: Final = 1 << 20
_PARTS: Final = frozenset({"report", "statement", "signature", "certificates"})
_HEADS: Final = 20_000
"""Chains whose last record is told, the newest."""
_LISTED: Final = 2000
"""Rows of one kind; beyond it the report says how many were left out."""
_JUDGED: Final = 20_000
"""Spans whose chains are judged by hash and signature, the newest; gaps are counted over all."""
_AT_BEGINNING_NS: Final = 3600 * 10**9
"""A chain that came this soon after the store's first record cannot have been forgotten between."""

_FIRST_WORD_NS: Final = 120 * 10**9
"""By then a sidecar has signed its chain, though it may be empty."""
_COUNTS: Final = (
    "sampled_out",
    "dropped_allowed",
    "dropped_notable",
    "dropped_denied",
    "dropped_requests",
    "dropped_export",
    "unencodable",
)
"""What a statement says of records that are not in its chain (`sidecar.telemetry.exporter`)."""

Json = dict[str, Any]


class ReportRefused(Exception):
    """This is no report, or not one that proves anything; the text says what does not hold."""


def record(
    db: sqlite3.Connection, since_s: int, until_s: int, now_ns: int, bundle: TrustBundle | None
) -> Json:
    """What the record says of [since, until)."""
    edges = views.edges(db, since_s, until_s)
    c = coverage(edges)
    since_ns, until_ns = since_s * 10**9, until_s * 10**9
    seen = views.first_seen(db, since_ns, until_ns)
    began_ns = views.recorded_since(db)
    new = [e for e in edges if (e.source, e.destination, e.port) in seen]
    leaves = views.newest_leaves(db, now_ns - 24 * 3600 * 10**9)
    refused = views.refusals(db, since_ns, until_ns)
    return {
        "recorded_since": iso_second(began_ns) if began_ns else None,
        "coverage": {
            "links_percent": c.links_percent,
            "bytes_percent": c.bytes_percent,
            "mtls_links": c.mtls_links,
            "plaintext_links": c.plaintext_links,
            "mtls_bytes": c.mtls_bytes,
            "plaintext_bytes": c.plaintext_bytes,
            "denied_links": c.denied_links,
            "failed_links": c.failed_links,
            "edges": len(edges),
        },
        "plaintext": _bounded(
            [way_row(e, w) for e in edges for w in e.ways if w.state == "plaintext"]
        ),
        "denied": _bounded([way_row(e, w) for e in edges for w in e.ways if w.state == "denied"]),
        "first_seen": _bounded([edge_row(e) for e in new]),
        "policies": _policies(edges),
        "policy_changes": _policy_changes(db, since_ns, until_ns),
        "certificates": {
            "leaves": _bounded([_leaf(leaf, now_ns) for leaf in leaves]),
            "refused": _bounded([_leaf(leaf, now_ns) for leaf in refused]),
            "oldest_age_s": max(
                ((now_ns - x.not_before_ns) // 10**9 for x in leaves), default=None
            ),
        },
        "chains": _chains(db, since_ns, until_ns, now_ns, bundle),
    }


def _bounded(rows: list[dict[str, object]]) -> Json:
    return {"count": len(rows), "left_out": max(0, len(rows) - _LISTED), "rows": rows[:_LISTED]}


def _policies(edges: list[Edge]) -> list[Json]:
    """Each policy and rule that decided, with what it let in and what it refused."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for edge in edges:
        for way in edge.ways:
            for name in way.policies:
                found[name][way.state == "denied"] += way.count
    return [
        {"rule": name, "allowed": counts[0], "denied": counts[1]}
        for name, counts in sorted(found.items())
    ]


def _policy_changes(db: sqlite3.Connection, since_ns: int, until_ns: int) -> Json:
    """What the registry said of LinkPolicies over this time: made, changed and deleted ones."""
    looks = policy_history.watched(db)
    found = policy_history.changes(db, since_ns, until_ns)
    return {
        "watched_since": None if looks is None else iso_second(looks[0]),
        "watched_until": None if looks is None else iso_second(looks[1]),
        **_bounded(
            [
                {
                    "policy": one.policy,
                    "change": one.kind,
                    "after": iso_second(one.after_ns) if one.after_ns else None,
                    "seen": iso_second(one.by_ns),
                    "generation": one.generation,
                    "state": one.state,
                    "diff": one.diff,
                }
                for one in found
            ]
        ),
    }


def _leaf(leaf: views.Leaf, now_ns: int) -> dict[str, object]:
    return {
        "event": leaf.event,
        "state": leaf.state(now_ns) if leaf.event == "issued" else leaf.event,
        "identity": leaf.identity,
        "pod": leaf.pod,
        "serial": leaf.serial,
        "issuer": leaf.issuer,
        "at": iso_second(leaf.at_ns),
        "not_after": iso_second(leaf.not_after_ns),
        "age_s": max(0, (now_ns - leaf.not_before_ns) // 10**9),
        "reason": leaf.reason,
    }


def _chains(
    db: sqlite3.Connection, since_ns: int, until_ns: int, now_ns: int, bundle: TrustBundle | None
) -> Json:
    """Numbers missing in any chain of this time, and the newest records judged one by one."""
    time = "FROM spans WHERE received_ns >= ? AND received_ns < ?"
    first, last = db.execute(f"SELECT min(id), max(id) {time}", (since_ns, until_ns)).fetchone()
    if first is None:
        none = {"chains": 0, "records": 0, "missing": 0, "gaps": [], "judged": None}
        return {
            **none,
            **_heads(db, []),
            "losses": _losses(db, 0, -1),
            "unchained": _unchained(db, 0, -1),
            **_absent(db, since_ns, until_ns, now_ns, bundle),
        }
    gaps, late, chains, records, missing = [], [], 0, 0, 0
    rows = db.execute(
        "SELECT chains.name, count(DISTINCT sequence), min(sequence), max(sequence), "
        "spans.chain, chains.first_ns, min(spans.id) FROM spans "
        "JOIN chains ON chains.id = spans.chain "
        "WHERE spans.chain IS NOT NULL AND sequence > 0 AND spans.id BETWEEN ? AND ? "
        "GROUP BY spans.chain",
        (first, last),
    )
    for name, have, low, high, chain, first_ns, first_id in rows:
        chains, records = chains + 1, records + have
        if low > 1:
            late.append(_Late(name, low, chain, first_ns, first_id))
        lacking = high - low + 1 - have
        missing += lacking
        if lacking:
            gaps.append({"chain": name, "from": low, "to": high, "missing": lacking})
    gaps.sort(key=lambda gap: -int(gap["missing"]))
    judged: Json | None = None
    if bundle is not None:
        verified = verify_spans(chain_items(db, max(first, last - _JUDGED), last), bundle)
        judged = {
            "at_most": _JUDGED,
            "spans": last - max(first, last - _JUDGED) + 1,
            "of_spans": last - first + 1,
            "since": _arrival(db, max(first, last - _JUDGED)),
            "proven": sum(chain.proven for chain in verified.chains),
            "unproven": sum(chain.unproven for chain in verified.chains),
            "altered": sum(len(chain.altered) for chain in verified.chains),
            "refused": list(verified.refused),
        }
    return {
        "chains": chains,
        "records": records,
        "missing": missing,
        "gaps": gaps[:_LISTED],
        **_heads(db, late),
        "judged": judged,
        "losses": _losses(db, first, last),
        "unchained": _unchained(db, first, last),
        **_absent(db, since_ns, until_ns, now_ns, bundle),
    }


@dataclass(frozen=True, slots=True)
class _Late:
    """A chain of which the lowest number of this time is not 1."""

    name: str
    low: int
    chain: int
    first_ns: int
    """When the store first got any record of it."""
    first_id: int
    """The first span of it that came in this time and is still kept."""


def _heads(db: sqlite3.Connection, late: list[_Late]) -> Json:
    """Records that stand before the first one held of a chain. `before` counts those that this store
    never got: it began after them, or they were lost. `cut` counts those of chains that it had and
    deleted by age or size, or may have: it forgets a chain of which it keeps no record. A chain that
    has earlier records before this time began in good order for this time and is in neither."""
    nothing_deleted = not late or db.execute("SELECT count(*) = max(id) FROM spans").fetchone()[0]
    began_ns = views.recorded_since(db) or 0
    before: list[Json] = []
    cut_chains = cut_records = 0
    for one in late:
        (lowest,) = db.execute(
            "SELECT min(sequence) FROM spans WHERE chain = ? AND sequence > 0", (one.chain,)
        ).fetchone()
        if lowest < one.low:
            continue
        around = dict(
            db.execute(
                "SELECT id, received_ns FROM spans WHERE id BETWEEN ? - 1 AND ?",
                (one.first_id, one.first_id),
            ).fetchall()
        )
        had_earlier = one.first_ns < around[one.first_id]
        # Numbers of spans are given without a hole, and what came together stands together.
        deleted_before = one.first_id > 1 and one.first_id - 1 not in around
        forgotten = not nothing_deleted and one.first_ns > began_ns + _AT_BEGINNING_NS
        if had_earlier or deleted_before or forgotten:
            cut_chains, cut_records = cut_chains + 1, cut_records + one.low - 1
        else:
            before.append({"chain": one.name, "from": one.low, "missing": one.low - 1})
    before.sort(key=lambda row: -int(row["missing"]))
    return {
        "before": {
            "chains": len(before),
            "records": sum(int(row["missing"]) for row in before),
            **_bounded(before),
        },
        "cut": {"chains": cut_chains, "records": cut_records},
    }


def _arrival(db: sqlite3.Connection, span_id: int) -> str | None:
    row = db.execute(
        "SELECT received_ns FROM spans WHERE id >= ? ORDER BY id LIMIT 1", (span_id,)
    ).fetchone()
    return None if row is None else iso_second(row[0])


def _losses(db: sqlite3.Connection, first: int, last: int) -> Json:
    """What the sidecars say under their signatures that they never sent: sampled out, dropped for want
    of room, refused by the collector. Totals since the start of each that signed in this time."""
    newest: dict[int, bytes] = {}
    rows = db.execute(
        "SELECT chain, span FROM spans INDEXED BY others_by_name WHERE direction IS NULL "
        "AND name = ? AND id BETWEEN ? AND ? AND chain IS NOT NULL ORDER BY id",
        (CHECKPOINT, first, last),
    )
    for chain, span in rows:
        newest[chain] = span
    found: list[dict[str, object]] = []
    total: dict[str, int] = dict.fromkeys(_COUNTS, 0)
    for span in newest.values():
        pod, counts = _counts_of(span)
        for name in _COUNTS:
            total[name] += counts[name]
        if any(counts.values()):
            found.append({"pod": pod, **counts})
    found.sort(key=lambda one: (-sum(int(str(one[name])) for name in _COUNTS), str(one["pod"])))
    return {"sidecars": len(newest), **total, **_bounded(found)}


def _unchained(db: sqlite3.Connection, first: int, last: int) -> Json:
    """Links that are in no chain, so that nothing proves them, by who told of them."""
    rows = db.execute(
        "SELECT resources.sender, count(*) FROM spans INDEXED BY links_unchained "
        "JOIN resources ON resources.id = spans.resource WHERE direction IS NOT NULL "
        "AND chain IS NULL AND spans.id BETWEEN ? AND ? GROUP BY 1 ORDER BY 2 DESC",
        (first, last),
    ).fetchall()
    found: list[dict[str, object]] = [{"sender": who, "links": count} for who, count in rows]
    return {"links": sum(count for _, count in rows), **_bounded(found)}


def _absent(
    db: sqlite3.Connection, since_ns: int, until_ns: int, now_ns: int, bundle: TrustBundle | None
) -> Json:
    """Pods that got their first leaf in this time and left no chain at all; and chains that have ended
    and whose sidecar did not sign that nothing follows: what came after its last word is unproven.
    A sidecar signs its empty chain within a minute of its first leaf."""
    pods, accounts = _leaves_of_pods(db)
    chains = list(_chains_of_pods(db))
    known = {chain.pod_uid for chain in chains}
    (oldest,) = db.execute("SELECT min(received_ns) FROM spans").fetchone()
    from_ns = max(since_ns, oldest if oldest is not None else until_ns)
    silent: list[dict[str, object]] = [
        {"pod": leaf.pod, "identity": leaf.identity, "since": iso_second(leaf.first_ns)}
        for leaf in pods.values()
        if from_ns <= leaf.first_ns < until_ns - _FIRST_WORD_NS
        and leaf.pod_uid not in known
        and leaf.identity not in accounts
    ]
    newest: dict[str, int] = defaultdict(int)
    for chain in chains:
        newest[chain.pod_uid] = max(newest[chain.pod_uid], chain.first_ns)
    unended: list[dict[str, object]] = []
    for chain in chains:
        leaf_of = pods.get(chain.pod_uid)
        over = leaf_of is not None and leaf_of.ends_ns < now_ns
        if not chain.pod_uid or not since_ns <= chain.last_ns < until_ns:
            continue
        if not over and newest[chain.pod_uid] <= chain.last_ns:
            continue  # it may live
        (last,) = db.execute(
            "SELECT max(sequence) FROM spans WHERE chain = ?", (chain.id,)
        ).fetchone()
        signed, is_last = _last_word(db, chain.id, bundle)
        if not is_last or signed < (last or 0):
            unended.append(
                {"chain": chain.name, "pod": chain.pod, "last": last or 0, "signed": signed}
            )
    return {
        "heads": {
            "count": len(chains),
            "left_out": max(0, len(chains) - _HEADS),
            "rows": _heads_of(db, chains),
        },
        "silent": _bounded(silent),
        "unended": {
            "records": sum(max(0, int(str(r["last"])) - int(str(r["signed"]))) for r in unended),
            **_bounded(unended),
        },
    }


def _heads_of(db: sqlite3.Connection, chains: list["_PodChain"]) -> dict[str, int]:
    """The last record held of each chain: what the CA's log of anchors is compared with."""
    newest = sorted(chains, key=lambda chain: -chain.last_ns)[:_HEADS]
    found: dict[str, int] = {}
    for chain in newest:
        (last,) = db.execute(
            "SELECT max(sequence) FROM spans WHERE chain = ?", (chain.id,)
        ).fetchone()
        found[chain.name] = max(last or 0, found.get(chain.name, 0))
    return found


@dataclass(frozen=True, slots=True)
class _PodLeaves:
    pod_uid: str
    pod: str
    identity: str
    first_ns: int
    """When its first leaf was issued."""
    ends_ns: int
    """When its newest one ends."""


def _leaves_of_pods(db: sqlite3.Connection) -> tuple[dict[str, _PodLeaves], frozenset[str]]:
    """Of each pod that the CA issued to; and the identities of the control plane."""
    rows = db.execute(
        "SELECT pod_uid, pod, identity, min(at_ns), max(not_after_ns), max(sender) "
        "FROM certificates WHERE event = 'issued' AND pod_uid <> '' GROUP BY pod_uid"
    ).fetchall()
    own = {
        f"{sender.rpartition('/')[0]}/{account}"
        for *_, sender in rows
        for account in CONTROL_PLANE_ACCOUNTS
    }
    return {row[0]: _PodLeaves(*row[:5]) for row in rows}, frozenset(own)


@dataclass(frozen=True, slots=True)
class _PodChain:
    id: int
    name: str
    pod_uid: str
    pod: str
    first_ns: int
    last_ns: int


def _chains_of_pods(db: sqlite3.Connection) -> Iterator[_PodChain]:
    known: dict[int, tuple[str, str]] = {}
    rows = db.execute(
        "SELECT chains.id, name, first_ns, chains.last_ns, resources.id, resources.resource "
        "FROM chains JOIN resources ON resources.id = chains.resource"
    )
    for number, name, first_ns, last_ns, resource, blob in rows:
        if resource not in known:
            said = plain_attributes(Resource.FromString(blob).attributes)
            pod = f"{said.get('k8s.namespace.name', '')}/{said.get('k8s.pod.name', '')}"
            known[resource] = str(said.get("k8s.pod.uid", "")), pod
        yield _PodChain(number, name, *known[resource], first_ns, last_ns)


def _last_word(db: sqlite3.Connection, chain: int, bundle: TrustBundle | None) -> tuple[int, bool]:
    """How far the newest checkpoint of a chain reaches, and whether it says that nothing follows. A
    signature that does not hold is no word."""
    row = db.execute(
        "SELECT id FROM spans WHERE chain = ? AND name = ? ORDER BY sequence DESC, id DESC LIMIT 1",
        (chain, CHECKPOINT),
    ).fetchone()
    if row is None or bundle is None:
        return 0, False
    try:
        _, anchor = read_checkpoint(next(chain_items(db, row[0], row[0])), bundle)
    except (EvidenceMalformed, StatementRefused):
        return 0, False
    return anchor.sequence, anchor.last


def _counts_of(blob: bytes) -> tuple[str, dict[str, int]]:
    """The pod and the counts of a checkpoint's statement; whoever wrote it may have written anything."""
    attributes = plain_attributes(read_span(blob).attributes)
    try:
        said = json.loads(str(attributes.get(CHAIN_STATEMENT, "")))
        counts, pod = said["counts"], str(said["pod"])
        return pod, {name: _whole(counts.get(name, 0)) for name in _COUNTS}
    except (ValueError, TypeError, KeyError, AttributeError):
        return "", dict.fromkeys(_COUNTS, 0)


def _whole(value: object) -> int:
    return min(max(value, 0), 1 << 53) if type(value) is int else 0


def report(
    found: Json, cluster: Json | None, since_s: int, until_s: int, now_ns: int, by: str
) -> Json:
    """The whole, before it is signed."""
    return {
        "kind": KIND,
        "version": VERSION,
        "from": stamp(since_s) + "Z",
        "to": stamp(until_s) + "Z",
        "made_at": iso_second(now_ns),
        "made_by": by,
        "record": found,
        "cluster": cluster,
    }


def canonical(body: Json) -> bytes:
    """The bytes whose digest is signed: keys sorted, no spaces, ASCII."""
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode("ascii")


def as_file(signed: Json) -> str:
    """The one text of a signed report: what `podlink report` writes and `read_file` takes."""
    return json.dumps(signed, sort_keys=True, indent=1) + "\n"


def read_json(text: str) -> Json:
    """JSON in which no name stands twice: two would say something to one reader and something else to
    the next. Raises ReportRefused."""

    def once(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ReportRefused("a name stands twice in it")
        return found

    try:
        raw = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise ReportRefused("neither a report in JSON nor one in HTML") from e
    if not isinstance(raw, dict):
        raise ReportRefused("not a signed report: not an object")
    return raw


def read_file(text: str) -> Json:
    """A signed report, from a file that is exactly as `podlink report` writes it: nothing doubled,
    added, moved or spelled otherwise. Raises ReportRefused."""
    raw = read_json(text)
    if text != as_file(raw):
        raise ReportRefused(
            "not as `podlink report` writes it: something was moved, added or respelled"
        )
    return raw


def _statement(digest: str, at_ns: int) -> str:
    said = {"kind": KIND, "version": VERSION, "sha256": digest, "at_unix_ns": str(at_ns)}
    return json.dumps(said, sort_keys=True, separators=(",", ":"))


def sign(body: Json, signer: WorkloadSigner, now_ns: int) -> Json:
    """The report with its statement, signature and the signer's certificates."""
    statement = _statement(hashlib.sha256(canonical(body)).hexdigest(), now_ns)
    signed = signer.sign(statement)
    return {
        "report": body,
        "statement": statement,
        "signature": signed.signature,
        "certificates": signed.certificates,
    }


@dataclass(frozen=True, slots=True)
class Proven:
    """A report that somebody signed: who, and when."""

    body: Json
    identity: str
    serial: str
    at: dt.datetime


def verify(raw: object, bundle: TrustBundle, now: dt.datetime) -> Proven:
    """Check a signed report, offline. Raises ReportRefused. Whose signature is wanted is for the
    caller to say."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("report"), dict):
        raise ReportRefused("not a signed report: it has no `report`")
    if more := set(raw) - _PARTS:
        raise ReportRefused(f"it has parts that nobody signed: {', '.join(sorted(map(str, more)))}")
    body: Json = raw["report"]
    text = raw.get("statement")
    if not isinstance(text, str):
        raise ReportRefused("not a signed report: it has no `statement`")
    try:
        said = json.loads(text)
        at_ns = int(said["at_unix_ns"])
        at = dt.datetime.fromtimestamp(at_ns // 10**9, dt.UTC)
        kind, version, digest = said["kind"], said["version"], said["sha256"]
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError) as e:
        raise ReportRefused("its statement is malformed") from e
    if kind != KIND or version != VERSION:
        raise ReportRefused(f"its statement is of {kind!r} version {version!r}, not of a report")
    if text != _statement(str(digest), at_ns):
        raise ReportRefused("its statement is not as the store writes it")
    signed = Signed(str(raw.get("signature", "")), str(raw.get("certificates", "")))
    try:
        facts = check_statement(text, signed, bundle, at, exact=True)
    except (StatementRefused, EvidenceMalformed) as e:
        raise ReportRefused(str(e)) from e
    if digest != hashlib.sha256(canonical(body)).hexdigest():
        raise ReportRefused("the report is not the one that was signed: its digest differs")
    if at > now + dt.timedelta(minutes=5):
        raise ReportRefused(f"it was signed in the future, at {at:%Y-%m-%dT%H:%M:%SZ}")
    return Proven(body, str(facts.identity), facts.serial, at)
