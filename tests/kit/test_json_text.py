"""JSON that is nested beyond reading takes nothing along but itself."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.checked import is_deep
from kit.json_text import TOO_DEEP, loads


def nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"b\\"[":', "}]")])
@pytest.mark.parametrize("depth", [1000, 100_000])
def test_what_is_beside_a_value_that_is_nested_too_deep_is_read(
    depth: int, opening: str, closing: str
) -> None:
    deep = nested(depth, opening, closing)
    read = loads(f'{{"items": [{{"x{{[": "}}]\\\\"}}, {{"deep": {deep}, "after": [2]}}, 3]}}')
    first, second, third = read["items"]
    assert first == {"x{[": "}]\\"}
    assert second["after"] == [2]
    assert third == 3
    # Newer Pythons read some thousand levels, and what is read whole is seen to be deep.
    assert TOO_DEEP in json.dumps(second) if depth > 50_000 else is_deep(second)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 9, "]" * 5000, "", b"\xff", '"\\'])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        loads(text)


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_all_else_is_read_as_ever(value: object) -> None:
    assert loads(json.dumps(value)) == value
