"""The host filter: one table for all containers of a node, at the ports of its bridge.

It holds even against a container with CAP_NET_ADMIN, which it shares nothing with.

1. From a container's port (vh...): only its own MAC, only encrypted MACsec in the form
   without an SCI, only towards MACs it is paired with.
2. From the mesh (bat0): only MACsec, only between paired MACs.
3. To a container's port: only its own MAC, so that flooding reaches nobody else.
4. Another node's announcement of a container's MAC ends here: batman-adv has learned from
   it. Our own enter the mesh below the bridge; no port may send anything in the clear.
5. The node itself neither hears nor speaks on these ports, and no frame passes between
   them and any other port. Other bridges of the node are none of our business.
6. The bridge must forward the link-local groups (group_fwd_mask, netconf/mesh): what it
   does not, LLDP's above all, passes to the node's own stack and none of these chains.

Read it back with: nft list table bridge noctule
"""

from __future__ import annotations

from typing import Final

from netconf.nft.elements import NFPROTO_BRIDGE, PAIR, PORT
from netconf.nft.expressions import (
    ACCEPT,
    DROP,
    ETHER_DADDR,
    ETHER_SADDR,
    ETHER_TYPE,
    IIFNAME,
    OIFNAME,
    Statement,
    among,
    counter_name,
    eq,
    goto,
    host_order,
    immediate,
    interface,
    masked_neq,
    meta_mark_set,
    neq,
    raw,
)
from netconf.nft.tables import Chain, Hook, Rule, Ruleset, SetDeclaration, rule
from netconf.uapi import nf_tables as nf

ETH_P_MACSEC: Final = bytes.fromhex("88e5")
ETH_P_LOCAL_EXPERIMENTAL: Final = bytes.fromhex("88b5")
"""What announcements carry (netconf.frames)."""

TCI: Final = raw("@ll,112,8", nf.NFT_PAYLOAD_LL_HEADER, 14, 1)
"""The byte after the EtherType is TCI and AN (IEEE 802.1AE 9.3)."""
ENCRYPTED: Final = 0x0C
"""E and C."""
VERSION: Final = 0x80
"""V: another version than today's."""
EXPLICIT: Final = 0x30
"""SC and SCB: an SCI in the frame, a broadcast from a single-copy ring. Adjacent bits, and those of
`VERSION` apart: nft 1.1 lists a mask with a gap as what it is not."""

MESH, PORTS = "bat0", "vh*"

PLAINTEXT: Final = (*counter_name("plaintext"), *DROP)
"""Not MACsec, or MACsec without encryption."""
FOREIGN: Final = (*counter_name("foreign"), *DROP)
"""A sender that the port does not have: another MAC, an explicit SCI, an unknown port."""
FORBIDDEN: Final = (*counter_name("forbidden"), *DROP)
"""MACsec between MACs that may not talk."""

FROM_MESH: Final = (f'iifname "{MESH}"', interface(IIFNAME, MESH))
FROM_PORT: Final = (f'iifname "{PORTS}"', interface(IIFNAME, PORTS))
TO_MESH: Final = (f'oifname "{MESH}"', interface(OIFNAME, MESH))
TO_PORT: Final = (f'oifname "{PORTS}"', interface(OIFNAME, PORTS))
TO_ITS_PORT: Final = ("oifname . ether daddr @port", among(PORT, OIFNAME, ETHER_DADDR))


def _rule(verdict: str, *matches: tuple[str, Statement]) -> Rule:
    text = " ".join((*(text for text, _ in matches), verdict))
    statements = (statement for _, statement in matches)
    return rule(text, *statements, {"accept": ACCEPT, "drop": DROP}[verdict])


def _hook(number: int) -> Hook:
    return Hook("filter", number, nf.NF_BR_PRI_FILTER_BRIDGED, nf.NF_ACCEPT)


HOST_RULESET: Final = Ruleset(
    family=NFPROTO_BRIDGE,
    sets=(
        # port . MAC of its container
        SetDeclaration(set=PORT, key=(IIFNAME, ETHER_SADDR)),
        # sender . receiver
        SetDeclaration(set=PAIR, key=(ETHER_SADDR, ETHER_DADDR)),
    ),
    counters=("plaintext", "foreign", "forbidden"),
    chains=(
        Chain(
            "prerouting",
            _hook(nf.NF_BR_PRE_ROUTING),
            (
                rule(f'iifname "{MESH}" goto mesh', interface(IIFNAME, MESH), goto("mesh")),
                rule(
                    "iifname . ether saddr @port goto container",
                    among(PORT, IIFNAME, ETHER_SADDR),
                    goto("container"),
                ),
                rule(
                    f'iifname "{PORTS}" counter name "foreign" drop',
                    interface(IIFNAME, PORTS),
                    FOREIGN,
                ),
            ),
        ),
        Chain(
            "mesh",
            None,
            (
                rule(
                    "ether type 0x88e5 ether saddr . ether daddr @pair accept",
                    eq(ETHER_TYPE, ETH_P_MACSEC),
                    among(PAIR, ETHER_SADDR, ETHER_DADDR),
                    ACCEPT,
                ),
                rule("ether type 0x88b5 drop", eq(ETHER_TYPE, ETH_P_LOCAL_EXPERIMENTAL), DROP),
                rule(
                    'ether type != 0x88e5 counter name "plaintext" drop',
                    neq(ETHER_TYPE, ETH_P_MACSEC),
                    PLAINTEXT,
                ),
                rule('counter name "forbidden" drop', FORBIDDEN),
            ),
        ),
        Chain(
            "container",
            None,
            (
                # What a container marks must not steer the node's routing.
                rule("meta mark set 0x00000000", meta_mark_set(immediate(host_order(0)))),
                rule(
                    'ether type != 0x88e5 counter name "plaintext" drop',
                    neq(ETHER_TYPE, ETH_P_MACSEC),
                    PLAINTEXT,
                ),
                rule(
                    '@ll,112,8 & 0xc != 0xc counter name "plaintext" drop',
                    masked_neq(TCI, bytes((ENCRYPTED,)), bytes((ENCRYPTED,))),
                    PLAINTEXT,
                ),
                rule(
                    '@ll,112,8 & 0x80 != 0x0 counter name "foreign" drop',
                    masked_neq(TCI, bytes((VERSION,)), bytes(1)),
                    FOREIGN,
                ),
                rule(
                    '@ll,112,8 & 0x30 != 0x0 counter name "foreign" drop',
                    masked_neq(TCI, bytes((EXPLICIT,)), bytes(1)),
                    FOREIGN,
                ),
                rule(
                    "ether saddr . ether daddr @pair accept",
                    among(PAIR, ETHER_SADDR, ETHER_DADDR),
                    ACCEPT,
                ),
                rule('counter name "forbidden" drop', FORBIDDEN),
            ),
        ),
        Chain(
            "forward",
            _hook(nf.NF_BR_FORWARD),
            (
                _rule("accept", FROM_PORT, TO_MESH),
                _rule("accept", FROM_MESH, TO_ITS_PORT),
                _rule("accept", FROM_PORT, TO_ITS_PORT),
                _rule("drop", FROM_MESH),
                _rule("drop", FROM_PORT),
                _rule("drop", TO_MESH),
                _rule("drop", TO_PORT),
            ),
        ),
        Chain(
            "input", _hook(nf.NF_BR_LOCAL_IN), (_rule("drop", FROM_MESH), _rule("drop", FROM_PORT))
        ),
        Chain(
            "output", _hook(nf.NF_BR_LOCAL_OUT), (_rule("drop", TO_MESH), _rule("drop", TO_PORT))
        ),
    ),
)
