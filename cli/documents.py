"""Files that somebody hands to a command: one clear line for each thing that can be wrong with them."""

import sys
from pathlib import Path
from typing import Any

import click

from cli.terminal import printable
from kit.yaml_text import YamlRefused, documents

MAX_BYTES = 16 << 20


def read_text(filename: str | Path, most: int = MAX_BYTES) -> str:
    """The text of a file; - is stdin. Raises ClickException."""
    name = str(filename)
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(most + 1)
        else:
            with Path(name).open("rb") as file:
                raw = file.read(most + 1)
        if len(raw) > most:
            raise click.ClickException(f"{printable(name)}: longer than {most >> 10} KiB")
        return raw.decode()
    except UnicodeDecodeError as e:
        raise click.ClickException(f"{printable(name)}: not UTF-8 at byte {e.start}") from e
    except OSError as e:
        raise click.ClickException(f"{printable(name)}: {e.strerror or e}") from e


def read_documents(filename: str | Path, most: int = MAX_BYTES) -> list[Any]:
    """The documents of a YAML file that are not empty. Raises ClickException."""
    text = read_text(filename, most)
    try:
        return documents(text)
    except YamlRefused as e:
        where = f"{filename}:{e.line}" if e.line else str(filename)
        raise click.ClickException(f"{printable(where)} is no YAML: {printable(e)}") from e
