"""prevResult, the result of the plugins that ran earlier in the chain, in this call's version.

CNI specification, section 5 of each version.

1. A prevResult of the same version is passed on unchanged, with fields that we do not know. Only
   the case of field names is corrected where Go's decoder would have matched them (`cni.codec`).
2. A prevResult of another supported version is converted: ``ips[].version`` is written only
   before 1.0.0, and the fields that 1.1.0 added to interfaces and routes only from 1.1.0 on.
"""

from __future__ import annotations

from cni.codec import encode
from cni.errors import INCOMPATIBLE_VERSION, Failure
from cni.fields import list_of, object_of
from cni.result import SUPPORTED, since

_NAMES = ("cniVersion", "interfaces", "ips", "routes", "dns")
_ENTRIES = {
    "interfaces": ("name", "mac", "mtu", "sandbox", "socketPath", "pciID"),
    "ips": ("interface", "address", "gateway", "version"),
    "routes": ("dst", "gw", "mtu", "advmss", "priority", "table", "scope"),
}
_NEW_IN_1_1_0 = {
    "interfaces": ("mtu", "socketPath", "pciID"),
    "routes": ("mtu", "advmss", "priority", "table", "scope"),
}


def previous(value: object, version: str) -> dict[str, object]:
    """Return prevResult in the shape of `version`; Failure 1 or 7 names the field."""
    result = object_of(value, "prevResult", _NAMES)
    theirs = result.get("cniVersion") or version
    if theirs not in SUPPORTED or not isinstance(theirs, str):
        raise Failure(
            INCOMPATIBLE_VERSION,
            f"prevResult.cniVersion: {encode(theirs)} is not supported",
            f"noctule supports {', '.join(SUPPORTED)}",
        )
    found = dict(result)
    if result.get("dns") is not None:
        from cni.dns import settings

        found["dns"] = settings(result["dns"], "prevResult.dns")
    for name, names in _ENTRIES.items():
        where = f"prevResult.{name}"
        entries = [object_of(entry, where, names) for entry in list_of(result.get(name), where)]
        found[name] = entries if theirs == version else _converted(name, entries, version)
    return found


def _converted(
    name: str, entries: list[dict[str, object]], version: str
) -> list[dict[str, object]]:
    if name == "ips":
        bare = [{key: ip[key] for key in ip if key != "version"} for ip in entries]
        if since(version, "1.0.0"):
            return bare
        return [{"version": "6" if ":" in str(ip.get("address")) else "4", **ip} for ip in bare]
    if since(version, "1.1.0"):
        return entries
    new = _NEW_IN_1_1_0[name]
    return [{key: entry[key] for key in entry if key not in new} for entry in entries]
