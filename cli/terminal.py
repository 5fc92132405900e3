"""What may reach a terminal."""

import json

from kit.printable import printable

__all__ = ["printable", "printable_json"]


def printable_json(value: object) -> str:
    """JSON in plain ASCII: json.dumps spells out everything beyond it but DEL."""
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")
