"""Prints rows as a table that a person or a pipe can read. Cells are text: no markup, no escapes."""

import sys
from collections.abc import Iterable, Sequence

from cli.terminal import printable

_PIPED_WIDTH = 400


def print_rows(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """One line per row on standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, markup=False)
    console.print(table)
