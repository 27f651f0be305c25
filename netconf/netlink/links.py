"""rtnetlink: links, bridge ports and neighbours (addresses and routes are in ``routes``).

1. Functions whose names end in ``_request`` return a `NetlinkRequest`, so that several can travel
   in one batch (`Netlink.batch`). All others send at once and raise OSError.
2. A link is given by its index, or by its name where the same batch makes it, so that its index is
   not known yet.
3. ``addrgenmode none`` keeps the kernel from giving a link an IPv6 address and sending
   IPv6 packets of the node itself with a container's MAC as source. It cannot be set when a link
   is made (the kernel reads IFLA_AF_SPEC only when it changes a link), and has to be set before
   the link is up.

Source: net/core/rtnetlink.c, net/bridge/br_netlink.c, include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import errno
import functools
import socket
import struct
from pathlib import Path
from typing import Any

import msgspec

from netconf.errors import KernelFailure
from netconf.namespace import Namespace
from netconf.netlink.socket import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Netlink,
    NetlinkRequest,
)
from netconf.uapi.messages import ifinfmsg, ndmsg, nlmsg

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWNEIGH = 28
RTM_DELNEIGH = 29
RTM_GETNEIGH = 30

IFF_UP = 0x1
IFF_RUNNING = 0x40
IFF_NOARP = 0x80

IN6_ADDR_GEN_MODE_NONE = 1
RTEXT_FILTER_SKIP_STATS = 1 << 3

NUD_NOARP = 0x40
NUD_PERMANENT = 0x80
NTF_MASTER = 0x04
NTF_STICKY = 0x40

LOOPBACK_INDEX = 1
"""LOOPBACK_IFINDEX, include/net/flow.h: the loopback device of every namespace."""

Attributes = list[tuple[str, Any]]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a link that we use."""

    index: int
    name: str
    mac: str
    """Lower-case, or empty for a link without a 6-byte address."""
    mtu: int
    """Bytes of payload above the Ethernet header."""
    up: bool
    noarp: bool
    running: bool
    """IFF_RUNNING: the link has a carrier, and the kernel has told the bridge and others of it."""
    kind: str
    """``veth``, ``macsec``, …; empty for hardware."""
    master: int
    """Index of the bridge or mesh it belongs to; 0 for none."""
    lower: int
    """Index of the device below (IFLA_LINK), possibly in another namespace; 0 for none."""
    data: Any
    """Decoded ``IFLA_INFO_DATA``, or None."""
    port: Any
    """Decoded ``IFLA_INFO_SLAVE_DATA``, or None."""
    addrgen: int
    """``IFLA_INET6_ADDR_GEN_MODE``, -1 where there is no IPv6."""
    alias: str
    """The text set by ``ip link set … alias``, by which Noctule knows its own devices."""


class Forwarding(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a bridge's forwarding database."""

    port: int
    """Index of the port."""
    fixed: bool
    """Whether it is static and sticky, as `forward_request` makes it."""


def open(netns: Namespace | None = None) -> Netlink:
    """Open an rtnetlink socket in `netns`, or in the thread's own namespace."""
    return Netlink(NETLINK_ROUTE, netns)


# -- links -------------------------------------------------------------------------------


def get_request(link: int | str) -> NetlinkRequest:
    """Ask for a link by index or name, without its counters."""
    message = _link(link)
    message["attrs"].append(("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS))
    return NetlinkRequest(RTM_GETLINK, message)


def get(rtnl: Netlink, link: int | str) -> Facts | None:
    """Return a link's facts, or None if there is no such link."""
    try:
        (answer,) = rtnl.batch([get_request(link)])[0]
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return facts(answer)


def every(rtnl: Netlink) -> list[Facts]:
    """Return the facts of all links in the socket's namespace."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    return [facts(answer) for answer in rtnl.dump(RTM_GETLINK, message)]


def facts(answer: nlmsg) -> Facts:
    """Read one RTM_NEWLINK message."""
    info = answer.get_attr("IFLA_LINKINFO")
    families = answer.get_attr("IFLA_AF_SPEC")
    inet6 = families.get_attr("AF_INET6") if families is not None else None
    mac = answer.get_attr("IFLA_ADDRESS") or ""
    return Facts(
        index=answer["index"],
        name=answer.get_attr("IFLA_IFNAME"),
        mac=mac if isinstance(mac, str) else "",
        mtu=answer.get_attr("IFLA_MTU", 0),
        up=bool(answer["flags"] & IFF_UP),
        noarp=bool(answer["flags"] & IFF_NOARP),
        running=bool(answer["flags"] & IFF_RUNNING),
        kind=(info.get_attr("IFLA_INFO_KIND") if info is not None else None) or "",
        master=answer.get_attr("IFLA_MASTER", 0),
        lower=answer.get_attr("IFLA_LINK", 0),
        data=info.get_attr("IFLA_INFO_DATA") if info is not None else None,
        port=info.get_attr("IFLA_INFO_SLAVE_DATA") if info is not None else None,
        addrgen=inet6.get_attr("IFLA_INET6_ADDR_GEN_MODE", -1) if inet6 is not None else -1,
        alias=answer.get_attr("IFLA_IFALIAS") or "",
    )


class ifindexmsg(ifinfmsg):
    """An RTM_GETLINK of whose answer only the index is decoded, which is ten times faster."""

    def decode(self) -> None:
        """Read ``ifi_index`` (struct ifinfomsg, after the 16-byte netlink header)."""
        (self["index"],) = struct.unpack_from("=4xi", self.data, 16)


def index_request(name: str) -> NetlinkRequest:
    """Ask for a link's index by name; ENODEV if there is none."""
    message = ifindexmsg()
    message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    return NetlinkRequest(RTM_GETLINK, message)


def create_request(name: str, kind: str, data: Attributes, extra: Attributes) -> NetlinkRequest:
    """Make a link of a `kind`; EEXIST if the name is taken."""
    message = _link(name)
    info: Attributes = [("IFLA_INFO_KIND", kind)]
    if data:
        info.append(("IFLA_INFO_DATA", {"attrs": data}))
    message["attrs"] += [*extra, ("IFLA_LINKINFO", {"attrs": info})]
    return NetlinkRequest(RTM_NEWLINK, message, NLM_F_CREATE | NLM_F_EXCL)


def change_data_request(index: int, kind: str, data: Attributes) -> NetlinkRequest:
    """Change the ``IFLA_INFO_DATA`` of an existing link."""
    message = _link(index)
    info: Attributes = [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": data})]
    message["attrs"].append(("IFLA_LINKINFO", {"attrs": info}))
    return NetlinkRequest(RTM_NEWLINK, message)


def set_request(
    link: int | str,
    *,
    mtu: int | None = None,
    master: int | None = None,
    quiet: bool = False,
    up: bool | None = None,
    noarp: bool | None = None,
    mac: str | None = None,
    alias: str | None = None,
) -> NetlinkRequest:
    """Change the given properties of a link, and no others.

    `master` 0 removes the link from its bridge or mesh. `quiet` sets ``addrgenmode none`` if the
    kernel has IPv6. `mtu` is in bytes of payload.
    """
    message = _link(link)
    for flag, wanted in ((IFF_UP, up), (IFF_NOARP, noarp)):
        if wanted is not None:
            message["change"] |= flag
            message["flags"] |= flag if wanted else 0
    attrs: Attributes = message["attrs"]
    if mtu is not None:
        attrs.append(("IFLA_MTU", mtu))
    if master is not None:
        attrs.append(("IFLA_MASTER", master))
    if mac is not None:
        attrs.append(("IFLA_ADDRESS", mac))
    if alias is not None:
        attrs.append(("IFLA_IFALIAS", alias))
    if quiet and has_ipv6():
        mode = [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]
        attrs.append(("IFLA_AF_SPEC", {"attrs": [("AF_INET6", {"attrs": mode})]}))
    return NetlinkRequest(RTM_SETLINK, message)


def delete_request(link: int | str) -> NetlinkRequest:
    """Delete a link; ENODEV if there is none."""
    return NetlinkRequest(RTM_DELLINK, _link(link))


def delete(rtnl: Netlink, link: int | str) -> bool:
    """Delete a link; False if it is gone already."""
    try:
        rtnl.batch([delete_request(link)])
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def _link(link: int | str) -> ifinfmsg:
    message = ifinfmsg()
    message["flags"] = message["change"] = 0
    if isinstance(link, int):
        message["index"] = link
        message["attrs"] = []
    else:
        message["attrs"] = [("IFLA_IFNAME", link)]
    return message


# -- bridge ports ------------------------------------------------------------------------


CLOSED_PORT: Attributes = [
    ("IFLA_BRPORT_LEARNING", 0),
    ("IFLA_BRPORT_UNICAST_FLOOD", 0),
    ("IFLA_BRPORT_MCAST_FLOOD", 0),
    ("IFLA_BRPORT_BCAST_FLOOD", 0),
]
"""Options of a container's port: the bridge learns no MAC from its frames and does not flood frames
to it."""


def port_request(index: int, settings: Attributes) -> NetlinkRequest:
    """Set the options of a bridge port (IFLA_BRPORT_*)."""
    message = _link(index)
    message["family"] = socket.AF_BRIDGE
    message["attrs"].append(("IFLA_PROTINFO", {"attrs": settings}, 0x8000))
    return NetlinkRequest(RTM_SETLINK, message)


def forward_request(index: int, mac: str) -> NetlinkRequest:
    """Make a permanent forwarding entry: frames to `mac` go to the bridge port `index`.

    The entry is sticky as well as static, because a static entry alone would still move to another
    port if a frame with `mac` as forged source came in there (net/bridge/br_fdb.c, br_fdb_update).
    """
    message = ndmsg()
    message["family"] = socket.AF_BRIDGE
    message["ifindex"] = index
    message["state"] = NUD_NOARP
    message["flags"] = NTF_MASTER | NTF_STICKY
    message["attrs"] = [("NDA_LLADDR", mac)]
    return NetlinkRequest(RTM_NEWNEIGH, message, NLM_F_CREATE | NLM_F_REPLACE)


def forwarded(rtnl: Netlink, index: int, mac: str) -> Forwarding | None:
    """Return the forwarding entry of a `mac` in the bridge of the port `index`, or None."""
    message = ndmsg()
    message["family"] = socket.AF_BRIDGE
    message["ifindex"] = index
    message["flags"] = NTF_MASTER
    message["attrs"] = [("NDA_LLADDR", mac)]
    try:
        (answer,) = rtnl.request(RTM_GETNEIGH, message)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return Forwarding(
        port=answer["ifindex"],
        fixed=bool(answer["state"] & NUD_NOARP and answer["flags"] & NTF_STICKY),
    )


# -- IPv6 --------------------------------------------------------------------------------


@functools.cache
def has_ipv6() -> bool:
    """Tell whether this kernel has IPv6 (it has none with ``ipv6.disable=1``).

    Without it the kernel refuses IFLA_AF_SPEC of AF_INET6 (net/core/rtnetlink.c, validate_linkmsg).
    If /proc/sys/net is not visible, the answer is True: a request that fails is better than a link
    that sends IPv6 packets of its own.
    """
    sysctls = Path("/proc/sys/net")
    return (sysctls / "ipv6").exists() or not (sysctls / "ipv4").exists()


def enable_ipv6(netns: Namespace, name: str) -> None:
    """Turn IPv6 on for one link of a namespace.

    No netlink message does this (net/ipv6/addrconf.c); there is only the sysctl, which acts on the
    namespace that the writing thread is in. KernelFailure if it cannot be written.
    """
    path = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    with netns.enter():
        try:
            path.write_text("0")
        except FileNotFoundError as error:
            raise KernelFailure(
                "addresses.ula: this kernel has no IPv6; boot it without ipv6.disable=1, "
                "or leave addresses.ula out on every node",
                details=str(error),
            ) from error
        except OSError as error:
            raise KernelFailure(
                f"addresses.ula: the container begins without IPv6, and {path} cannot be "
                f"written: {error.strerror}; let the daemon write below /proc/sys/net",
                details=str(error),
            ) from error


def family(address: str) -> int:
    """Return AF_INET or AF_INET6, whichever a textual `address` is of."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# -- neighbours --------------------------------------------------------------------------


def set_neighbour(rtnl: Netlink, ifindex: int, address: str, mac: str) -> None:
    """Make or replace the permanent neighbour entry of an `address`."""
    message = _neighbour(ifindex, address)
    message["state"] = NUD_PERMANENT
    message["attrs"].append(("NDA_LLADDR", mac))
    rtnl.request(RTM_NEWNEIGH, message, NLM_F_CREATE | NLM_F_REPLACE)


def del_neighbour(rtnl: Netlink, ifindex: int, address: str) -> None:
    """Delete a neighbour entry; it is no error if there is none."""
    try:
        rtnl.request(RTM_DELNEIGH, _neighbour(ifindex, address))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def neighbours(rtnl: Netlink, ifindex: int) -> dict[str, str]:
    """Return the permanent neighbour entries of a link, of both families: address to MAC."""
    message = ndmsg()
    message["attrs"] = [("NDA_IFINDEX", ifindex)]
    return {
        answer.get_attr("NDA_DST"): answer.get_attr("NDA_LLADDR")
        for answer in rtnl.dump(RTM_GETNEIGH, message)
        if answer["ifindex"] == ifindex and answer["state"] & NUD_PERMANENT
    }


def _neighbour(ifindex: int, address: str) -> ndmsg:
    message = ndmsg()
    message["family"] = family(address)
    message["ifindex"] = ifindex
    message["attrs"] = [("NDA_DST", address)]
    return message
