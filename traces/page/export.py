"""The rows of a view as CSV and JSON. Pure."""

import csv
import io
import json
from collections.abc import Mapping, Sequence

from kit.printable import printable

Row = Mapping[str, object]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_json(rows: Sequence[Row], about: Mapping[str, object]) -> str:
    return json.dumps({**about, "rows": list(rows)}, indent=1)


def as_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """RFC 4180, with a byte-order mark so that spreadsheets read UTF-8. A text that a spreadsheet
    would take for a formula gets an apostrophe in front (CWE-1236): names were written by others."""
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
        value = "; ".join(map(str, value))
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
