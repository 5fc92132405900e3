"""The rows of a view as CSV and JSON. Pure."""

import csv
import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final

from kit.printable import printable

Row = Mapping[str, object]
_FORMULA: Final = frozenset("=+-@\N{MINUS SIGN}")
"""What begins a formula. Full-width, small and raised forms of these read alike to some spreadsheets;
tabs and line ends before one never get here (`printable` spells them out)."""
_SEPARATORS: Final = frozenset(",;")
_SKIPPED: Final = frozenset(' "')


def as_json(rows: Sequence[Row], about: Mapping[str, object]) -> str:
    return json.dumps({**about, "rows": list(rows)}, indent=1)


def as_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """RFC 4180, with a byte-order mark so that spreadsheets read UTF-8. A text that a spreadsheet
    would take for a formula gets an apostrophe in front (CWE-1236; OWASP, "CSV Injection"): names were
    written by others."""
    out = io.StringIO()
    out.write("\ufeff")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    return out.getvalue()


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "; ".join(_defused(item) for item in value)
    return _defused(value)


def _defused(value: object) -> str:
    """The text with an apostrophe before each sign that could begin a cell: also after a comma or a
    semicolon, since a spreadsheet whose locale separates by the other one sees through our quotes."""
    out, begins = [], True
    for c in printable(value):
        if begins and unicodedata.normalize("NFKC", c)[:1] in _FORMULA:
            out.append("'")
        begins = c in _SEPARATORS or (begins and c in _SKIPPED)
        out.append(c)
    return "".join(out)
