"""Making the kernel ask for a next hop's link address at once, instead of a second later.

The kernel asks for an unknown link address only once a second
(net.ipv4.neigh.DEV.retrans_time_ms), however many packets wait to be sent. So if a link comes back
right after an unanswered question, nothing is sent over it for up to a second. This module deletes
a neighbour entry that waits for an answer; the next packet then makes a new entry, and the kernel
asks at once. An entry that has its answer is kept.

Source: net/core/neighbour.c (__neigh_event_send, neigh_timer_handler, neigh_get).
"""

from __future__ import annotations

import errno

from netconf.netlink import links, routes
from netconf.netlink.links import RTM_GETNEIGH
from netconf.netlink.socket import Netlink
from netconf.uapi.messages import ndmsg

NUD_INCOMPLETE = 0x01
"""include/uapi/linux/neighbour.h: the kernel has asked and has no answer yet."""
ABSENT = (errno.ENOENT, errno.ENODEV, errno.ENETUNREACH, errno.EHOSTUNREACH)
"""Errors that mean that there is no entry, no link or no route, so that nothing waits."""


def ask_again(rtnl: Netlink, remote: str) -> bool:
    """Make the next packet to the IP address `remote` ask anew for its next hop's link address.

    This is done only if the last question has no answer yet; return whether it was done. OSError
    if the kernel refuses for another reason than `ABSENT`.
    """
    try:
        way = routes.way_to(rtnl, remote)
        address = way.gateway or remote
        message = ndmsg()
        message["family"] = links.family(address)
        message["ifindex"] = way.link
        message["attrs"] = [("NDA_DST", address)]
        (entry,) = rtnl.request(RTM_GETNEIGH, message)
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    if not entry["state"] & NUD_INCOMPLETE:
        return False
    links.del_neighbour(rtnl, way.link, address)
    return True
