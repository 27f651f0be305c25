"""Asking for a next hop's link address at once, where the kernel waits to ask again.

The kernel asks once a second (net.ipv4.neigh.DEV.retrans_time_ms), however much is to be sent
meanwhile. So when a link comes back right after a question, nothing leaves by it for up to a
second. An entry that waits for an answer is deleted here; the next packet makes it anew, and asks
at once. What has an answer stays as it is.

Source: net/core/neighbour.c (__neigh_event_send, neigh_timer_handler, neigh_get).
"""

from __future__ import annotations

import errno

from netconf.netlink import links, routes
from netconf.netlink.links import RTM_GETNEIGH
from netconf.netlink.socket import Netlink
from netconf.uapi.messages import ndmsg

NUD_INCOMPLETE = 0x01
"""include/uapi/linux/neighbour.h: asked, and no answer yet."""
ABSENT = (errno.ENOENT, errno.ENODEV, errno.ENETUNREACH, errno.EHOSTUNREACH)
"""There is no entry, no link or no route: nothing waits."""


def ask_again(rtnl: Netlink, remote: str) -> bool:
    """Have the next packet to the address `remote` ask for its next hop, if that is unanswered.

    Return whether it was. OSError for anything else than that there is nothing to do.
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
