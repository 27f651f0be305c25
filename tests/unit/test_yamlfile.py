"""Files that people write: one typed value, or one sentence that says where and why not."""

from __future__ import annotations

import msgspec
import pytest

from daemon import yamlfile
from netconf.errors import DecodeFailure, InvalidConfig


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    colour: str
    sizes: list[int] = []


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: Inner
    limit: int = 3


def load(text: str) -> Outer:
    return yamlfile.load(text, "outer.yaml", Outer)


def test_a_document_becomes_a_value() -> None:
    found = load("inner: {colour: red, sizes: [1, 2]}\nlimit: 4\n")
    assert found == Outer(inner=Inner(colour="red", sizes=[1, 2]), limit=4)


def test_defaults_and_anchors_work() -> None:
    assert load("inner: {colour: &c red}") == Outer(inner=Inner(colour="red"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner: {colour: red}\ninner: {colour: blue}", "line 2, column 1: the key 'inner' is"),
        ("inner: {colour: red, colour: red}", "line 1, column 22: the key 'colour' is given twice"),
        ("inner: {colour: red", "line 1, column 20: "),
        ("? {a: b}\n: c", "line 1, column 3: a key must be a plain word"),
        ("a: !!python/object:os.system x", "line 1, column 4: could not determine a constructor"),
        ("limit: *nowhere", "line 1, column 8: found undefined alias"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: \0", "unacceptable character"),
        ("[" * 5000, "line 1, column 33: nested more than 32 deep"),
        ('a: "\\ud800"', "line 1, column 4: half a surrogate pair"),
        ('"\\udfff": a', "line 1, column 1: half a surrogate pair"),
    ],
)
def test_broken_yaml_says_where(text: str, message: str) -> None:
    with pytest.raises(DecodeFailure) as caught:
        load(text)
    assert caught.value.message.startswith("outer.yaml: ")
    assert message in caught.value.message


@pytest.mark.parametrize(
    "value", ["!!bool maybe", "!!timestamp soon", "!!int ''", "!!float ''", "!!set [1]"]
)
def test_a_tag_on_a_value_it_does_not_fit_is_no_traceback(value: str) -> None:
    with pytest.raises(DecodeFailure, match=r"^outer\.yaml: .*!!tag"):
        load(f"limit: {value}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping at the top, found nothing"),
        ("- a", "expected a mapping at the top, found list"),
        ("just words", "expected a mapping at the top, found str"),
        ("inner: {colour: red, size: [1]}", 'inner: unknown key "size"; did you mean "sizes"?'),
        ("zzzzzz: 1\ninner: {colour: red}", 'unknown key "zzzzzz"; remove it'),
        ("limit: 2", "missing required field `inner`"),
        ("inner: {sizes: []}", "inner: Object missing required field `colour`"),
        ("inner: {colour: red, sizes: [1, two]}", "inner.sizes[1]: expected a number, found a"),
        ("inner: {colour: no}", "inner.colour: expected a word, found bool"),
        ("inner: red", "inner: expected a mapping, found a word; write its fields as key: value"),
        ("inner: {colour: red}\nlimit: '3'", "limit: expected a number, found a word"),
    ],
)
def test_a_wrong_shape_names_the_field(text: str, message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(text)
    assert caught.value.message.startswith("outer.yaml: ")
    assert message in caught.value.message
    assert "$" not in caught.value.message
