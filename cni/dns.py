"""DNS settings from the configuration, the runtime, a delegated plugin and earlier plugins.

CNI specification 1.1.0, section 5 "dns"; CONVENTIONS.md for the capability ``dns``.

1. The attachment's own name server comes first, because a container asks its servers in this
   order and only ours knows the names of services. Others follow in the order given, each once.
2. Search domains and options are joined in the same way. Of several ``domain`` fields the first
   is used.
3. Settings may use the specification's names (nameservers, search) or the capability's (servers,
   searches), wherever they come from. Any other field that a configuration or a runtime sets is
   refused; any other field that another plugin reports is passed on.
"""

from __future__ import annotations

from cni.fields import invalid, list_of, object_of, text_of

_LISTS = {
    "nameservers": "nameservers",
    "servers": "nameservers",
    "search": "search",
    "searches": "search",
    "options": "options",
}
"""Each list's name in the specification, by the names it may come under."""

_NAMES = (*_LISTS, "domain")


def asked(value: object, where: str) -> dict[str, object]:
    """Return the settings that a configuration or a runtime asks for, as `settings` does.

    Raises Failure 7 also for an unknown field that is not empty (rule 3).
    """
    for name, given in object_of(value, where, _NAMES).items():
        if given and name not in _NAMES:
            raise invalid(f"{where}.{name}", f"unknown field; known are {', '.join(_NAMES)}")
    return settings(value, where)


def settings(value: object, where: str) -> dict[str, object]:
    """Return the settings in the object `value`, in the specification's terms; Failure 7.

    `where` is the field the value came from.
    """
    found: dict[str, object] = {}
    for name, given in object_of(value, where, _NAMES).items():
        field = f"{where}.{name}"
        if name in _LISTS:
            entries = [text_of(entry, field) for entry in list_of(given, field)]
            before = found.get(_LISTS[name], [])
            assert isinstance(before, list)
            found[_LISTS[name]] = before + entries
        elif given:
            found[name] = text_of(given, field) if name == "domain" else given
    return found


def joined(all_settings: list[dict[str, object]]) -> dict[str, object]:
    """Return `all_settings` joined into one; earlier ones come first in each list."""
    result: dict[str, object] = {}
    for one in all_settings:
        for key, value in one.items():
            if key not in _LISTS:
                result.setdefault(key, value)
            elif isinstance(value, list) and value:
                known = result.setdefault(key, [])
                assert isinstance(known, list)
                known += [entry for entry in value if entry not in known]
    return result
