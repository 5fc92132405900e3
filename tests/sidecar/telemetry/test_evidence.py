"""From a link record to a judgement of what a real store kept of it."""

import contextlib
import sqlite3
from itertools import cycle, islice

from certs.evidence.chain import CHECKPOINT
from certs.evidence.verify import Verified, verify_spans
from certs.trust.bundle import TrustBundle
from sidecar.report import LinkRecord
from sidecar.telemetry.config import TelemetryConfig
from sidecar.telemetry.exporter import LinkExporter
from tests.certs.fake_source import FakeSource
from tests.certs.forge import Forge
from tests.sidecar.telemetry.records import API, denied, inbound_of, outbound
from tests.traces.process import StoreProcess
from traces.blob import pack, read_span
from traces.query import chain_items

FORGE = Forge()
BUNDLE = TrustBundle.of("cluster.local", 1, [FORGE.root_der])
CLAIMED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def exporter_to(store: StoreProcess, **settings: object) -> LinkExporter:
    config = TelemetryConfig(
        endpoint=f"127.0.0.1:{store.grpc_port}",
        plaintext=True,
        **settings,  # type: ignore[arg-type]
    )
    exporter = LinkExporter(config)
    exporter.svid_came(FakeSource(FORGE).show(FORGE.leaf(API)))
    return exporter


def kept(store: StoreProcess) -> Verified:
    with contextlib.closing(sqlite3.connect(store.db)) as db:
        return verify_spans(chain_items(db, 0, 1 << 60), BUNDLE)


def every_kind() -> list[LinkRecord]:
    opened = outbound(still_open=True)
    return [
        outbound(),
        denied(error="\udcff" + "x" * 3000, nearest_rule="n" * 1100),
        outbound(security="plaintext", reason="external", destination_identity="", source_port=0),
        opened,
        outbound(claimed_traceparent=CLAIMED),
        outbound(bytes_sent=1 << 40, service="\0\n\x1b[0m"),
        inbound_of(
            outbound(source_identity="spiffe://cluster.local/ns/x/sa/y", destination_identity=API),
            source_port=1,
        ),
    ]


async def test_every_kind_of_link_is_proven_by_what_the_store_gives_back(
    store: StoreProcess,
) -> None:
    exporter = exporter_to(store)
    exporter.start()
    records = list(islice(cycle(every_kind()), 700))
    for record in records:
        record.still_open = False
        exporter.report(record)
    await exporter.close()
    verified = kept(store)
    [chain] = verified.chains
    assert verified.sound
    assert (chain.proven, chain.unproven, chain.last_signed) == (700, 0, 700)
    assert chain.identities == (API,)
    assert chain.counts["reported"] == 700


async def test_one_of_each_kind_is_hashed_as_it_is_read(store: StoreProcess) -> None:
    exporter = exporter_to(store)
    exporter.start()
    kinds = every_kind()
    for record in kinds:
        exporter.report(record)
    await exporter.close()
    verified = kept(store)
    assert verified.chains[0].altered == ()
    assert verified.chains[0].proven == len(kinds)


async def test_whoever_holds_the_file_cannot_turn_a_denial_into_a_link(
    store: StoreProcess,
) -> None:
    exporter = exporter_to(store)
    exporter.start()
    for record in (outbound(), denied(), outbound(), outbound()):
        exporter.report(record)
    await exporter.close()
    with contextlib.closing(sqlite3.connect(store.db)) as db:
        number, blob = db.execute(
            "SELECT id, span FROM link_spans WHERE verdict = 'denied'"
        ).fetchone()
        span = read_span(blob)
        for attribute in span.attributes:
            if attribute.key == "podlink.verdict":
                attribute.value.string_value = "allowed"
        db.execute(
            "UPDATE spans SET span = ? WHERE id = ?", (pack(span.SerializeToString()), number)
        )
        db.commit()
        sequence = db.execute("SELECT sequence FROM spans WHERE id = ?", (number,)).fetchone()[0]
    assert kept(store).chains[0].altered == (sequence,)
    with contextlib.closing(sqlite3.connect(store.db)) as db:
        db.execute("DELETE FROM spans WHERE id = ?", (number,))
        db.commit()
    verified = kept(store)
    # Denials leave first, so this was the first record: its neighbour says what stood before it.
    assert (sequence, verified.chains[0].first) == (1, 2)


async def test_what_was_dropped_is_told_under_signature(store: StoreProcess) -> None:
    exporter = exporter_to(store, allowed_room=16)
    for _ in range(20):
        exporter.report(outbound())
    exporter.start()
    await exporter.close()
    [chain] = kept(store).chains
    assert chain.sound
    assert (chain.proven, chain.counts["dropped_allowed"]) == (16, 4)


async def test_without_a_key_records_are_chained_and_go_out_unsigned(store: StoreProcess) -> None:
    exporter = exporter_to(store)
    exporter.signer = None
    exporter.start()
    exporter.report(outbound())
    await exporter.close()
    [chain] = kept(store).chains
    assert (chain.proven, chain.unproven) == (0, 1)


async def test_a_key_that_fails_stops_no_span(store: StoreProcess) -> None:
    class Broken:
        def sign(self, statement: str) -> object:
            raise RuntimeError("no")

    exporter = exporter_to(store)
    exporter.signer = Broken()  # type: ignore[assignment]
    exporter.start()
    exporter.report(outbound())
    await exporter.close()
    assert kept(store).chains[0].unproven == 1


async def test_switched_off_there_is_no_chain(store: StoreProcess) -> None:
    exporter = exporter_to(store, evidence=False)
    exporter.start()
    exporter.report(outbound())
    await exporter.close()
    assert kept(store).chains == ()
    assert len(store.links()) == 1
    with contextlib.closing(sqlite3.connect(store.db)) as db:
        assert db.execute(
            "SELECT count(*) FROM spans WHERE name = ?", (CHECKPOINT,)
        ).fetchone() == (0,)
