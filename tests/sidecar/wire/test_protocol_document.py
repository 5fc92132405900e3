"""docs/protocol.md and `sidecar.wire` agree on every number."""

import re
from pathlib import Path

from certs.trust.renewal import Claim
from kit.contract import ALPN
from sidecar.wire import opening, renewal
from sidecar.wire.frames import HEADER, KIND_NAMES, MAX_PAYLOAD
from sidecar.wire.opening import REFUSALS, RESETS, Opening, encode_accept, encode_code
from sidecar.wire.session import RECEIVABLE, Phase, Role

DOC = (Path(__file__).resolve().parents[3] / "docs" / "protocol.md").read_text()


def cells(heading: str) -> list[list[str]]:
    """The rows of all tables under a heading, without their heads."""
    section = DOC.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    assert rows
    return rows


def test_frames_have_the_kinds_and_limits_of_the_code() -> None:
    found = [(int(r[0]), r[1], int(r[2])) for r in cells("Frames") if r[0].isdigit()]
    assert found == [(kind, name, MAX_PAYLOAD[kind]) for kind, name in KIND_NAMES.items()]
    sizes = [
        int(r[1].split()[0]) for r in cells("Frames") if r[0] in ("kind", "length of the payload")
    ]
    assert sum(sizes) == HEADER


def test_open_is_laid_out_as_the_code_writes_it() -> None:
    rows = {r[0]: r[1] for r in cells("OPEN, version 1")}
    assert list(rows)[1:] == ["version", "port", "trace_id", "span_id", "service", "choice"]
    fixed = sum(int(size) for size in rows.values() if size.isdigit())
    raw = Opening(0x1234, b"t" * 16, b"s" * 8, "api.shop", "only").encode()
    assert len(raw) == fixed + 1 + len("api.shop") + 1 + len("only")
    assert raw == (
        bytes((opening.VERSION, 0x12, 0x34)) + b"t" * 16 + b"s" * 8 + b"\x08api.shop" + b"\x04only"
    )
    assert f"## OPEN, version {opening.VERSION}\n" in DOC


def test_answers_have_the_sizes_and_codes_of_the_code() -> None:
    found = [(r[0], int(r[1]), r[2].strip("`")) for r in cells("ACCEPT, REFUSE, RESET")[1:]]
    expected = [("REFUSE", code, word) for code, word in REFUSALS.items()]
    expected += [("RESET", code, word) for code, word in RESETS.items()]
    assert found == expected
    (size,) = re.findall(r"ACCEPT is (\d+) bytes", DOC)
    assert int(size) == len(encode_accept(b"t" * 16, b"s" * 8))
    assert len(encode_code(1)) == 1


def test_the_states_are_the_table_of_the_session() -> None:
    always = {"PING", "PONG", "GOAWAY", "RENEW", "CHALLENGE", "PROOF", "RENEWED"}
    found = {
        (Role(role), Phase(state)): set(filter(None, frames.split(", "))) | always
        for role, state, frames in cells("Which frame may come when")[1:]
    }
    assert found == {key: {KIND_NAMES[kind] for kind in kinds} for key, kinds in RECEIVABLE.items()}


def tables(heading: str) -> dict[str, list[list[str]]]:
    """The tables under a heading, by the first cell of their heads."""
    found: dict[str, list[list[str]]] = {}
    heads = ("Frame", "Code", "Bytes")
    for row in cells(heading):
        if row[0] in heads:
            rows = found.setdefault(row[0], [])
        else:
            rows.append(row)
    return found


def test_a_renewal_has_the_order_and_codes_of_the_code() -> None:
    found = tables("A new leaf")
    assert [row[0] for row in found["Frame"]] == [KIND_NAMES[kind] for kind in renewal.RECEIVABLE]
    assert {int(r[0]): r[1].strip("`") for r in found["Code"]} == renewal.OUTCOMES


def test_a_proof_signs_what_the_page_says() -> None:
    rows = tables("A new leaf")["Bytes"]
    sizes = [int(row[0]) for row in rows]
    signed = Claim(False, b"p" * 32, b"j" * 32, b"f" * 32, b"l" * 32, b"c" * 32).signed_bytes(
        b"n" * 32
    )
    fields, at = [], 0
    for size in sizes:
        fields.append(signed[at : at + size])
        at += size
    (words,) = re.findall("`(.+)`", rows[1][1])
    assert fields == [
        b" " * 64,
        words.encode() + b"\0",
        b"\2",
        *[c * 32 for c in (b"p", b"j", b"f", b"l", b"c", b"n")],
    ]
    assert at == len(signed)
    assert f"over {at} bytes:" in DOC


def test_the_alpn_is_the_one_of_the_contract() -> None:
    assert DOC.startswith(f"# The tunnel protocol `{ALPN}`\n")
