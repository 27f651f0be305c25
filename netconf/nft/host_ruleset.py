"""The host filter: one table for all containers of a node, at the ports of its bridge.

It is in the node's namespace, so even a container with CAP_NET_ADMIN cannot change it.

1. From a container's port (vh...) a frame passes only if it has the container's own MAC as source,
   is encrypted MACsec without an explicit SCI, and goes to a MAC that is paired with the source.
2. From the mesh (bat0) a frame passes only if it is MACsec between paired MACs.
3. To a container's port a frame passes only if it is addressed to the container's own MAC, so that
   a flooded frame reaches no other container.
4. Another node's announcement of a container's MAC is dropped here, when batman-adv has learned
   from it already. This node's own announcements are sent on bat0 (``netconf.frames``) and do not
   pass the bridge, so no port has to be allowed to send anything unencrypted.
5. The node itself neither receives nor sends on these ports, and no frame passes between them and
   any other port. Frames on other bridges of the node are not filtered.
6. The bridge must forward the link-local groups (GROUP_FWD_MASK in netconf/mesh/devices.py). A
   group that it does not forward, LLDP's above all, is delivered to the node's own stack without
   passing any of these chains.

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
"""The bits E and C: the frame is encrypted."""
VERSION: Final = 0x80
"""The bit V: the frame is of another MACsec version than today's."""
EXPLICIT: Final = 0x30
"""The bits SC (the frame contains an SCI) and SCB (single copy broadcast). `VERSION` has a rule of
its own, so that no mask has a gap between its bits: nft 1.1 lists such a mask wrongly."""

MESH, PORTS = "bat0", "vh*"

PLAINTEXT: Final = (*counter_name("plaintext"), *DROP)
"""Drop and count what is not MACsec, or MACsec without encryption."""
FOREIGN: Final = (*counter_name("foreign"), *DROP)
"""Drop and count what is not from the port's own sender: another MAC, an explicit SCI, or a port
that has no container."""
FORBIDDEN: Final = (*counter_name("forbidden"), *DROP)
"""Drop and count MACsec between two MACs that are no pair."""

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
                # Clear the mark, so that a container cannot influence the node's routing by one.
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
