"""JSON that others wrote. Pure.

Python's reader recurses and gives up at some thousand levels with RecursionError, which is no
ValueError: one object that is nested deeper would take every object of its list along, and the program
too. Here what stands deeper than `MAX_DEPTH` reads as a text that says so, and the rest as it is.
"""

import json
import re
from typing import Any, Final

from kit.checked import MAX_DEPTH

TOO_DEEP: Final = f"values nested deeper than {MAX_DEPTH}"
_DEEPEST: Final = 2 * MAX_DEPTH
"""Levels that are kept of a text that is too deep: more than any reader takes, so that it still sees a
value that is too deep in the place where it was."""
_MARKS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


def loads(text: bytes | str) -> Any:
    """Raises ValueError for what is no JSON, and nothing else."""
    try:
        return json.loads(text)
    except RecursionError:
        pass
    if isinstance(text, bytes):
        text = text.decode()
    try:
        return json.loads(_shallow(text))
    except RecursionError as e:  # the caller stands deep in the stack itself
        raise ValueError("nested too deep") from e


def _shallow(text: str) -> str:
    """`text` with each value that begins below `_DEEPEST` replaced by TOO_DEEP."""
    kept, depth, begun_at, copied_to = [], 0, 0, 0
    for found in _MARKS.finditer(text):
        mark = found.group()
        if mark in "[{":
            depth += 1
            if depth == _DEEPEST + 1:
                begun_at = found.start()
        elif mark in "]}":
            if depth == _DEEPEST + 1:
                kept.append(text[copied_to:begun_at])
                kept.append(json.dumps(TOO_DEEP))
                copied_to = found.end()
            depth -= 1
    kept.append(text[copied_to:])
    return "".join(kept)
