"""DEL: undo what ADD did, and succeed if there is nothing left to undo.

CNI specification 1.1.0, section 2 "DEL".

1. Namespace, interface, prevResult and state may all be gone; DEL may be repeated.
2. Nothing of the configuration counts but its version, its name, the daemon's socket and
   ``ipam``. A socket that cannot be one counts as the default, and an ``ipam`` that cannot be one
   as none: a container must be removable whatever has become of its configuration.
3. However the daemon fails to answer, the executable does the work: it is idempotent and done
   under the lock that the daemon takes too.
4. A delegated plugin gives the address back last, when nothing uses it any more.
"""

from __future__ import annotations

from cni import client
from cni.config import SOCKET, Network
from cni.environment import Environment
from cni.errors import Failure


def delete(call: Environment, network: Network) -> None:
    """Detach; Failure only if something is left."""
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
