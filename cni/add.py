"""ADD: attach the container to the network.

CNI specification 1.1.0, section 2 "ADD".

1. The daemon attaches. If nobody listens, the executable does, through `cni.fallback`.
2. If the daemon takes too long, the runtime is told to try again; it calls DEL in between.
3. If the daemon died over the work, the executable undoes what is there and starts anew.
4. An address that a delegated plugin gave is given back if it cannot be used. If it is not known
   whether it is in use (2), it is not given back now: the runtime's DEL does that.
"""

from __future__ import annotations

from posix import stat

from cni import client, result
from cni.config import Network
from cni.environment import Environment
from cni.errors import INVALID_NETNS, Failure


def add(call: Environment, network: Network) -> dict[str, object]:
    """Attach; return the result as JSON values. Any Failure leaves nothing behind."""
    _refuse_own_namespace(call)
    socket = network.socket
    request = network.request(call)
    previous = network.previous()
    dns = network.dns()
    if network.ipam:
        attached = _delegated(call, network, socket, request, dns)
    else:
        try:
            attached = _attach(socket, request)
        except client.Silence as silence:
            raise silence.failure() from None
    return result.success(network.version, call, attached, previous, dns)


def _delegated(
    call: Environment,
    network: Network,
    socket: str,
    request: client.AttachRequest,
    dns: list[dict[str, object]],
) -> client.Attached:
    """Attach with the address that the delegated plugin says, and add its DNS settings."""
    from cni import ipam

    lease = ipam.add(call, network)
    request.address, request.address6 = lease.address, lease.address6
    dns.append(lease.dns)
    try:
        return _attach(socket, request)
    except client.Unreachable as silence:
        raise ipam.give_back(call, network, silence.failure()) from None
    except client.Silence as silence:
        raise silence.failure() from None
    except Failure as failure:
        refused = ipam.refused(network, lease, failure)
        raise ipam.give_back(call, network, refused) from None


def _attach(socket: str, request: client.AttachRequest) -> client.Attached:
    """Attach; Silence if the outcome is not known, or if the work was not begun."""
    try:
        return client.attach(socket, request)
    except client.Absent:
        anew = False
    except client.Lost:
        if client.listening(socket):
            raise
        anew = True
    from cni import fallback

    return fallback.attach(socket, request, anew=anew)


def _refuse_own_namespace(call: Environment) -> None:
    """Refuse the namespace the plugin runs in: it is the node's (pkg/skel does the same)."""
    if call.shared_netns:
        return
    try:
        theirs, ours = stat(call.netns), stat("/proc/self/ns/net")
    except (OSError, ValueError):
        return  # the daemon opens it too, and its error names the cause
    if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
        raise Failure(
            INVALID_NETNS,
            f"CNI_NETNS: {call.netns!r} is the plugin's own network namespace; "
            "it must be the container's",
        )
