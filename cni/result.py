"""What ADD writes on stdout: a result in the shape of the runtime's own version.

CNI specification 1.1.0, section 5.

1. The result has the version of the network configuration.
2. ``ips[].version`` exists only before 1.0.0, ``interfaces[].mtu`` only from 1.1.0.
3. The interfaces that we list are the container's, and those on the node that belong to it.
4. The entries of ``prevResult`` come first and unchanged, ours are appended, and
   ``ips[].interface`` counts from the start of the whole list. Only in the DNS settings ours come
   first (`cni.dns`).
"""

from __future__ import annotations

TYPE_CHECKING = False  # the name that type checkers look for; importing typing costs 8 ms
if TYPE_CHECKING:
    from cni.client import Attached
    from cni.environment import Environment

SUPPORTED = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The versions of the specification that are served, oldest first."""

LATEST = SUPPORTED[-1]


def since(version: str, first: str) -> bool:
    """Say whether the supported `version` is `first` or a later one."""
    return SUPPORTED.index(version) >= SUPPORTED.index(first)


def objects_of(previous: dict[str, object], name: str) -> list[dict[str, object]]:
    """Return the list `name` of prevResult, whose shape `cni.chain` has checked."""
    entries = previous.get(name, [])
    assert isinstance(entries, list)
    return entries


def success(
    version: str,
    environment: Environment,
    attached: Attached,
    previous: dict[str, object],
    dns: list[dict[str, object]],
) -> dict[str, object]:
    """Return ADD's result as JSON values.

    `previous` is prevResult; `dns` are the settings that configuration, runtime and delegated
    plugin gave, in order of precedence. Both may be empty.
    """
    before = objects_of(previous, "interfaces")
    interface: dict[str, object] = {"name": environment.ifname, "mac": attached.mac}
    host = attached.host
    if since(version, "1.1.0"):
        interface["mtu"] = attached.mtu
    else:
        host = [{"name": one["name"], "mac": one["mac"]} for one in host]
    interface["sandbox"] = environment.netns
    ips: list[dict[str, object]] = [
        {"address": address, "interface": len(before)} for address in attached.addresses
    ]
    if not since(version, "1.0.0"):
        ips = [{"version": "6" if ":" in str(ip["address"]) else "4", **ip} for ip in ips]
    resolver: dict[str, object] = {"nameservers": [attached.nameserver]}
    theirs = previous.get("dns")
    if dns or theirs:
        from cni.dns import joined

        given = [resolver, *dns, theirs if isinstance(theirs, dict) else {}]
        resolver = joined(given)
    return {
        **previous,
        "cniVersion": version,
        "interfaces": [*before, interface, *host],
        "ips": [*objects_of(previous, "ips"), *ips],
        "routes": [*objects_of(previous, "routes"), *({"dst": dst} for dst in attached.routes)],
        "dns": resolver,
    }
