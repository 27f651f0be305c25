"""Our JSON is the standard library's JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cni.codec import decode, encode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)  # fmt: skip


@given(VALUES)
def test_writing(value: object) -> None:
    assert encode(value) == json.dumps(value)
    assert encode(value).isascii()


@given(VALUES, st.sampled_from(["", " ", "\n", "\t\r\n "]), st.booleans())
def test_reading(value: object, space: str, ascii_only: bool) -> None:
    text = space + json.dumps(value, ensure_ascii=ascii_only) + space
    assert decode(text.encode("utf-8", "surrogatepass" if ascii_only else "replace")) == json.loads(
        text.encode("utf-8", "replace")
    )


@given(st.text() | st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \\'))
@example("1E309")
def test_reading_agrees_on_what_is_wrong(text: str) -> None:
    data = text.encode()

    def constant(name: str) -> object:
        raise ValueError(name)

    def finite(number: str) -> float:
        # The standard library makes infinity of what a float cannot hold.
        if math.isinf(float(number)):
            raise ValueError(number)
        return float(number)

    try:
        # The standard library alone would guess UTF-16 for bytes.
        expected = json.loads(text, parse_constant=constant, parse_float=finite)
    except ValueError:
        with pytest.raises(ValueError):
            decode(data)
    else:
        assert decode(data) == expected


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "-Infinity", "1e999", "[" * 100_000, "1 2"])
def test_what_json_is_not(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text.encode())


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), b"x"])
def test_what_has_no_json_form(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode(value)
