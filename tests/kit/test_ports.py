"""Sets of ports as annotations write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.ports import PortSet

ranges = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(sorted)


@given(st.lists(ranges, max_size=6), st.integers(1, 65535))
def test_a_port_is_in_the_set_if_it_is_in_one_of_its_ranges(
    items: list[list[int]], port: int
) -> None:
    text = ", ".join(f"{low}-{high}" for low, high in items)
    parsed = PortSet.parse(text)
    assert (port in parsed) == any(low <= port <= high for low, high in items)
    assert PortSet.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "bad", ["0", "65536", "80-", "-80", "90-80", "*", "http", "80;90", "1 - 2", "８０"]
)
def test_what_is_no_port_is_named(bad: str) -> None:
    with pytest.raises(ValueError, match="no port"):
        PortSet.parse(f"443,{bad}")
