"""What the executable does itself when the daemon does not answer.

1. ADD yields a complete, encrypted, default-deny attachment that the daemon adopts and opens
   when it returns. DEL always completes. CHECK compares the kernel with the state.
2. The state folder is the socket's: the daemon keeps both in one place.
3. All of it happens under the state's lock, which the daemon takes too.
4. What the daemon wrote at its first start since boot (``node.json``) is needed to attach, and
   proves that there may be something to detach.
5. One line on stderr, the runtime's log, says what was done: the daemon is not there to.
6. This is the one module that imports `netconf`, and so the place where its errors become ours.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import gmtime, monotonic, strftime

from cni.client import Attached, Candidate, Request
from cni.codec import encode
from cni.result import CHECK_FAILED, TRY_AGAIN_LATER, Failure
from netconf import attach as netconf_attach
from netconf import state as netconf_state
from netconf.errors import NoctuleError
from netconf.names import attachment_id


def attach(socket: str, request: Request, *, anew: bool) -> Attached:
    """Attach without a daemon; `anew` undoes first what a daemon that died had done."""
    started = monotonic()
    folder = Path(socket).parent
    try:
        node = _node(folder)
        state = netconf_state.State(folder)
        with state.exclusive():
            if anew:
                netconf_attach.detach(state, _id(request))
            made = netconf_attach.attach(
                node,
                state,
                netconf_state.Request(
                    container=request.container,
                    ifname=request.ifname,
                    netns=request.netns,
                    network=request.network,
                    service=_service(request.services),
                    key_file=request.key_file,
                    address=request.address,
                    mac=request.mac,
                ),
            )
    except NoctuleError as error:
        raise _failure(error) from error
    _log("attached", started, request, service=made.service, address=made.address)
    prefix = int(node.pool.partition("/")[2])
    return Attached(made.address, prefix, made.mac, made.mtu, node.vips, made.service)


def detach(socket: str, request: Request) -> None:
    """Detach without a daemon; nothing to detach is success."""
    started = monotonic()
    folder = Path(socket).parent
    if not folder.is_dir():
        return  # since boot nothing was attached, and what was before died with its namespaces
    try:
        state = netconf_state.State(folder)
        with state.exclusive():
            gone = netconf_attach.detach(state, _id(request))
    except NoctuleError as error:
        raise _failure(error) from error
    if gone is not None:
        _log("detached", started, request, service=gone.service, address=gone.address)


def check(socket: str, request: Request) -> None:
    """Compare the kernel and prevResult's address with the state; Failure names what differs."""
    folder = Path(socket).parent
    try:
        node = _node(folder)
        state = netconf_state.State(folder)
        with state.exclusive():
            netconf_attach.check(node, state, _id(request))
            known = state.get(_id(request))
    except NoctuleError as error:
        raise _failure(error) from error
    if known is not None and known.address != request.address:
        raise Failure(
            CHECK_FAILED,
            f"prevResult.ips: {request.address} is not this attachment's address {known.address}",
        )


def _node(folder: Path) -> netconf_state.NodeNet:
    try:
        return netconf_state.read_node(folder)
    except FileNotFoundError as missing:
        raise Failure(
            TRY_AGAIN_LATER,
            "noctuled has not run since boot; start it: systemctl start noctuled",
            str(missing),
        ) from None


def _service(candidates: list[Candidate]) -> str:
    """Return the likeliest service: only the daemon's policy knows which aliases are services."""
    named = [one.name for one in candidates if one.origin != "alias"]
    return named[0] if named else candidates[0].name


def _id(request: Request) -> str:
    return attachment_id(request.network, request.container, request.ifname)


def _failure(error: NoctuleError) -> Failure:
    return Failure(error.code, error.message, error.details)


def _log(event: str, started: float, request: Request, *, service: str, address: str) -> None:
    line = {
        "time": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()),
        "level": "INFO",
        "event": f"{event} without noctuled",
        "service": service,
        "attachment": _id(request),
        "container": request.container,
        "address": address,
        "milliseconds": round((monotonic() - started) * 1000),
    }
    print(encode(line), file=sys.stderr)
