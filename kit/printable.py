"""What may reach a reader's eye. Names and errors in a span were written by others, some of whom
would like to move a terminal's cursor, turn the direction of a line, or forge one.
"""


def printable(value: object) -> str:
    """`value` as text in which every control, format or unassigned character is spelled out."""
    text = "" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
