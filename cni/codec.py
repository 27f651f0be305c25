"""JSON text, by the interpreter's own scanner and encoder.

1. The package ``json`` is a thin layer over the C module ``_json``, but importing it brings
   ``re``, ``enum`` and ``collections``: 8 ms, as long as the interpreter's whole start.
   Hence ``_json`` itself; tests/unit/test_cni_codec.py holds both to the same answers.
2. Reading follows RFC 8259: no NaN, no Infinity, nothing after the value.
3. Writing is ASCII, so that no string can be refused on its way out.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

_SPACE = " \t\n\r"


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return value


class _Reading:
    """What ``_json.make_scanner`` asks of its caller; ``json.JSONDecoder`` has the same fields."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = staticmethod(_float)
    parse_int = int
    parse_constant = staticmethod(_constant)


def _unknown(value: object) -> object:
    raise TypeError(f"{type(value).__name__} has no JSON form")


_scan = make_scanner(_Reading())  # type: ignore[arg-type]  # duck-typed, as json.scanner is
_write = make_encoder(
    None, _unknown, encode_basestring_ascii, None, ": ", ", ", False, False, False
)


def decode(data: bytes) -> object:
    """Return the value of the JSON text `data` (UTF-8); ValueError says what is wrong."""
    text = data.decode("utf-8").strip(_SPACE)
    try:
        try:
            value, end = _scan(text, 0)
        except SystemError:
            # The scanner can only raise json.decoder.JSONDecodeError if that was imported, and
            # fails without an exception if not. A text that is wrong may cost the import.
            import json.decoder  # noqa: F401

            value, end = _scan(text, 0)
    except StopIteration as stop:
        raise ValueError(f"a value is missing at character {stop.value}") from None
    except RecursionError:
        raise ValueError("too deeply nested") from None
    if end != len(text):
        raise ValueError(f"more text after the value, at character {end}")
    return value


def encode(value: object) -> str:
    """Return `value` (dicts, lists, strings, numbers, booleans, None) as one line of JSON."""
    return "".join(_write(value, 0))
