"""rtnetlink: addresses, routes, and the rules that choose between routing tables.

1. As in ``links``, functions ending in ``_request`` return a request for a batch; all others send
   at once and raise OSError.
2. The routes and rules that Noctule adds to the node's routing are marked with `PROTOCOL`, so that
   it finds them again and never removes anybody else's.

Source: net/ipv4/route.c, net/ipv4/fib_frontend.c, net/core/fib_rules.c.
"""

from __future__ import annotations

import errno
import socket

import msgspec

from netconf.netlink.links import Attributes, family
from netconf.netlink.socket import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink, NetlinkRequest
from netconf.uapi.messages import fibmsg, ifaddrmsg, nlmsg, routemsg

RTM_NEWADDR = 20
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26
RTM_NEWRULE = 32
RTM_DELRULE = 33
RTM_GETRULE = 34

RT_TABLE_MAIN = 254
RTPROT_STATIC = 4
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RT_SCOPE_NOWHERE = 255
RTN_UNICAST = 1
RTN_LOCAL = 2
FR_ACT_TO_TBL = 1
RTM_F_FIB_MATCH = 0x2000
"""Answer with the route as it was configured, not with what is known of one destination."""

RTNH_F_ONLINK = 4
"""The gateway is on the link, whatever other routes say of it."""

UNROUTED = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES)
"""What a lookup fails with where nothing can be sent: no route, or a route of type unreachable,
blackhole (EINVAL) or prohibit (EACCES; fib_props, ip6_route_info_create). Another address that
is to be sent from, and is not this node's, is EINVAL as well."""

PROTOCOL = 78
"""Our rtm_protocol, which says who made a route or rule; the kernel and the usual routing daemons
have other numbers."""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How the kernel would send to an address."""

    link: int
    """Index of the device."""
    gateway: str
    """Empty where the address is on the link; for IPv4 it may be an IPv6 one (RFC 8950)."""
    source: str
    """The address of this node that the kernel would put into the packet as source."""
    mtu: int | None
    """Bytes, of the route, if it was configured with its own. What ICMP said of the path (a PMTU
    exception) is none: anybody can forge that."""
    local: bool
    """Whether the address is one of this node's own."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of ours: this node's own UDP to a port of a host looks into a table of its own."""

    remote: str
    port: int
    table: int
    """Number of that table, and also the rule's priority."""


def address_request(index: int, interface: str) -> NetlinkRequest:
    """Give a link an address with its prefix length (``10.64.0.1/12``).

    For an IPv6 address the kernel answers EACCES if IPv6 is disabled on the link, and EOPNOTSUPP if
    it has no IPv6. On a link without ARP it does not probe whether the address is in use
    (addrconf.c, addrconf_dad_begin), so the address works at once.
    """
    address, _, prefix = interface.partition("/")
    message = ifaddrmsg()
    message["family"] = family(address)
    message["prefixlen"] = int(prefix)
    message["index"] = index
    message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
    return NetlinkRequest(RTM_NEWADDR, message, NLM_F_CREATE | NLM_F_REPLACE)


def addresses(rtnl: Netlink, index: int) -> dict[str, int]:
    """Return a link's addresses of both families with their prefix lengths."""
    message = ifaddrmsg()
    message["index"] = index
    return {
        answer.get_attr("IFA_LOCAL") or answer.get_attr("IFA_ADDRESS"): answer["prefixlen"]
        for answer in rtnl.dump(RTM_GETADDR, message)
        if answer["index"] == index
    }


def route_request(index: int, network: str) -> NetlinkRequest:
    """Route a network (CIDR) to a link directly, without a gateway; errors as `address_request`."""
    destination, _, prefix = network.partition("/")
    message = routemsg()
    message["family"] = family(destination)
    message["dst_len"] = int(prefix)
    message["table"] = RT_TABLE_MAIN
    message["proto"] = RTPROT_STATIC
    message["scope"] = RT_SCOPE_LINK
    message["type"] = RTN_UNICAST
    message["attrs"] = [("RTA_DST", destination), ("RTA_OIF", index)]
    return NetlinkRequest(RTM_NEWROUTE, message, NLM_F_CREATE | NLM_F_REPLACE)


def routed(rtnl: Netlink, index: int, network: str) -> bool:
    """Tell whether the main table has a route of exactly this network (CIDR) out of a link.

    It is not asked where an address would go: more specific routes, and rules, are somebody's
    intent.
    """
    destination, _, prefix = network.partition("/")
    message = routemsg()
    message["family"] = family(destination)
    message["type"] = RTN_UNICAST
    message["attrs"] = [("RTA_TABLE", RT_TABLE_MAIN), ("RTA_OIF", index)]
    try:
        answers = rtnl.dump(RTM_GETROUTE, message)
    except OSError as error:
        if error.errno == errno.ENOENT:  # no such table yet (inet_dump_fib)
            return False
        raise
    return any(
        (answer.get_attr("RTA_DST"), answer["dst_len"]) == (destination, int(prefix))
        and answer.get_attr("RTA_OIF") == index
        for answer in answers
    )


def way_to(rtnl: Netlink, remote: str, udp_port: int = 0, source: str = "") -> Way:
    """Return the way to a `remote` address: for UDP to a port, from a `source`, if given.

    OSError with one of `UNROUTED` where there is none.
    """
    answer = _lookup(rtnl, remote, udp_port, source)
    mtu = _mtu(answer)
    if mtu is not None:
        # An ordinary answer includes PMTU exceptions (rt_fill_info, rt6_fill_node).
        mtu = _mtu(_lookup(rtnl, remote, udp_port, source, RTM_F_FIB_MATCH))
    via = answer.get_attr("RTA_VIA") or {}
    return Way(
        link=answer.get_attr("RTA_OIF", 0),
        gateway=answer.get_attr("RTA_GATEWAY") or via.get("addr", ""),
        source=source or answer.get_attr("RTA_PREFSRC") or "",
        mtu=mtu,
        local=answer["type"] == RTN_LOCAL,
    )


def _lookup(rtnl: Netlink, remote: str, udp_port: int, source: str, flags: int = 0) -> nlmsg:
    message = routemsg()
    message["family"] = family(remote)
    message["dst_len"] = _bits(remote)
    message["flags"] = flags
    message["attrs"] = [("RTA_DST", remote)]
    if source:
        message["src_len"] = _bits(source)
        message["attrs"].append(("RTA_SRC", source))
    if udp_port:
        message["attrs"] += [("RTA_IP_PROTO", socket.IPPROTO_UDP), ("RTA_DPORT", udp_port)]
    (answer,) = rtnl.request(RTM_GETROUTE, message)
    return answer


def _mtu(answer: nlmsg) -> int | None:
    metrics = answer.get_attr("RTA_METRICS")
    return metrics.get_attr("RTAX_MTU") if metrics is not None else None


def host_route_request(remote: str, way: Way, table: int) -> NetlinkRequest:
    """Send to a `remote` address by this `way`, in a `table` of our own (rule 2).

    The way comes from a lookup. So its gateway is on the link, also if no route of ours says so.
    """
    message = _host_route(remote, table)
    message["type"] = RTN_UNICAST
    message["scope"] = RT_SCOPE_UNIVERSE if way.gateway else RT_SCOPE_LINK
    if family(remote) == socket.AF_INET6:
        message["scope"] = RT_SCOPE_UNIVERSE
    message["attrs"] += [("RTA_OIF", way.link), ("RTA_PREFSRC", way.source)]
    if way.gateway:
        version = family(way.gateway)
        same = version == family(remote)
        via = {"family": version, "addr": way.gateway}
        message["attrs"].append(("RTA_GATEWAY", way.gateway) if same else ("RTA_VIA", via))
        message["flags"] = RTNH_F_ONLINK
    if way.mtu:
        message["attrs"].append(("RTA_METRICS", {"attrs": [("RTAX_MTU", way.mtu)]}))
    return NetlinkRequest(RTM_NEWROUTE, message, NLM_F_CREATE | NLM_F_REPLACE)


def del_host_route(rtnl: Netlink, remote: str, table: int) -> None:
    """Remove a route that `host_route_request` made; it is no error if there is none."""
    message = _host_route(remote, table)
    message["scope"] = RT_SCOPE_NOWHERE  # matches a route of any scope (fib_table_delete)
    try:
        rtnl.request(RTM_DELROUTE, message)
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise


def _host_route(remote: str, table: int) -> routemsg:
    message = routemsg()
    message["family"] = family(remote)
    message["dst_len"] = _bits(remote)
    message["proto"] = PROTOCOL
    message["attrs"] = [("RTA_DST", remote), ("RTA_TABLE", table)]
    return message


# -- rules -------------------------------------------------------------------------------


def rules(rtnl: Netlink) -> list[Rule]:
    """Return our rules (rule 2), of both families."""
    return [
        Rule(
            remote=answer.get_attr("FRA_DST") or "",
            port=int((answer.get_attr("FRA_DPORT_RANGE") or "0:").partition(":")[0]),
            table=answer.get_attr("FRA_TABLE", 0),
        )
        for answer in rtnl.dump(RTM_GETRULE, fibmsg())
        if answer.get_attr("FRA_PROTOCOL") == PROTOCOL
    ]


def add_rule_request(rule: Rule) -> NetlinkRequest:
    """Make one of our rules; EEXIST if it is there."""
    return NetlinkRequest(RTM_NEWRULE, _rule(rule), NLM_F_CREATE | NLM_F_EXCL)


def del_rule(rtnl: Netlink, rule: Rule) -> None:
    """Remove one of our rules; it is no error if there is none."""
    try:
        rtnl.request(RTM_DELRULE, _rule(rule))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _rule(rule: Rule) -> fibmsg:
    message = fibmsg()
    message["family"] = family(rule.remote)
    message["dst_len"] = _bits(rule.remote)
    message["action"] = FR_ACT_TO_TBL
    attributes: Attributes = [
        ("FRA_DST", rule.remote),
        ("FRA_IIFNAME", "lo"),  # what this node sends itself, and nothing that it forwards
        ("FRA_PRIORITY", rule.table),
        ("FRA_TABLE", rule.table),
        ("FRA_PROTOCOL", PROTOCOL),
        ("FRA_IP_PROTO", socket.IPPROTO_UDP),
        ("FRA_DPORT_RANGE", f"{rule.port}:{rule.port}"),
    ]
    message["attrs"] = attributes
    return message


def _bits(address: str) -> int:
    return 32 if family(address) == socket.AF_INET else 128
