"""The ruleset of one container's namespace: policy, load balancing and genuine sources.

It is loaded once per attachment; from then on only elements change, unless the declaration itself
changes (`replacement`). Its rules:

1. A new connection to VIP:port is sent to one replica, which the maps lb and lb6 give for a random
   slot.
2. A new flow needs a grant (peer's service, protocol, the replica's port): an egress grant in the
   namespace that dials and an ingress grant in the one that is dialled. peer and peer6 map the
   peer's address to its service id. One grant covers both families; in IPv6 the protocol ``icmp``
   means echo requests only.
3. A new flow gets its peer's IPv4 address as ct mark, so that all flows with a replica that left
   can be deleted by mark. The mark of an IPv6 flow is the same, since a replica's IPv6 address
   ends in its IPv4 address.
4. A TCP segment that belongs to no known flow and does not open one is answered by a reset. Its
   flow was deleted, so the peer learns at once that the connection is gone.
5. Everything else is counted by (peer, protocol, port) and refused with an error message at once,
   so that no program has to wait for a timeout.
6. MACsec and the host filters guarantee the sender's MAC, which is 02:4e and the sender's IPv4
   address. So the source of each IPv4 packet is overwritten by the address in the MAC: a packet
   with a forged source is then judged, and counted, as a packet of its real sender. An IPv6 source
   cannot be overwritten in this way. A packet whose (MAC, IPv6 source) is not in genuine6 is
   dropped and counted under its sender.
7. Neighbour discovery and MLD are refused in both directions, like everything without a grant. No
   grant covers them, since icmp means echo requests only, and conntrack follows neither, so their
   packets are never established or related. They are not needed: neighbour entries are permanent.
8. Without an IPv6 network all IPv6 sets stay empty, so no IPv6 packet has a grant or a genuine
   source, and all are refused or dropped by the rules above.
9. The sets that the daemon fills have no size, because the kernel would allocate memory for the
   whole of it at once (70 ms for a million elements); without a size they grow as needed. The sets
   that packets fill are bounded, so that a port scan cannot make them grow without limit. Their
   elements expire after an hour without a packet, so that a set filled by a scan has room again for
   what is refused later.

Read it back with: nft list table inet noctule
"""

from __future__ import annotations

import functools
from ipaddress import IPv4Network, IPv6Network
from socket import IPPROTO_ICMP
from typing import Final

from netconf import names
from netconf.nft import elements as sets
from netconf.nft.elements import NFPROTO_INET, Set
from netconf.nft.expressions import (
    ACCEPT,
    ACK,
    DROP,
    ESTABLISHED,
    ETHER_SADDR,
    ETHERNET,
    FIB_DADDR_TYPE,
    FIN,
    ICMPV6,
    ICMPV6_TYPE,
    IIF,
    INVALID,
    IP6_DADDR,
    IP6_SADDR,
    IP_DADDR,
    IP_PROTOCOL,
    IP_SADDR,
    IPV4,
    IPV6,
    L4PROTO,
    LOWEST_4_OF,
    META_MARK,
    NEW,
    REJECT_TCP_RESET,
    RELATED,
    RETURN,
    RST,
    SYN,
    TCP,
    TCP_FLAGS,
    TH_DPORT,
    UDP,
    Selector,
    Statement,
    among,
    ct_mark_set,
    ct_state,
    dnat,
    eq,
    goto,
    host_order,
    immediate,
    ip_saddr_set,
    jump,
    mapped,
    masked_eq,
    masked_neq,
    meta_mark_set,
    not_among,
    numgen_random,
    raw,
    reject,
    update,
    within,
)
from netconf.nft.tables import (
    Chain,
    Hook,
    Rule,
    Ruleset,
    SetDeclaration,
    rule,
)
from netconf.uapi import nf_tables as nf

NO_ULA: Final = "::/128"
"""The network of the IPv6 VIPs if the cluster has no IPv6: the unspecified address, to which no
packet is ever sent (RFC 4291 2.5.2)."""


SLOT: Final = numgen_random(64)
MAC_ADDRESS: Final = raw("@ll,64,32", nf.NFT_PAYLOAD_LL_HEADER, 8, 4)
"""The last 32 bits of the sender's MAC, which are its IPv4 address (rule 6)."""

HOUR: Final = 3_600_000
"""Milliseconds."""
GC_INTERVAL: Final = 600_000
"""Milliseconds between two searches for expired elements. By default the kernel searches each of
these sets in each container every second, which takes a tenth of a slow processor with 500
containers. A longer interval is harmless: an expired element does not count in any case, and only
occupies its place until the next search."""


@functools.lru_cache(maxsize=4)
def container_ruleset(vips: str, ula: str) -> Ruleset:
    """Return the ruleset for the service addresses `vips` (a CIDR).

    `ula` is the CIDR of the cluster's IPv6 network (`names`, rule 4), or empty. ValueError if one
    of the two is no network.
    """
    vips4, vips6 = IPv4Network(vips), IPv6Network(names.network6_of(vips, ula) if ula else NO_ULA)
    return Ruleset(
        family=NFPROTO_INET,
        sets=SETS,
        chains=(
            GENUINE,
            GENUINE6_CHAIN,
            _balance(vips4, vips6),
            _output(vips4, vips6),
            _input(),
            STRAY,
            REFUSE,
        ),
    )


# -- sets ----------------------------------------------------------------------------------


def _counting(target: Set, size: int, *key: Selector) -> SetDeclaration:
    return SetDeclaration(
        set=target,
        key=key,
        flags=nf.NFT_SET_EVAL | nf.NFT_SET_TIMEOUT,
        size=size,
        timeout=HOUR,
        gc_interval=GC_INTERVAL,
        counting=True,
    )


SETS: Final = (
    SetDeclaration(
        set=sets.WITH_PORTS,
        key=(L4PROTO,),
        flags=nf.NFT_SET_CONSTANT,
        elements=(("tcp",), ("udp",)),
    ),
    # VIP . protocol . dialled port . slot : replica . its port
    SetDeclaration(
        set=sets.LB, key=(IP_DADDR, L4PROTO, TH_DPORT, SLOT), data=(IP_DADDR, TH_DPORT)
    ),
    SetDeclaration(
        set=sets.LB6, key=(IP6_DADDR, L4PROTO, TH_DPORT, SLOT), data=(IP6_DADDR, TH_DPORT)
    ),
    # replica : service id
    SetDeclaration(set=sets.PEER, key=(IP_DADDR,), data=(META_MARK,)),
    SetDeclaration(set=sets.PEER6, key=(IP6_DADDR,), data=(META_MARK,)),
    # replica's MAC . replica
    SetDeclaration(set=sets.GENUINE6, key=(ETHER_SADDR, IP6_SADDR)),
    # peer's service id . protocol . the dialled replica's port
    SetDeclaration(set=sets.EGRESS, key=(META_MARK, L4PROTO, TH_DPORT)),
    SetDeclaration(set=sets.INGRESS, key=(META_MARK, L4PROTO, TH_DPORT)),
    SetDeclaration(set=sets.EGRESS_ICMP, key=(META_MARK,)),
    SetDeclaration(set=sets.INGRESS_ICMP, key=(META_MARK,)),
    # Packets that were refused, with counters.
    _counting(sets.DENIED_OUT, 1024, IP_DADDR, L4PROTO, TH_DPORT),
    _counting(sets.DENIED_OUT6, 1024, IP6_DADDR, L4PROTO, TH_DPORT),
    _counting(sets.DENIED_IN, 1024, IP_SADDR, L4PROTO, TH_DPORT),
    _counting(sets.DENIED_IN6, 1024, IP6_SADDR, L4PROTO, TH_DPORT),
    # Protocols without ports.
    _counting(sets.DENIED_OUT_OTHER, 256, IP_DADDR, L4PROTO),
    _counting(sets.DENIED_OUT6_OTHER, 256, IP6_DADDR, L4PROTO),
    _counting(sets.DENIED_IN_OTHER, 256, IP_SADDR, L4PROTO),
    _counting(sets.DENIED_IN6_OTHER, 256, IP6_SADDR, L4PROTO),
    # The sender of a forged IPv6 source . its protocol
    _counting(sets.FORGED, 256, ETHER_SADDR, L4PROTO),
)  # fmt: skip


# -- chains --------------------------------------------------------------------------------

GENUINE: Final = Chain(
    "genuine",
    Hook("filter", nf.NF_INET_PRE_ROUTING, nf.NF_IP_PRI_BEFORE_DEFRAG, nf.NF_ACCEPT),
    (
        rule("ip saddr set @ll,64,32", ETHERNET, IPV4, ip_saddr_set(MAC_ADDRESS)),
        rule("meta nfproto ipv6 jump genuine6", ETHERNET, IPV6, jump("genuine6")),
    ),
)

# The drop is a rule of its own, because a rule that updates a set does not match while the set is
# full, and would then not drop.
GENUINE6_CHAIN: Final = Chain(
    "genuine6",
    None,
    (
        rule(
            "ether saddr . ip6 saddr @genuine6 return",
            ETHERNET,
            IPV6,
            among(sets.GENUINE6, ETHER_SADDR, IP6_SADDR),
            RETURN,
        ),
        rule(
            "update @forged { ether saddr . meta l4proto }",
            ETHERNET,
            update(sets.FORGED, ETHER_SADDR, L4PROTO),
        ),
        rule("drop", DROP),
    ),
)


def _balance(vips: IPv4Network, vips6: IPv6Network) -> Chain:
    return Chain(
        "balance",
        Hook("nat", nf.NF_INET_LOCAL_OUT, nf.NF_IP_PRI_NAT_DST, nf.NF_ACCEPT),
        (
            rule(
                f"ip daddr {vips} meta l4proto @with_ports dnat ip to "
                "ip daddr . meta l4proto . th dport . numgen random mod 64 map @lb",
                IPV4,
                within(IP_DADDR, vips),
                among(sets.WITH_PORTS, L4PROTO),
                dnat(nf.NFPROTO_IPV4, sets.LB, IP_DADDR, L4PROTO, TH_DPORT, SLOT),
            ),
            rule(
                f"ip6 daddr {vips6} meta l4proto @with_ports dnat ip6 to "
                "ip6 daddr . meta l4proto . th dport . numgen random mod 64 map @lb6",
                IPV6,
                within(IP6_DADDR, vips6),
                among(sets.WITH_PORTS, L4PROTO),
                dnat(nf.NFPROTO_IPV6, sets.LB6, IP6_DADDR, L4PROTO, TH_DPORT, SLOT),
            ),
        ),
    )


def _output(vips: IPv4Network, vips6: IPv6Network) -> Chain:
    return Chain(
        "output",
        Hook("filter", nf.NF_INET_LOCAL_OUT, nf.NF_IP_PRI_FILTER, nf.NF_DROP),
        (
            rule("ct state established,related accept", ct_state(ESTABLISHED | RELATED), ACCEPT),
            rule(
                "fib daddr type local accept", eq(FIB_DADDR_TYPE, host_order(nf.RTN_LOCAL)), ACCEPT
            ),
            rule("jump stray", jump("stray")),
            *_granted(IP_DADDR, IP6_DADDR, sets.EGRESS, sets.EGRESS_ICMP),
            *_count(IPV4, IP_DADDR, sets.DENIED_OUT, sets.DENIED_OUT_OTHER),
            *_count(IPV6, IP6_DADDR, sets.DENIED_OUT6, sets.DENIED_OUT6_OTHER),
            rule(
                f"ip daddr {vips} meta l4proto udp reject with icmp port-unreachable",
                IPV4,
                within(IP_DADDR, vips),
                UDP,
                reject(nf.NFT_REJECT_ICMP_UNREACH, nf.ICMP_PORT_UNREACH),
            ),
            rule(
                f"ip6 daddr {vips6} meta l4proto udp reject with icmpv6 port-unreachable",
                IPV6,
                within(IP6_DADDR, vips6),
                UDP,
                reject(nf.NFT_REJECT_ICMP_UNREACH, nf.ICMPV6_PORT_UNREACH),
            ),
            rule("goto refuse", goto("refuse")),
        ),
    )


def _input() -> Chain:
    return Chain(
        "input",
        Hook("filter", nf.NF_INET_LOCAL_IN, nf.NF_IP_PRI_FILTER, nf.NF_DROP),
        (
            rule("ct state established,related accept", ct_state(ESTABLISHED | RELATED), ACCEPT),
            rule('iif "lo" accept', eq(IIF, host_order(nf.LOOPBACK_IFINDEX)), ACCEPT),
            rule("jump stray", jump("stray")),
            *_granted(IP_SADDR, IP6_SADDR, sets.INGRESS, sets.INGRESS_ICMP),
            *_count(IPV4, IP_SADDR, sets.DENIED_IN, sets.DENIED_IN_OTHER),
            *_count(IPV6, IP6_SADDR, sets.DENIED_IN6, sets.DENIED_IN6_OTHER),
            rule("goto refuse", goto("refuse")),
        ),
    )


def _granted(four: Selector, six: Selector, ports: Set, icmp: Set) -> tuple[Rule, ...]:
    """Return the rules that accept a new flow if a grant covers it.

    `four` and `six` select the peer's address. The rules set the packet's mark to the peer's
    service id, which the grants name, and the ct mark to its address (rule 3).
    """
    low4, low6 = LOWEST_4_OF[four.name], LOWEST_4_OF[six.name]
    return (
        # Clear the mark first: the lookup below leaves it unchanged for an unknown peer, and a
        # process may have set it to the id of a service.
        rule("meta mark set 0x00000000", meta_mark_set(immediate(host_order(0)))),
        rule(
            f"meta mark set {four.name} map @peer ct mark set {low4.name}",
            IPV4,
            meta_mark_set(mapped(sets.PEER, four)),
            ct_mark_set(low4),
        ),
        rule(
            f"meta mark set {six.name} map @peer6 ct mark set {low6.name}",
            IPV6,
            meta_mark_set(mapped(sets.PEER6, six)),
            ct_mark_set(low6),
        ),
        rule(
            f"meta mark . meta l4proto . th dport @{ports.name} accept",
            among(ports, META_MARK, L4PROTO, TH_DPORT),
            ACCEPT,
        ),
        rule(
            f"ip protocol icmp meta mark @{icmp.name} accept",
            IPV4,
            eq(IP_PROTOCOL, bytes((IPPROTO_ICMP,))),
            among(icmp, META_MARK),
            ACCEPT,
        ),
        rule(
            f"icmpv6 type echo-request meta mark @{icmp.name} accept",
            IPV6,
            ICMPV6,
            eq(ICMPV6_TYPE, bytes((nf.ICMPV6_ECHO_REQUEST,))),
            among(icmp, META_MARK),
            ACCEPT,
        ),
    )


def _count(family: Statement, peer: Selector, ports: Set, other: Set) -> tuple[Rule, Rule]:
    """Return the rules that count a packet that no rule before accepted, by port if it has one."""
    return (
        rule(
            f"meta l4proto @with_ports update @{ports.name} "
            f"{{ {peer.name} . meta l4proto . th dport }}",
            among(sets.WITH_PORTS, L4PROTO),
            family,
            update(ports, peer, L4PROTO, TH_DPORT),
        ),
        rule(
            f"meta l4proto != @with_ports update @{other.name} {{ {peer.name} . meta l4proto }}",
            not_among(sets.WITH_PORTS, L4PROTO),
            family,
            update(other, peer, L4PROTO),
        ),
    )


# Packets that belong to no known flow and do not open one (rule 4). Conntrack counts a FIN without
# a flow as invalid, so that is reset as well. Other invalid segments may be late ones of a living
# flow, which a reset would end; they are only dropped.
STRAY: Final = Chain(
    "stray",
    None,
    (
        rule(
            "ct state new tcp flags != syn / fin,syn,rst,ack reject with tcp reset",
            ct_state(NEW),
            TCP,
            masked_neq(TCP_FLAGS, bytes((FIN | SYN | RST | ACK,)), bytes((SYN,))),
            REJECT_TCP_RESET,
        ),
        rule(
            "ct state invalid tcp flags fin / fin,rst reject with tcp reset",
            ct_state(INVALID),
            TCP,
            masked_eq(TCP_FLAGS, bytes((FIN | RST,)), bytes((FIN,))),
            REJECT_TCP_RESET,
        ),
        rule("ct state invalid drop", ct_state(INVALID), DROP),
    ),
)

REFUSE: Final = Chain(
    "refuse",
    None,
    (
        rule("meta l4proto tcp reject with tcp reset", TCP, REJECT_TCP_RESET),
        rule(
            "reject with icmpx admin-prohibited",
            reject(nf.NFT_REJECT_ICMPX_UNREACH, nf.NFT_REJECT_ICMPX_ADMIN_PROHIBITED),
        ),
    ),
)
