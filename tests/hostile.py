"""Objects that nobody means: valid ones with values of every wrong kind put in their places."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

PORTS = (70000, -1, 0, 65536, 2**31, 2**32 + 80, 2**63, 2**70, True, 80.5, "80", "http", None, [80])
"""Where a port from 1 to 65535 should be."""


def nested(depth: int) -> Any:
    made: Any = "bottom"
    for _ in range(depth):
        made = {"a": made}
    return made


def junk() -> st.SearchStrategy[Any]:
    """Values of every JSON type at their edges, and texts that are hard on whoever reads them."""
    return st.one_of(
        st.sampled_from(PORTS),
        st.sampled_from(
            [
                *("", " ", "\x00", "\ud800", "a\nb", "\u202e", "10.0.0.256", "::ffff:1.2.3.4%x"),
                *("x" * 5000, "1," * 4000 + "1", "../..", "a.b.c.d", "*", "-", "1-99999", "9-1"),
                *([], {}, [None], [[]], {"": None}, [{}] * 40, {"x": "y"}, float("nan"), 1e308),
            ]
        ),
        st.text(max_size=20),
        st.integers(),
        st.builds(nested, st.just(70)),
    )


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner if isinstance(value, dict | list) else ():
        yield (*at, key)
        if isinstance(one, dict | list) and len(at) < 12:
            yield from paths(one, (*at, key))


@st.composite
def spoilt(draw: st.DrawFn, honest: Any, most: int = 4) -> Any:
    """`honest` with up to `most` of its values replaced or left out."""
    made = copy.deepcopy(honest)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(sorted(paths(made), key=repr) or [()]))
        if not path:
            break
        holder = made
        for key in path[:-1]:
            holder = holder[key]
        if isinstance(holder, dict) and draw(st.integers(0, 5)) == 0:
            del holder[path[-1]]
        else:
            # A copy: what is drawn belongs to the strategy, and the next round may spoil it further.
            holder[path[-1]] = copy.deepcopy(draw(junk()))
    return made
