"""Giving a running attachment its IPv6 address, if it was made before the cluster had IPv6.

1. The caller must have replaced the container's ruleset by one for the IPv6 network before, so that
   no IPv6 traffic passes unfiltered.
2. The address and the route are added first and the state file is written last. Each step may be
   done twice, so after a crash a second call finishes the work.
3. Nothing that exists is changed: IPv4 flows go on, and the MTU stays.
4. IPv6 peers and neighbours are not added here. ``netconf.program`` compares them with the plan,
   finds them missing and adds them.
"""

from __future__ import annotations

import errno

import msgspec

from netconf.attach.attachment import Attachment, NodeNet
from netconf.attach.state import State
from netconf.errors import UnknownContainer
from netconf.namespace import Namespace, identity
from netconf.netlink import links, routes
from netconf.netlink.socket import doing


def add_ipv6(node: NodeNet, state: State, attachment_id: str) -> Attachment | None:
    """Give an attachment without IPv6 its address and route in the network `node.ula` (CIDR).

    Return the attachment as it is then; None if it is not ready, if it has IPv6 already or if
    `node.ula` is empty. UnknownContainer if its namespace or interface is gone; KernelFailure if
    the kernel refuses.
    """
    with state.holding(attachment_id):
        made = state.get(attachment_id)
        if made is None or made.phase != "ready" or made.ula or not node.ula:
            return None
        if identity(made.netns) != made.netns_id:
            raise UnknownContainer(f"{made.netns} is not the namespace that was attached")
        with (
            Namespace.open_known(made.netns, made.netns_id) as netns,
            doing(f"give {made.ifname} an IPv6 address"),
            links.open(netns) as inside,
        ):
            found = links.get(inside, made.ifname)
            if found is None:
                raise UnknownContainer(f"{made.ifname} is gone from {made.netns}")
            _, address = node.addresses(made.address)
            _, network = node.routes()
            steps = [
                routes.address_request(found.index, address),
                routes.route_request(found.index, network),
            ]
            try:
                inside.batch(steps)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EOPNOTSUPP):
                    raise
                links.enable_ipv6(netns, made.ifname)
                inside.batch(steps)
        made = msgspec.structs.replace(made, ula=node.ula)
        state.save(made)
        return made
