"""JSON text, by the interpreter's own scanner and encoder, and Go's way of matching names.

1. The package ``json`` is a thin layer over the C module ``_json``, but importing it brings
   ``re``, ``enum`` and ``collections``: 8 ms, as long as the interpreter's whole start.
   Hence ``_json`` itself; tests/unit/test_cni_codec.py holds both to the same answers.
2. Reading follows RFC 8259: no NaN, no Infinity, nothing after the value.
3. Writing is ASCII, so that no string can be refused on its way out.
4. Runtimes and other plugins are written in Go, whose decoder (encoding/json, "Unmarshal" and
   fold.go) takes a key for the struct field of exactly that name, or else for the one that
   differs in case only. containerd relies on it: it passes ``IngressRate`` for ``ingressRate``.
   `matched` does the same for every object that Go would read into a struct. The keys of what
   Go would read into a map (capabilities, annotations) mean what they are.
5. Where several keys of one object mean the same field, the later in the text counts, whichever
   of them is spelt exactly. Objects are joined, key by key, as Go decodes the second into the
   struct that the first has filled. null replaces nothing. Keys that are equal, which no
   runtime writes, are brought together first, in the same way.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

LEVELS = 8
"""To how many levels objects are joined (rule 5): more than any field lies deep, and few enough
that no text makes the interpreter run out of stack."""

_SPACE = " \t\n\r"


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the object of `pairs`, of which some may have the same key (rule 5)."""
    found = dict(pairs)
    if len(found) < len(pairs):
        found.clear()
        for name, value in pairs:
            _put(found, name, value)
    return found


def _put(found: dict[str, object], name: str, new: object, levels: int = LEVELS) -> None:
    """Let `new` count as the field `name`, after what that field was before (rule 5)."""
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
    """What ``_json.make_scanner`` asks of its caller; ``json.JSONDecoder`` has the same fields."""

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
            # The scanner can only raise json.decoder.JSONDecodeError if that was imported, and
            # fails without an exception if not. Only texts that are wrong pay for the import.
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
    """Return `value` with each key that Go would take for one of `names` spelt like it.

    Keys that mean none of the names stay as they are. Rules 4 and 5.
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
