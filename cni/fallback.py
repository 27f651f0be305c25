"""What the executable does itself when the daemon does not answer.

1. ADD makes a complete, encrypted attachment that is closed (default deny). The daemon adopts it
   and opens it when it returns. DEL and GC do all of their work here. CHECK compares the kernel
   with the state. STATUS says what would keep the daemon from starting.
2. The state folder is the folder of the socket, or the one that the daemon's symbolic link beside
   the socket points to.
3. All of it happens under the state's lock, which the daemon takes too.
4. ``node.json``, which the daemon writes at its first start since boot, is needed to attach.
   If it is missing, nothing was attached since boot, so there is nothing to detach.
5. Each change is logged as one line on stderr, because no daemon is there to log it. Runtimes
   keep that in their logs.
6. This is the one module that imports ``netconf``, so ``netconf``'s errors become `Failure` here.
"""

from __future__ import annotations

import sys
from time import gmtime, monotonic, strftime

from msgspec import structs

from cni.client import Attached, Candidate
from cni.client import AttachRequest as Asked
from cni.codec import encode
from cni.errors import CHECK_FAILED, INTERNAL, TRY_AGAIN_LATER, Failure
from netconf import kernel_probe
from netconf.attach import operations as kernel
from netconf.attach.attachment import Attachment, AttachRequest, NodeNet
from netconf.attach.state import State, folder_of, kept
from netconf.errors import NoctuleError, NotAvailable
from netconf.keys import read_key
from netconf.names import MACSEC_OVERHEAD, NAMESERVER, attachment_id
from netconf.netlink.shaping import Bandwidth


def attach(socket: str, asked: Asked, *, anew: bool) -> Attached:
    """Attach without a daemon; with `anew`, first undo what a daemon that died had done.

    Raises Failure.
    """
    started = monotonic()
    request = _request(asked)
    try:
        state, node = _node(socket)
        with state.exclusive():
            if anew:
                kernel.detach(state, request.id)
            made = kernel.attach(node, state, request)
    except NoctuleError as error:
        raise _failure(error) from error
    _log("attached", started, request, service=made.service, address=made.address)
    return Attached(
        node.addresses(made.address),
        node.routes(),
        made.mac,
        made.mtu - MACSEC_OVERHEAD,
        NAMESERVER,
        made.service,
        [structs.asdict(one) for one in kernel.host_interfaces(made)],
    )


def detach(socket: str, asked: Asked) -> None:
    """Detach without a daemon; if there is nothing to detach, succeed. Raises Failure."""
    started = monotonic()
    request = _request(asked)
    folder = folder_of(socket)
    if not kept(folder):
        return  # since boot nothing was attached, and what was before died with its namespaces
    try:
        state = State(folder)
        with state.exclusive():
            gone = kernel.detach(state, request.id)
    except NoctuleError as error:
        raise _failure(error) from error
    if gone is not None:
        _log("detached", started, request, service=gone.service, address=gone.address)


def collect(socket: str, network: str, valid: list[tuple[str, str]], runtime: str) -> None:
    """Undo what `runtime` attached to `network`, except `valid`; Failure names what is left.

    `valid` are pairs of container id and interface name.
    """
    started = monotonic()
    folder = folder_of(socket)
    if not kept(folder):
        return  # since boot nothing was attached
    wanted = {attachment_id(network, container, ifname) for container, ifname in valid}
    problems: list[str] = []
    try:
        state = State(folder)
        stale = [one for one in state.all() if one.collectable(network, runtime, wanted)]
    except NoctuleError as error:
        raise _failure(error) from error
    for made in stale:
        try:
            with state.exclusive():
                kernel.detach(state, made.id)
        except NoctuleError as error:
            problems.append(f"{made.container}: {error.message}")
        else:
            _log("collected", started, made, service=made.service, address=made.address)
    if problems:
        raise Failure(INTERNAL, "GC could not remove everything", "; ".join(problems))


def obstacles(key_file: str) -> list[str]:
    """Return sentences about what would keep a daemon from serving the network.

    `key_file` is the path of the network's secret.
    """
    found = kernel_probe.lacking()
    try:
        read_key(key_file)
    except NoctuleError as error:
        found.append(error.message)
    return found


def check(socket: str, asked: Asked) -> None:
    """Compare the kernel and prevResult's address with the state; Failure names what differs."""
    request = _request(asked)
    try:
        state, node = _node(socket)
        with state.exclusive():
            kernel.check(node, state, request.id)
            known = state.get(request.id)
    except NoctuleError as error:
        raise _failure(error) from error
    if known is not None and known.address != request.address:
        raise Failure(
            CHECK_FAILED,
            f"prevResult.ips: {request.address} is not this attachment's address {known.address}",
        )


def _node(socket: str) -> tuple[State, NodeNet]:
    folder = folder_of(socket)
    try:
        if not kept(folder):
            raise NotAvailable(f"{folder} holds no state")  # State() would create the folder
        state = State(folder)
        return state, state.read_node()
    except NotAvailable as missing:
        raise Failure(
            TRY_AGAIN_LATER,
            "noctuled has not run since boot; start it: systemctl start noctuled",
            missing.message,
        ) from None


def _request(asked: Asked) -> AttachRequest:
    return AttachRequest(
        container=asked.container,
        ifname=asked.ifname,
        netns=asked.netns,
        network=asked.network,
        service=_service(asked.services),
        key_file=asked.key_file,
        address=asked.address,
        address6=asked.address6,
        mac=asked.mac,
        runtime=asked.runtime,
        bandwidth=Bandwidth(**asked.bandwidth) if asked.bandwidth else None,
    )


def _service(candidates: list[Candidate]) -> str:
    """Return the first candidate that is not an alias, else the first alias.

    Only the daemon's policy tells which aliases are services, so here they come last.
    """
    named = [one.name for one in candidates if one.origin != "alias"]
    return [*named, *(one.name for one in candidates), ""][0]


def _failure(error: NoctuleError) -> Failure:
    return Failure(error.code, error.message, error.details)


def _log(
    event: str, started: float, request: AttachRequest | Attachment, *, service: str, address: str
) -> None:
    line = {
        "time": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()),
        "level": "INFO",
        "event": f"{event} without noctuled",
        "service": service,
        "attachment": request.id,
        "container": request.container,
        "address": address,
        "milliseconds": round((monotonic() - started) * 1000),
    }
    print(encode(line), file=sys.stderr)
