"""DNS settings: of the configuration, the runtime, a delegated plugin and earlier plugins.

CNI specification 1.1.0, section 5 "dns"; CONVENTIONS.md for the capability ``dns``.

1. The attachment's own name server comes first: a container's resolver asks in this order, and
   only ours knows the names of services. Others follow in the order given, each once.
2. Search domains and options are joined in the same way; the first domain counts.
"""

from __future__ import annotations

from cni.fields import list_of, object_of, text_of

_RUNTIME = {"servers": "nameservers", "searches": "search"}
"""The capability's names for what the specification calls otherwise."""

_LISTS = ("nameservers", "search", "options")


def settings(value: object, where: str) -> dict[str, object]:
    """Return the settings in the object `value`, in the specification's terms; Failure 7.

    `where` is the field the value came from.
    """
    fields = object_of(value, where)
    found: dict[str, object] = {}
    for name, given in fields.items():
        key = _RUNTIME.get(name, name)
        if key in _LISTS:
            found[key] = [
                text_of(entry, f"{where}.{name}") for entry in list_of(given, f"{where}.{name}")
            ]
        elif key == "domain" and given:
            found[key] = text_of(given, f"{where}.{name}")
    return found


def joined(all_settings: list[dict[str, object]]) -> dict[str, object]:
    """Return `all_settings` as one, the first first."""
    result: dict[str, object] = {}
    for one in all_settings:
        for key in _LISTS:
            values = one.get(key)
            if isinstance(values, list) and values:
                known = result.setdefault(key, [])
                assert isinstance(known, list)
                known += [value for value in values if value not in known]
        if one.get("domain"):
            result.setdefault("domain", one["domain"])
    return result
