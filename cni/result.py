"""What a runtime reads on stdout: a result in its own version's shape, or an error.

CNI specification 1.1.0, section 5.

1. The result has the version of the network configuration.
2. ``ips[].version`` exists only before 1.0.0, ``interfaces[].mtu`` only from 1.1.0.
3. What a plugin earlier in the chain made (``prevResult``) comes first and unchanged; ours is
   appended, and ``ips[].interface`` counts from the start of the whole list.
4. An error names the field and the fix. Codes below 100 are the specification's.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the name that type checkers look for; importing typing costs 8 ms
if TYPE_CHECKING:
    from cni.client import Attached
    from cni.environment import Environment

SUPPORTED = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The versions of the specification that are served, oldest first."""

LATEST = SUPPORTED[-1]

# Section 5, "Error"; the names are those of pkg/types in containernetworking/cni.
INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
INVALID_NETNS = 8
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
CHECK_FAILED = 102
INTERNAL = 999


class Failure(Exception):
    """The one error of this package: what becomes the error on stdout.

    Its code is a value, not a class, because most failures are relayed from the daemon;
    ``netconf``'s hierarchy is translated at the one place that imports it, `cni.fallback`.
    """

    def __init__(self, code: int, message: str, details: str = "") -> None:
        """`message` names the field and the fix; `details` holds the cause, if any."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    def shape(self, version: str) -> dict[str, object]:
        """Return the error as JSON values, for a configuration of `version`."""
        return {
            "cniVersion": version,
            "code": self.code,
            "msg": self.message,
            "details": self.details,
        }


def since(version: str, first: str) -> bool:
    """Say whether the supported `version` is `first` or a later one."""
    return SUPPORTED.index(version) >= SUPPORTED.index(first)


def success(
    version: str,
    environment: Environment,
    attached: Attached,
    previous: dict[str, list[dict[str, object]]],
    dns: dict[str, object],
) -> dict[str, object]:
    """Return ADD's result as JSON values.

    `previous` holds the lists ``interfaces``, ``ips`` and ``routes`` of prevResult, and `dns`
    its dictionary; all may be empty.
    """
    before = previous.get("interfaces", [])
    interface: dict[str, object] = {"name": environment.ifname, "mac": attached.mac}
    if since(version, "1.1.0"):
        interface["mtu"] = attached.mtu
    interface["sandbox"] = environment.netns
    ips: list[dict[str, object]] = [
        {"address": address, "interface": len(before)} for address in attached.addresses
    ]
    if not since(version, "1.0.0"):
        ips = [{"version": "6" if ":" in str(ip["address"]) else "4", **ip} for ip in ips]
    return {
        "cniVersion": version,
        "interfaces": [*before, interface],
        "ips": [*previous.get("ips", []), *ips],
        "routes": [*previous.get("routes", []), *({"dst": dst} for dst in attached.routes)],
        "dns": dns,
    }
