"""CHECK: say whether the container is still attached as ADD left it.

CNI specification 1.1.0, section 2 "CHECK".

1. prevResult is required: it says which interface and address are expected. Later plugins may
   have added to it; only our interface and our address are looked at.
2. The daemon then compares the kernel with the attachment's state. If nobody listens on its
   socket, the executable makes the same comparison.
3. Then the delegated plugin is asked, if there is one.
"""

from __future__ import annotations

from cni import client
from cni.config import Network
from cni.environment import Environment
from cni.errors import INVALID_CONFIG, Failure
from cni.result import objects_of


def check(call: Environment, network: Network) -> None:
    """Check; Failure names what differs."""
    socket = network.socket
    request = network.request(call)
    previous = network.previous()
    if not previous:
        raise Failure(INVALID_CONFIG, "prevResult: missing; CHECK needs the result of ADD")
    request.mac, request.address = _expected(call, previous)
    try:
        client.check(socket, request)
    except client.Absent:
        from cni import fallback

        fallback.check(socket, request)
    except client.Silence as silence:
        raise silence.failure() from None
    if network.ipam:
        from cni import ipam

        ipam.run(call, network, "CHECK")


def _expected(call: Environment, previous: dict[str, object]) -> tuple[str, str]:
    """Return the MAC and the IPv4 address (dotted) that prevResult has for our interface."""
    interfaces = objects_of(previous, "interfaces")
    index = next(
        (
            index
            for index, interface in enumerate(interfaces)
            if interface.get("name") == call.ifname and interface.get("sandbox") == call.netns
        ),
        -1,
    )
    if index < 0:
        raise Failure(
            INVALID_CONFIG,
            f"prevResult.interfaces: no {call.ifname} in {call.netns}; CHECK needs ADD's result",
        )
    mac = interfaces[index].get("mac")
    if not isinstance(mac, str):
        raise Failure(INVALID_CONFIG, f"prevResult.interfaces: {call.ifname} has no mac")
    for ip in objects_of(previous, "ips"):
        address = ip.get("address")
        # Only ours: a later plugin may have given the interface other addresses.
        if ip.get("interface") == index and isinstance(address, str) and _ours(address, mac):
            return mac.lower(), address.partition("/")[0]
    raise Failure(
        INVALID_CONFIG, f"prevResult.ips: no address of {call.ifname} belongs to its MAC {mac}"
    )


def _ours(address: str, mac: str) -> bool:
    """Say whether `mac` is 02:4e followed by the octets of `address` (netconf.names, rule 1)."""
    octets = address.partition("/")[0].split(".")
    if len(octets) != 4 or not all(
        octet.isascii() and octet.isdigit() and len(octet) <= 3 for octet in octets
    ):
        return False
    return mac.lower() == "02:4e:" + ":".join(f"{int(octet):02x}" for octet in octets)
