"""Which address an attachment gets. No I/O: the addresses in use and the last one are arguments.

1. A request may name an address: as IPv4, as IPv6 or as MAC, or as several of these that mean the
   same address (`names`, rules 1 and 4). The attachment gets that address or an error, never
   another address.
2. Without such a request it gets the first free address after the one handed out last. So an
   address is not reused at once, while other nodes may still have entries for its last owner.
3. A node carries at most `CONTAINERS_MAX` containers. A Linux bridge numbers its ports with ten
   bits (BR_PORT_BITS, net/bridge/br_private.h) and never uses 0, so it has 1,023 ports. One of
   them is bat0's; three stay free for operators who add a port of their own to look at traffic.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address

from netconf import names
from netconf.attach.attachment import AttachRequest, NodeNet
from netconf.errors import AddressesExhausted, InvalidConfig, NodeFull

CONTAINERS_MAX = 1019


def choose(request: AttachRequest, node: NodeNet, taken: set[str], last: str) -> str:
    """Return the dotted IPv4 address for `request`.

    `taken` are the addresses in use. `last` is the address handed out before; a text that is no
    address counts as none. Raises NodeFull, AddressesExhausted, or InvalidConfig that names the
    requested address.
    """
    if len(taken) >= CONTAINERS_MAX:
        raise full()
    mine, edges = IPv4Network(node.slice), _edges(node)
    wanted = _wanted(request, node)
    if wanted is None:
        return _next(node, edges, taken, last)
    if wanted not in mine:
        reason = f"it is not in this node's slice {mine}"
    elif wanted in edges:
        reason = "it is a network or broadcast address"
    elif str(wanted) in taken:
        reason = "another attachment has it"
    else:
        return str(wanted)
    raise InvalidConfig(
        f"address: {wanted} cannot be had: {reason}; ask for a free address of {mine}, or for none"
    )


def full() -> NodeFull:
    """Return the error for a node that already has `CONTAINERS_MAX` containers (rule 3)."""
    return NodeFull(
        f"this node has {CONTAINERS_MAX} containers, the most that its bridge has ports for; "
        "remove some, or start this one on another node"
    )


def exhausted(node: NodeNet) -> AddressesExhausted:
    """Return the error for a node that has no free address left in its slice."""
    return AddressesExhausted(
        f"addresses.slice: all addresses of {node.slice} are in use on this node; "
        "give it a larger slice or detach something"
    )


def free(node: NodeNet, taken: set[str]) -> int:
    """Return how many more containers the node can take, given its addresses and bridge ports."""
    mine = IPv4Network(node.slice)
    usable = mine.num_addresses - sum(edge in mine for edge in _edges(node))
    return min(usable, CONTAINERS_MAX) - len(taken)


def _edges(node: NodeNet) -> set[IPv4Address]:
    """Return the network and broadcast addresses of pool and slice: no replica may have them."""
    networks = (IPv4Network(node.pool), IPv4Network(node.slice))
    return {network[position] for network in networks for position in (0, -1)}


def _next(node: NodeNet, edges: set[IPv4Address], taken: set[str], last: str) -> str:
    mine = IPv4Network(node.slice)
    first, count = int(mine.network_address), mine.num_addresses
    try:
        after = int(IPv4Address(last))
    except ValueError:
        after = first
    for step in range(1, count + 1):
        address = IPv4Address(first + (after - first + step) % count)
        if address not in edges and str(address) not in taken:
            return str(address)
    raise exhausted(node)


def _wanted(request: AttachRequest, node: NodeNet) -> IPv4Address | None:
    """Return the requested address as IPv4 (rule 1), None if none was requested; InvalidConfig."""
    six = _six(request.address6, node) if request.address6 is not None else None
    if request.address is None and request.mac is None:
        return six
    try:
        implied = names.address_of(request.mac) if request.mac is not None else None
        address = IPv4Address(request.address or implied or "")
    except ValueError as error:
        field = "address" if request.address is not None else "mac"
        raise InvalidConfig(
            f"{field}: {error}; ask for an IPv4 address of this node's slice"
        ) from error
    if implied is not None and implied != str(address):
        raise InvalidConfig(
            f"mac: {request.mac} cannot be had with {address}, whose MAC is "
            f"{names.mac_of(str(address))}; leave the MAC out"
        )
    if six is not None and six != address:
        raise InvalidConfig(
            f"address: {request.address6} cannot be had with {address}, whose IPv6 address is "
            f"{names.address6_of(str(address), node.ula)}; leave the IPv6 address out"
        )
    return address


def _six(text: str, node: NodeNet) -> IPv4Address:
    """Return the IPv4 address in the last 32 bits of an IPv6 address of this cluster.

    InvalidConfig if `text` is no address of this cluster's IPv6 network.
    """
    try:
        six = IPv6Address(text)
    except ValueError as error:
        raise InvalidConfig(f"address: {error}; leave the IPv6 address out") from error
    if not node.ula:
        raise InvalidConfig(
            f"address: {text} cannot be had: this cluster has no IPv6 network; "
            "ask for an IPv4 address only"
        )
    four = IPv4Address(int(six) & 0xFFFFFFFF)
    if IPv6Address(names.address6_of(str(four), node.ula)) != six:
        raise InvalidConfig(
            f"address: {text} cannot be had: it is not in this cluster's {node.ula}; "
            "leave the IPv6 address out"
        )
    return four
