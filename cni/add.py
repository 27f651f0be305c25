"""ADD: attach the container to the network.

CNI specification 1.1.0, section 2 "ADD".

1. The executable asks the daemon to attach. If nobody listens on the daemon's socket, the
   executable attaches by itself, through `cni.fallback`.
2. If the daemon does not answer in time, ADD fails with code 11 (try again later). The daemon may
   still be attaching; the runtime calls DEL before it tries again, which undoes that.
3. If the daemon died while it attached, the executable undoes whatever the daemon had done and
   attaches by itself.
4. If an address that a delegated plugin gave cannot be used, it is given back with the plugin's
   DEL. In case 2 the address may be in use, so it is not given back here: the runtime's DEL does.
"""

from __future__ import annotations

from posix import stat

from cni import client, result
from cni.config import Network
from cni.environment import Environment
from cni.errors import INVALID_NETNS, Failure


def add(call: Environment, network: Network) -> dict[str, object]:
    """Attach; return the result as JSON values.

    Raises Failure. Nothing is left behind then, except in case 2, which the runtime's DEL ends.
    """
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
    """Attach with the address that the delegated plugin gives; append its DNS settings to `dns`."""
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
    """Attach, through the daemon or without it (rules 1 and 3).

    Raises client.Silence if the daemon may have attached or may still do so, and
    client.Unreachable if it was not asked because the socket's path cannot be used.
    """
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
        return  # whoever attaches opens the namespace too, and then names the cause
    if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
        raise Failure(
            INVALID_NETNS,
            f"CNI_NETNS: {call.netns!r} is the plugin's own network namespace; "
            "it must be the container's",
        )
