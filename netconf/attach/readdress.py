"""An attachment made before the cluster had an IPv6 network gets its part of it, as it runs.

1. The caller has put the ruleset of that network in force already: nothing comes up open.
2. Addresses and routes first, the state file last: each step may be done twice, so whatever a
   crash leaves is finished by calling again.
3. What exists is not changed: flows of IPv4 go on, and the MTU stays.
4. Peers and neighbours of IPv6 are elements like any others: whoever programs them reads them
   back and finds them missing.
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
    """Give an attachment without IPv6 its address and routes in the network `node.ula`.

    Return it as it is now; None if it is not ready, or has an IPv6 network. UnknownContainer: its
    namespace or interface is gone; KernelFailure: refused.
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
