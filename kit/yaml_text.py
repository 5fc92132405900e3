"""YAML that others wrote, read within bounds. Pure.

PyYAML recurses over what is nested, and a few aliases of aliases stand for more values than any
machine has room for. Both are looked at before anything is made.
"""

from typing import Any, Final

import yaml

from kit.checked import MAX_DEPTH

MAX_VALUES: Final = 1_000_000
"""Of all documents together, each alias counted as what it stands for."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlRefused(ValueError):
    """No YAML, or more of it than is read. One line; `line` counts from 1 and is 0 if unknown."""

    reason = "yaml_malformed"

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(problem)
        self.line = line


def documents(text: str) -> list[Any]:
    """Every document that is not empty. Raises YamlRefused."""
    try:
        _check(text)
        return [one for one in yaml.load_all(text, Loader=_Loader) if one is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise YamlRefused(_line(problem), mark.line + 1 if mark is not None else 0) from error
    except YamlRefused:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError) as error:  # a 13th month, say
        raise YamlRefused(_line(error)) from error


def _check(text: str) -> None:
    """By the parser's events, which come one by one: how deep, and how many values."""
    counts, anchors, named = [0], dict[str, int](), list[str | None]()
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            counts[-1] += anchors.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            counts[-1] += 1
            if event.anchor is not None:
                anchors[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            named.append(event.anchor)
            if len(counts) > MAX_DEPTH:
                mark = event.start_mark
                line = mark.line + 1 if mark is not None else 0
                raise YamlRefused(f"values nested deeper than {MAX_DEPTH}", line)
        elif isinstance(event, yaml.CollectionEndEvent):
            made, anchor = counts.pop(), named.pop()
            counts[-1] += made
            if anchor is not None:
                anchors[anchor] = made
        if counts[-1] > MAX_VALUES:
            raise YamlRefused(f"more than {MAX_VALUES} values, aliases counted in full")


def _line(problem: object) -> str:
    return " ".join(str(problem).split())[:200]
