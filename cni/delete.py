"""DEL: undo what ADD did, and succeed if there is nothing left to undo.

CNI specification 1.1.0, section 2 "DEL".

1. DEL succeeds even if namespace, interface, prevResult and state are all gone, and may be
   repeated.
2. Of the configuration only the version, the name, the daemon's socket and ``ipam`` are read.
   An invalid socket counts as the default one and an invalid ``ipam`` as none, because a
   container must be removable whatever has become of its configuration.
3. If the daemon does not answer, for whatever reason, the executable detaches by itself. That is
   safe beside a daemon that is still at work: detaching is idempotent, and both take the same
   lock.
4. A delegated plugin gives the address back last, when nothing uses it any more.
"""

from __future__ import annotations

from cni import client
from cni.config import SOCKET, Network
from cni.environment import Environment
from cni.errors import Failure


def delete(call: Environment, network: Network) -> None:
    """Detach; raises Failure only if something of the attachment is left."""
    try:
        socket = network.socket
    except Failure:
        socket = SOCKET
    request = client.AttachRequest(
        call.container, call.ifname, call.netns, network.name, [], "", None, None
    )
    try:
        client.detach(socket, request)
    except client.Silence:
        from cni import fallback

        fallback.detach(socket, request)
    try:
        delegate = network.ipam
    except Failure:
        return
    if delegate:
        from cni import ipam

        ipam.run(call, network, "DEL")
