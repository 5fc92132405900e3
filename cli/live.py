"""One line on a terminal that says what is going on. Where there is no terminal it says nothing."""

import shutil
import sys
from typing import Self

import click

from kit.printable import printable


class Live:
    """`with Live() as live: live.say("starting the cluster")`; the line is gone afterwards."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def say(self, text: str) -> None:
        """Show `text` in place of what was there, cut to the width of the terminal."""
        if self._shown:
            room = shutil.get_terminal_size().columns - 6
            words = printable(" ".join(text.split()))
            cut = words if len(words) <= room else words[: room - 1] + "…"
            click.echo(f"\r\x1b[2K   … {cut}", nl=False, err=True)

    def clear(self) -> None:
        """Take the line away, so that something else can be printed."""
        if self._shown:
            click.echo("\r\x1b[2K", nl=False, err=True)
