"""A chain that was kept, and everything that can be done to it."""

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.evidence.chain import (
    CERTIFICATES,
    CHAIN_ID,
    CHECKPOINT,
    PREVIOUS,
    SEQUENCE,
    SIGNATURE,
    STATEMENT,
    Anchor,
    Chain,
    EvidenceMalformed,
    Kept,
    judge,
    read_record,
    read_statement,
    repeating_digest,
    statement,
)
from certs.evidence.signed import WorkloadSigner
from certs.evidence.verify import Verified, verify_spans
from certs.trust.bundle import TrustBundle
from certs.trust.contexts import TlsMaterial
from kit.clock import unix_ns
from tests.certs.forge import DEFAULT, Forge

FORGE = Forge()
BUNDLE = TrustBundle.of("cluster.local", 1, [FORGE.root_der])
Item = dict[str, Any]


def signer_of(identity: str = DEFAULT) -> WorkloadSigner:
    pair = FORGE.leaf(identity)
    return WorkloadSigner(TlsMaterial(pair.key_pem, pair.chain_pem, FORGE.root_pem))


def written(count: int, every: int, signer: WorkloadSigner | None = None) -> list[Item]:
    """Spans as a store gives them back: `count` records, a checkpoint after each `every`."""
    signer = signer or signer_of()
    chain, items = Chain(secrets.token_bytes(16)), list[Item]()
    for number in range(1, count + 1):
        items.append(record(chain, number))
        if number % every == 0:
            items.append(checkpoint(chain, signer))
    return items


def record(chain: Chain, number: int, reporter: str = DEFAULT) -> Item:
    ids = (secrets.token_bytes(16), secrets.token_bytes(8), b"")
    attributes = {
        "podlink.direction": "outbound",
        "podlink.source.identity": reporter,
        "podlink.security": "mtls",
        "podlink.verdict": "denied" if number % 7 == 0 else "allowed",
        "server.port": 5432,
        "podlink.direct": True,
    }
    sequence, previous = chain.append(
        ids,
        (10_000, 20_000 + 1000 * number),
        (4000, number, 7),
        repeating_digest("link", attributes),
    )
    return {
        "name": "link",
        "trace_id": ids[0].hex(),
        "span_id": ids[1].hex(),
        "parent_span_id": "",
        "start_unix_ns": "10000",
        "end_unix_ns": str(20_000 + 1000 * number),
        "links": [],
        "attributes": {
            **attributes,
            "client.port": 4000,
            "podlink.bytes.sent": number,
            "podlink.bytes.received": 7,
            CHAIN_ID: chain.id.hex(),
            SEQUENCE: sequence,
            PREVIOUS: previous.hex(),
        },
    }


def checkpoint(chain: Chain, signer: WorkloadSigner) -> Item:
    said = statement(chain, unix_ns(), "shop/api-1", "uid", {"dropped_allowed": 3})
    signed = signer.sign(said)
    return {
        "name": CHECKPOINT,
        "span_id": "c" * 16,
        "attributes": {
            CHAIN_ID: chain.id.hex(),
            STATEMENT: said,
            SIGNATURE: signed.signature,
            CERTIFICATES: signed.certificates,
        },
    }


def verify(items: Sequence[Item]) -> Verified:
    return verify_spans(items, BUNDLE)


def records(items: Sequence[Item]) -> list[Item]:
    return [item for item in items if item["name"] == "link"]


def test_what_stands_as_it_was_written_is_proven() -> None:
    [judged] = verify(written(25, every=10)).chains
    assert judged.sound
    assert (judged.proven, judged.unproven, judged.last_signed) == (20, 5, 20)
    assert judged.identities == (DEFAULT,)
    assert judged.counts == {"dropped_allowed": 3}


def test_the_order_of_the_spans_and_copies_of_them_do_not_matter() -> None:
    items = written(25, every=10)
    [judged] = verify([*reversed(items), *items]).chains
    assert judged.sound
    assert judged.proven == 20


@given(st.integers(1, 30), st.data())
def test_a_record_taken_away_is_a_gap(number: int, data: st.DataObject) -> None:
    items = written(30, every=data.draw(st.integers(1, 30)))
    gone = records(items)[number - 1]
    verified = verify([item for item in items if item is not gone])
    [judged] = verified.chains
    if number in (1, 30):  # at an end: nothing says that there was one more, unless it was signed
        signed = judged.last_signed == 30
        assert judged.missing == (((30, 30),) if number == 30 and signed else ())
    else:
        assert judged.missing == ((number, number),)
    assert not judged.altered


CHANGES: list[Callable[[Item], None]] = [
    lambda item: item["attributes"].update({"podlink.verdict": "allowed and more"}),
    lambda item: item["attributes"].update({"podlink.bytes.sent": 10**9}),
    lambda item: item["attributes"].update({"client.port": 1}),
    lambda item: item["attributes"].update({"server.port": "5432"}),
    lambda item: item["attributes"].update({"podlink.added": "x"}),
    lambda item: item["attributes"].pop("podlink.direct"),
    lambda item: item.update(end_unix_ns="11000"),
    lambda item: item.update(trace_id="ab" * 16),
    lambda item: item.update(parent_span_id="ab" * 8),
    lambda item: item.update(name="link opened"),
    lambda item: item.update(links=[{"trace_id": "ab" * 16, "span_id": "cd" * 8}]),
    lambda item: item["attributes"].update({PREVIOUS: "00" * 32}),
]


@pytest.mark.parametrize("change", CHANGES)
@given(number=st.integers(2, 20))
def test_a_record_that_was_changed_in_anything_is_found(
    change: Callable[[Item], None], number: int
) -> None:
    items = written(20, every=20)
    change(records(items)[number - 1])
    [judged] = verify(items).chains
    assert judged.altered == (number,)
    assert judged.proven == 20 - number


def test_a_chain_written_anew_behind_a_change_does_not_fit_its_signature() -> None:
    """Whoever holds the store changes record 5 and hashes everything after it again."""
    items = written(20, every=10)
    true = records(items)
    forger = Chain(bytes.fromhex(true[0]["attributes"][CHAIN_ID]))
    forged = [record(forger, number) for number in range(1, 21)]
    checkpoints = [item for item in items if item["name"] == CHECKPOINT]
    [judged] = verify([*forged, *checkpoints]).chains
    assert judged.proven == 0
    assert judged.altered == (10, 20)


def test_a_forged_twin_beside_the_true_record_is_found_and_the_true_one_stays_proven() -> None:
    items = written(20, every=20)
    twin = json.loads(json.dumps(records(items)[6]))
    twin["attributes"]["podlink.verdict"] = "allowed"
    [judged] = verify([twin, *items]).chains
    assert judged.altered == (7,)
    assert judged.proven == 20


@pytest.mark.attack_row(44)
def test_a_record_of_ones_own_under_anothers_chain_gives_no_right_to_sign_for_it() -> None:
    """Whoever holds the spans and any workload's key: alter a record, go on to the end of the chain as
    if it were so, and sign that."""
    other = "spiffe://cluster.local/ns/evil/sa/x"
    pair = FORGE.leaf(other)
    evil = WorkloadSigner(TlsMaterial(pair.key_pem, pair.chain_pem, FORGE.root_pem))
    chain, items = Chain(secrets.token_bytes(16)), list[Item]()
    for number in range(1, 10):
        items.append(record(chain, number))  # number 7, the denied one, may say what it likes
    items.append(record(chain, 10, other))
    items.append(checkpoint(chain, evil))
    found = verify(items)
    assert not found.sound and "under one id" in found.refused[0]
    of = {judged.identities: judged for judged in found.chains}
    assert of[()].proven == 0 and of[()].unproven == 9
    assert of[other,].proven == 1
    # Nor does it take anything from the one whose chain it is.
    items = written(20, every=10)
    stranger = Chain(bytes.fromhex(items[0]["attributes"][CHAIN_ID]))
    stranger.sequence = 19
    of = {each.identities: each for each in verify(
        [*items, record(stranger, 20, other), checkpoint(stranger, evil)]
    ).chains}  # fmt: skip
    assert of[DEFAULT,].proven == 20 and of[DEFAULT,].sound


def test_a_store_that_keeps_microseconds_can_still_prove_what_it_keeps() -> None:
    items = written(10, every=10)
    for item in records(items):
        item["start_unix_ns"] = str(int(item["start_unix_ns"]) - 128)  # by way of a float
    assert verify(items).chains[0].proven == 10


def test_nobody_else_can_sign_for_a_chain() -> None:
    other = FORGE.leaf("spiffe://cluster.local/ns/evil/sa/x")
    theirs = WorkloadSigner(TlsMaterial(other.key_pem, other.chain_pem, FORGE.root_pem))
    stranger = Forge().leaf(DEFAULT)
    outside = WorkloadSigner(TlsMaterial(stranger.key_pem, stranger.chain_pem, FORGE.root_pem))
    for signer, why in ((theirs, "not its own"), (outside, "no root of the bundle")):
        verified = verify(written(5, every=5, signer=signer))
        assert [c.proven for c in verified.chains] == [0]
        assert why in verified.refused[0]
        assert not verified.sound


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (STATEMENT, "{}"),
        (STATEMENT, "[" * 100_000),
        (
            STATEMENT,
            '{"version":1,"chain":"x","sequence":-1,"hash":"","at_unix_ns":"1","counts":{}}',
        ),
        (SIGNATURE, "AAAA"),
        (SIGNATURE, "not base64"),
        (CERTIFICATES, ""),
        (CERTIFICATES, "AAAA,AAAA"),
        (CERTIFICATES, "A" * 100_000),
    ],
)
def test_a_checkpoint_that_is_none_is_refused_in_one_line(name: str, value: str) -> None:
    items = written(5, every=5)
    items[-1]["attributes"][name] = value
    verified = verify(items)
    assert len(verified.refused) == 1
    assert len(verified.refused[0]) < 300
    assert verified.chains[0].proven == 0


def test_a_changed_statement_no_longer_fits_its_signature() -> None:
    items = written(5, every=5)
    text = items[-1]["attributes"][STATEMENT]
    items[-1]["attributes"][STATEMENT] = text.replace('"dropped_allowed":3', '"dropped_allowed":0')
    assert "signature" in verify(items).refused[0]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
names = st.sampled_from(
    ["name", "trace_id", "span_id", "parent_span_id", "start_unix_ns", "end_unix_ns", "links"]
)
keys = st.sampled_from([CHAIN_ID, SEQUENCE, PREVIOUS, STATEMENT, SIGNATURE, "client.port"])


@given(st.dictionaries(names, values), st.dictionaries(keys, values))
def test_no_span_whatever_it_says_breaks_the_check(top: Item, attributes: Item) -> None:
    for item in ({**top, "attributes": attributes}, {**written(1, every=9)[0], **top}):
        verify([item])
        try:
            read_record(item)
        except EvidenceMalformed:
            continue


@given(st.text())
def test_no_statement_breaks_its_reader(text: str) -> None:
    try:
        read_statement(text)
    except EvidenceMalformed as e:
        assert len(str(e)) < 200


@given(st.lists(st.integers(1, 12), max_size=12, unique=True), st.sets(st.integers(1, 12)))
def test_counts_add_up_whatever_is_left(left: list[int], signed: set[int]) -> None:
    chain, kept, anchors = Chain(bytes(16)), list[Kept](), list[Anchor]()
    for number in range(1, 13):
        found = read_record(record(chain, number))
        assert found is not None
        if number in left:
            kept.append(found)
        if number in signed:
            anchors.append(Anchor(number, chain.hash, 0, DEFAULT))
    judged = judge("x", kept, anchors)
    holes = sum(high - low + 1 for low, high in judged.missing)
    assert not judged.altered
    assert judged.proven + judged.unproven == len(left)
    if left:
        assert holes == judged.last - judged.first + 1 - len(left)
    lying = [replace(a, hash=bytes(32)) for a in anchors if a.sequence in left]
    if lying:
        assert judge("x", kept, lying).altered
