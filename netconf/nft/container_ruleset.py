"""The ruleset of one container's namespace: policy, load balancing and genuine sources.

Loaded once per attachment; from then on only elements change. Its rules:

1. A dial to VIP:port becomes a dial to one replica, chosen by slot (maps lb, lb6).
2. A new flow needs a grant: (peer's service, protocol, the replica's port), on egress at
   the one end and on ingress at the other. peer and peer6 map the address to the service
   id; one grant covers both families, and icmp means echo requests in IPv6.
3. A new flow carries its peer's IPv4 address as ct mark, so that the flows of a replica
   that left can be deleted by mark. An IPv6 address ends in the same 32 bits.
4. TCP that belongs to no known flow and does not open one is reset: its flow was deleted.
5. All else is counted by (peer, protocol, port) and refused at once, never left to hang.
6. A packet is from the address that its sender's MAC spells (02:4e, then the address),
   whatever it says itself: the MAC is what MACsec and the host filters vouch for. A forged
   source is thus refused, and counted, as the one who forged it. An IPv6 source cannot be
   overwritten so; one that is not the sender's own (genuine6) is dropped, and the sender
   counted.
7. Neighbour discovery and MLD are refused both ways like all that no grant names: icmp
   means echo requests only, and conntrack follows neither, so nothing of them is ever
   established or related. Neighbour entries are permanent.
8. Without an IPv6 network all IPv6 sets stay empty, and IPv6 ends at the rules above.
9. The sets that the daemon fills have no size: the kernel would allocate for all of it at once
   (70 ms for a million), and without one they grow as needed. Those that packets fill are
   bounded, and forget after an hour of silence: a port scan must neither grow without limit nor
   hide for ever what is refused after it.

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
"""Where IPv6 VIPs lie without an IPv6 network: no packet is addressed there (RFC 4291 2.5.2)."""


SLOT: Final = numgen_random(64)
MAC_ADDRESS: Final = raw("@ll,64,32", nf.NFT_PAYLOAD_LL_HEADER, 8, 4)
"""The last 32 bits of the sender's MAC."""

HOUR: Final = 3_600_000
GC_INTERVAL: Final = 600_000
"""By default the kernel would look for what expired every second, in each of these sets of each
container: with 500 a tenth of a slow processor. What expired counts no more either way; it only
keeps its place until then."""


@functools.lru_cache(maxsize=4)
def container_ruleset(vips: str, ula: str) -> Ruleset:
    """Return the ruleset for the service addresses `vips` (a CIDR).

    `ula` is the cluster's IPv6 network (`names`, rule 4), or empty. ValueError if one of them is
    no network.
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
    # What was refused.
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

# The drop is a rule of its own: one that counts ends when its set is full.
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
    """Accept what a grant covers, by the peer's address; leave its id as mark, and its address
    with the connection."""
    low4, low6 = LOWEST_4_OF[four.name], LOWEST_4_OF[six.name]
    return (
        # A process may have set a mark of its own, and a failed lookup leaves it there.
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
    """Count what nothing accepted, with its port if it has one."""
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


# Not of a known flow, and not the start of one. Conntrack calls a FIN without a flow
# invalid; what else it calls invalid may be a live flow's late segment: drop only.
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
