"""Reads the YAML files that people write into typed values; errors are one sentence each.

1. A key given twice is an error, not a silent choice of the last one.
2. An unknown key is an error that lists the known ones.
3. Every message starts with the file's name and the path of the field.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable
from typing import Any, TypeVar

import msgspec
import yaml

from netconf.errors import DecodeFailure, InvalidConfig

T = TypeVar("T", bound=msgspec.Struct)
DEPTH = 32
"""Levels of nesting that are accepted; the deepest field of ours is on the sixth."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys, as YAML 1.2 section 3.2.1.3 demands.

    It also refuses halves of surrogate pairs, which a file can contain as an escape, but which can
    be written neither to the log nor into a record.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse nesting beyond `DEPTH`, because the parser's time grows with its square."""
        if self._depth == DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEPTH} deep", mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if _SURROGATE.search(value):
            raise yaml.constructor.ConstructorError(
                None, None, "half a surrogate pair; write the character itself", node.start_mark
            )
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(text: str, name: str, kind: type[T]) -> T:
    """Return `text`, a YAML document called `name` in messages, as a `kind`.

    Raises DecodeFailure for broken YAML (with line and column) and InvalidConfig for a
    document of the wrong shape.
    """
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise DecodeFailure(f"{name}: {where}{error.problem}") from error
    except yaml.YAMLError as error:
        raise DecodeFailure(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        # SafeLoader passes on the errors of int() and datetime(), and recurses with the nesting.
        raise DecodeFailure(f"{name}: {error}") from error
    except (LookupError, AttributeError, TypeError) as error:
        # SafeLoader raises these where an explicit tag (!!bool, !!timestamp) is on a wrong value.
        raise DecodeFailure(f"{name}: a value does not fit its !!tag; leave the tag out") from error
    if not isinstance(document, dict):
        raise InvalidConfig(f"{name}: expected a mapping at the top, found {_kind(document)}")
    try:
        return msgspec.convert(document, kind, str_keys=False)
    except msgspec.ValidationError as error:
        raise InvalidConfig(f"{name}: {_explain(str(error), kind)}") from error


_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "str": "a word",
    "int": "a number",
    "null": "nothing",
}


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _explain(message: str, kind: type[msgspec.Struct]) -> str:
    """Turn msgspec's ``… - at `$.a.b``` into ``a.b: …``, and help with unknown keys."""
    text, _, path = message.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    if unknown:
        text = f'unknown key "{unknown[1]}"'
        known = sorted(_known_keys(kind))
        close = difflib.get_close_matches(unknown[1], known, n=1)
        text += f'; did you mean "{close[0]}"?' if close else "; remove it"
    wrong = re.fullmatch(r"Expected `(.*)`, got `(.*)`", text)
    if wrong:
        text = f"expected {_WORDS.get(wrong[1], wrong[1])}, found {_WORDS.get(wrong[2], wrong[2])}"
        if wrong[1] == "object":
            text += "; write its fields as key: value"
    return f"{path}: {text}" if path else text


def _known_keys(kind: type[msgspec.Struct]) -> set[str]:
    """Return every key that occurs anywhere in a `kind`, to suggest one for a misspelt key."""
    schema = msgspec.json.schema(kind)
    return {
        key
        for definition in schema.get("$defs", {}).values()
        for key in definition.get("properties", {})
    }
