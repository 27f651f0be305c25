"""JSON text, by the interpreter's own scanner and encoder, and Go's way of matching names.

1. The package ``json`` is a thin layer over the C module ``_json``, but importing it also
   imports ``re``, ``enum`` and ``collections``: 8 ms, as long as the interpreter's whole start.
   So ``_json`` is used directly; tests/unit/test_cni_codec.py checks that both give the same
   answers.
2. Reading follows RFC 8259: no NaN, no Infinity, nothing after the value.
3. Writing is ASCII, so that every Python string can be written, even half a surrogate pair.
4. Runtimes and other plugins are written in Go, whose decoder (encoding/json, "Unmarshal" and
   fold.go) takes a key for the struct field of exactly that name, or else for the one that
   differs in case only. containerd relies on it: it passes ``IngressRate`` for ``ingressRate``.
   `matched` does the same for every object that Go would read into a struct. Where Go would read
   an object into a map (capabilities, annotations), its keys are compared exactly.
5. Where several keys of one object mean the same field, the one that comes later in the text
   wins, whichever of them is spelt exactly. If both values are objects they are joined key by
   key, because Go decodes the second into the struct that the first has filled. null replaces
   nothing. Keys that are equal byte for byte (no runtime writes them) are joined first, in the
   same way.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

LEVELS = 8
"""How many levels deep objects are joined (rule 5): deeper than any field of ours lies, and few
enough that no text makes the interpreter run out of stack."""

_SPACE = " \t\n\r"


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the object made of `pairs`, joining those that have the same key (rule 5)."""
    found = dict(pairs)
    if len(found) < len(pairs):
        found.clear()
        for name, value in pairs:
            _put(found, name, value)
    return found


def _put(found: dict[str, object], name: str, new: object, levels: int = LEVELS) -> None:
    """Set the field `name` of `found` to `new`, joined with its earlier value (rule 5)."""
    old = found.pop(name, None)
    if new is None:
        new = old
    elif levels and isinstance(old, dict) and isinstance(new, dict):
        joined = dict(old)
        for key, value in new.items():
            _put(joined, key, value, levels - 1)
        new = joined
    found[name] = new


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return value


class _Reading:
    """The attributes that ``_json.make_scanner`` reads; ``json.JSONDecoder`` has the same ones."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_object)
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
            # The scanner raises json.decoder.JSONDecodeError, and fails with SystemError if that
            # module was never imported. So import it only now, for texts that are wrong.
            import json.decoder  # noqa: F401

            value, end = _scan(text, 0)
    except StopIteration as stop:
        raise ValueError(f"a value is missing at character {stop.value}") from None
    except RecursionError:
        raise ValueError("too deeply nested") from None
    if end != len(text):
        raise ValueError(f"more text after the value, at character {end}")
    return value


def matched(value: dict[str, object], names: tuple[str, ...]) -> dict[str, object]:
    """Return `value` with each key that Go would match to one of `names` renamed to that name.

    Keys that match none of the names stay as they are. Rules 4 and 5.
    """
    if all(key in names for key in value):
        return value
    folded = {_folded(name): name for name in names}
    found: dict[str, object] = {}
    for key, new in value.items():
        _put(found, key if key in names else folded.get(_folded(key), key), new)
    return found


def _folded(name: str) -> str:
    # Go folds character by character. Besides A to Z only two characters fold to an ASCII
    # letter: the Kelvin sign, which lower() takes for k, and the long s, which it leaves.
    return name.lower().replace("\u017f", "s")


def encode(value: object) -> str:
    """Return `value` (dicts, lists, strings, numbers, booleans, None) as one line of JSON."""
    return "".join(_write(value, 0))
