"""Typed access to the fields of a JSON object that somebody else wrote.

1. A value of the wrong type is a Failure that names the field, its value and what it must be.
2. null counts as absent, because Go writes null for a list or a map that was never made.
3. The caller of `object_of` passes the field names it knows. They are matched as Go's decoder
   would (`cni.codec`, rules 4 and 5). The keys of a map (`map_of`) are left as they are.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_pton

from cni.codec import encode, matched
from cni.errors import INVALID_CONFIG, UNSUPPORTED_FIELD, Failure


def invalid(field: str, problem: str) -> Failure:
    """Return the Failure 7 for a `field` that is missing or wrong."""
    return Failure(INVALID_CONFIG, f"{field}: {problem}")


def unsupported(field: str, value: object, fix: str) -> Failure:
    """Return the Failure 2 for a `field` whose `value` Noctule does not offer."""
    return Failure(UNSUPPORTED_FIELD, f"{field}: {encode(value)} is not supported; {fix}")


def text_of(value: object, field: str) -> str:
    """Return `value`, a string that is not empty; Failure 7 names the `field`."""
    if value is None:
        raise invalid(field, "missing; set it to a string")
    if not isinstance(value, str) or not value:
        raise invalid(field, f"{encode(value)} must be a string that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(field, f"{encode(value)} has half a surrogate pair") from None
    return value


def object_of(value: object, field: str, names: tuple[str, ...]) -> dict[str, object]:
    """Return the object `value` ({} for None), with its keys renamed to match `names`.

    Failure 7 names the `field`.
    """
    return matched(map_of(value, field), names)


def map_of(value: object, field: str) -> dict[str, object]:
    """Return the object `value` ({} for None), with its keys unchanged.

    Failure 7 names the `field`.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(field, "must be an object")
    return value


def list_of(value: object, field: str) -> list[object]:
    """Return the list `value` ([] for None); Failure 7 names the `field`."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(field, "must be a list")
    return value


def addresses_of(texts: list[str], field: str, code: int) -> tuple[str | None, str | None]:
    """Return the IPv4 and the IPv6 address among `texts`, which may carry a prefix length.

    Raises Failure with `code` for text that is not an address, and with code 2 for a second
    address of one family.
    """
    four = six = None
    for text in texts:
        address, slash, prefix = text.partition("/")
        family = AF_INET6 if ":" in address else AF_INET
        try:
            inet_pton(family, address)
        except (OSError, ValueError):
            raise Failure(
                code, f"{field}: {text!r} must be an address such as 10.64.16.5"
            ) from None
        most = 128 if family == AF_INET6 else 32
        if slash and not (prefix.isascii() and prefix.isdigit() and int(prefix[:4]) <= most):
            raise Failure(code, f"{field}: {text!r} has a prefix length that is not 0 to {most}")
        if (six if family == AF_INET6 else four) is not None:
            raise unsupported(field, texts, "a replica has one address of each family")
        if family == AF_INET6:
            six = address
        else:
            four = address
    return four, six


def mac_of(text: str, field: str, code: int) -> str:
    """Return the MAC `text` (six hex octets with colons) in lower case; Failure `code`."""
    mac = text.lower()
    octets = mac.split(":")
    if len(octets) != 6 or not all(
        len(octet) == 2 and set(octet) <= set("0123456789abcdef") for octet in octets
    ):
        raise Failure(code, f"{field}: {text!r} must be a MAC such as 02:4e:0a:40:10:05")
    return mac
