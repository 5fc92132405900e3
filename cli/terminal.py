"""What may reach a terminal. Names and errors in a span were written by others, some of whom would
like to move the cursor, recolour a denial or forge a line.
"""

import json


def printable(value: object) -> str:
    """`value` as text in which every control, format or unassigned character is spelled out."""
    text = "" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_json(value: object) -> str:
    """JSON in plain ASCII: json.dumps spells out everything beyond it but DEL."""
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")
