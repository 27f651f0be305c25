"""Making a GENEVE tunnel send from a chosen address of this node.

1. A GENEVE device takes a frame only if its outer source is the device's own `remote`
   (drivers/net/geneve.c, geneve_lookup). So a node must send from the address that its peer
   was told, and nothing reports it when it does not: the frames are dropped in silence.
2. The kernel has no attribute for a tunnel's own address (enum in include/uapi/linux/
   if_link.h, IFLA_GENEVE_*): routing chooses the source. Where it would choose another than
   `local`, the tunnel's packets, UDP to the peer's port 6081, get a rule and a table with one
   route: the one that packets from `local` take, since rules may look at the source, with that
   source. Nothing else is routed differently, nor is what others send through this node.
3. The route is asked for again at each look, so that ours follows it.
"""

from __future__ import annotations

import hashlib

from netconf.mesh.config import Geneve
from netconf.netlink import routes
from netconf.netlink.routes import Rule, Way
from netconf.netlink.socket import Netlink

PORT = 6081
"""GENEVE's UDP port (RFC 8926, 3.3), the kernel's default (GENEVE_UDP_PORT)."""
TABLE = 20078
"""Number of our routing table, and also the priority of the rules that lead to it: after the rule
for the local table (0), before the one for the main table (32766)."""


def way(rtnl: Netlink, geneve: Geneve) -> Way | None:
    """Return the way to the tunnel's peer, from `local` if given; None if there is none.

    None too if `local` is IPv4 and not this node's.
    """
    try:
        return routes.way_to(rtnl, geneve.remote, source=geneve.local)
    except OSError as error:
        if error.errno in routes.UNROUTED:
            return None
        raise


def is_ours(rtnl: Netlink, address: str) -> bool:
    """Tell whether `address` is one of this node's."""
    try:
        return routes.way_to(rtnl, address).local
    except OSError as error:
        if error.errno in routes.UNROUTED:
            return False
        raise


def several(rtnl: Netlink, ordinary: Way) -> list[str]:
    """Return this node's addresses that the peer may have as `remote`, if there are several.

    These are the addresses on the link that leads to the peer, of the same family as the source
    that routing chooses, without link-local ones. Empty if there is only one.
    """
    version = ":" in ordinary.source
    found = [
        address
        for address in routes.addresses(rtnl, ordinary.link)
        if (":" in address) == version and not address.startswith("fe80:")
    ]
    return sorted(found) if len(found) > 1 else []


def settle(rtnl: Netlink, geneve: Geneve, wanted: Way) -> bool:
    """Have the tunnel send its `wanted` way, from `local`; tell whether anything was changed.

    OSError EINVAL if the address is not this node's.
    """
    rule = Rule(remote=geneve.remote, port=PORT, table=TABLE)
    now = routes.way_to(rtnl, geneve.remote, PORT)
    if now == wanted:
        return False
    rtnl.batch([routes.host_route_request(geneve.remote, wanted, TABLE)])
    if rule not in routes.rules(rtnl):
        rtnl.batch([routes.add_rule_request(rule)])
    return True


def identity(geneve: Geneve, ordinary: Way) -> bytes:
    """Return five bytes for the MAC of this end of a tunnel, the same each time it is made anew.

    With a new MAC, other nodes would see a new node and go on sending to the old one: the path to
    the old one keeps its quality for up to 200 s, and that of the new one takes a minute to rise.
    """
    ends = f"{geneve.local or ordinary.source} {geneve.remote} {geneve.id}"
    return hashlib.sha256(ends.encode()).digest()[:5]


def peers(rtnl: Netlink) -> set[str]:
    """Return the peers to whom our rules lead."""
    return {rule.remote for rule in routes.rules(rtnl)}


def forget(rtnl: Netlink, kept: set[str]) -> None:
    """Remove our rules and routes to all peers except those with the addresses `kept`."""
    for rule in routes.rules(rtnl):
        if rule.remote not in kept:
            routes.del_rule(rtnl, rule)
            routes.del_host_route(rtnl, rule.remote, TABLE)
