"""Which service a Kubernetes pod is a replica of: its annotation, or its name.

containerd passes annotations as a capability argument, and every Kubernetes runtime passes the
pod's name in CNI_ARGS.

1. The annotation ``noctule.io/service`` names the service. Every other annotation that begins
   with ``noctule.io/`` is refused, so that a misspelt one is not ignored.
2. ``podNames`` is a list of patterns. The first one that fits the whole name of the pod is used.
3. A pattern is literal text before ``{service}``, and after it parts that each begin with ``-``:
   ``{replicaset}`` and ``{random}`` stand for what controllers append, ``{ordinal}`` for digits,
   anything else for itself. So ``{service}-{replicaset}-{random}`` fits the pods of a
   Deployment, ``{service}-{ordinal}`` those of a StatefulSet.
4. Controllers append what Kubernetes' apimachinery makes in pkg/util/rand: for a pod 5
   characters of `_SAFE`; for a ReplicaSet a 32-bit number whose decimal digits are written as
   those ten of `_SAFE` that are `_HASH`. One such number in 43,000 has fewer than 6 digits; it
   does not fit ``{replicaset}``, so that a short word, as in ``web-db-x2b4c``, does not either.
5. No regular expressions: importing ``re`` costs as long as the interpreter's whole start.
"""

from __future__ import annotations

from cni.codec import encode
from cni.errors import Failure
from cni.fields import invalid, list_of, map_of, text_of

PREFIX = "noctule.io/"
ANNOTATION = f"{PREFIX}service"

_SERVICE = "{service}"
_SAFE = frozenset("bcdfghjklmnpqrstvwxz2456789")
_HASH = frozenset("456789bcdf")
_DIGITS = frozenset("0123456789")
_PARTS = {
    "{replicaset}": (6, 10, _HASH),
    "{random}": (5, 5, _SAFE),
    "{ordinal}": (1, 10, _DIGITS),
}
"""The fewest and the most characters of each part, and its alphabet."""


def annotated(value: object, where: str) -> str:
    """Return the service that the annotations in `value` name, empty if they name none.

    Raises Failure 7.

    `where` is the field the value came from.
    """
    annotations = map_of(value, where)
    for name in annotations:
        if name.lower().startswith(PREFIX) and name != ANNOTATION:
            raise invalid(f"{where}: {name}", f"unknown annotation; noctule knows {ANNOTATION}")
    if ANNOTATION not in annotations:
        return ""
    return text_of(annotations[ANNOTATION], f"{where}: {ANNOTATION}")


def named(value: object, pod: str) -> str:
    """Return the part of the name `pod` that the first fitting pattern in `value` takes as service.

    Empty if no pattern fits. Raises Failure 7 if one of them is not a valid pattern.
    """
    found = ""
    for entry in list_of(value, "podNames"):
        prefix, parts = _pattern(text_of(entry, "podNames"))
        found = found or _fitted(prefix, parts, pod)
    return found


def _pattern(text: str) -> tuple[str, list[str]]:
    """Return the literal text before ``{service}`` and the parts after it."""
    prefix, found, rest = text.partition(_SERVICE)
    first, *parts = rest.split("-")
    if not found or first:
        raise _wrong(text, f"must contain {_SERVICE}, and after it nothing or parts with '-'")
    for literal in (prefix, *(part for part in parts if part not in _PARTS)):
        if "{" in literal or "}" in literal:
            raise _wrong(text, f"may contain {_SERVICE} once, and after it {', '.join(_PARTS)}")
    return prefix, parts


def _fitted(prefix: str, parts: list[str], pod: str) -> str:
    """Return the text of `pod` in the place of ``{service}``, empty if the pattern does not fit."""
    service, *ends = pod.rsplit("-", len(parts)) if parts else [pod]
    if len(ends) != len(parts) or not service.startswith(prefix):
        return ""
    if not all(_fits(part, end) for part, end in zip(parts, ends, strict=True)):
        return ""
    return service[len(prefix) :]


def _fits(part: str, text: str) -> bool:
    if part not in _PARTS:
        return part == text
    least, most, alphabet = _PARTS[part]
    return least <= len(text) <= most and alphabet.issuperset(text)


def _wrong(text: str, problem: str) -> Failure:
    return invalid("podNames", f"{encode(text)} {problem}")
