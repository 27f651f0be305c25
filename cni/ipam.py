"""Delegated IPAM: another plugin gives the address.

CNI specification 1.1.0, section 4; pkg/invoke of the reference library.

1. The executable that ``ipam.type`` names is looked up in CNI_PATH and run with our environment,
   our stdin and our stderr.
2. It must give one IPv4 address, of this node's slice: MAC, SCI and IPv6 address are all derived
   from it. It may also give the IPv6 address that is derived from it. Prefix lengths and gateways
   are ignored, because the interface uses its network's prefix length and has no gateway. Routes
   are refused, because no node would forward packets that take them.
3. If its ADD fails, or its address cannot be used, it is called with DEL.
4. Its errors are passed on with its name in front.
"""

from __future__ import annotations

from _stat import S_ISREG
from posix import (
    MFD_CLOEXEC,
    POSIX_SPAWN_DUP2,
    X_OK,
    access,
    close,
    environ,
    lseek,
    memfd_create,
    pipe,
    posix_spawn,
    read,
    stat,
    waitpid,
    waitstatus_to_exitcode,
    write,
)

from cni.codec import decode
from cni.config import Network
from cni.environment import Environment
from cni.errors import (
    INTERNAL,
    INVALID_CONFIG,
    IO_FAILURE,
    TRY_AGAIN_LATER,
    UNSUPPORTED_FIELD,
    Failure,
    relayed,
)
from cni.fields import addresses_of, list_of, object_of, text_of

ETXTBSY = 26  # asm-generic/errno.h; importing errno costs more than the number


class Lease:
    """The addresses and DNS settings that the plugin gave."""

    __slots__ = ("address", "address6", "dns")

    def __init__(self, address: str, address6: str | None, dns: dict[str, object]) -> None:
        """`address` is dotted IPv4, `address6` IPv6 without prefix length, or None."""
        self.address = address
        self.address6 = address6
        self.dns = dns


def add(call: Environment, network: Network) -> Lease:
    """Run the plugin's ADD. If its result is a Failure, call its DEL and raise that Failure."""
    try:
        return _lease(network.ipam, run(call, network, "ADD"))
    except Failure as failure:
        raise give_back(call, network, failure) from None


def give_back(call: Environment, network: Network, failure: Failure) -> Failure:
    """Call the plugin's DEL because of `failure`; return `failure`.

    If the DEL fails too, the details of the returned Failure say so.
    """
    try:
        run(call, network, "DEL")
    except Failure as second:
        details = f"{failure.details}; " if failure.details else ""
        details += f"giving the address back failed too: {second.message}"
        return Failure(failure.code, failure.message, details)
    return failure


def refused(network: Network, lease: Lease, failure: Failure) -> Failure:
    """Return `failure`, reworded to name the plugin if it is about the address that it gave."""
    if not failure.message.startswith("address:"):
        return failure
    return Failure(
        INVALID_CONFIG,
        f"ipam: {network.ipam} said {lease.address}, which cannot be used; let its ranges or "
        "addresses be within this node's slice, and used by nobody else",
        failure.message,
    )


def run(call: Environment, network: Network, verb: str) -> bytes:
    """Run the plugin for `verb`; return its stdout.

    Raises Failure: the plugin's own error, or 5, 7 or 11 if it cannot be run.
    """
    name = network.ipam
    path = _find(name, call.path)
    variables = {**environ, b"CNI_COMMAND": verb.encode()}
    try:
        stdin = memfd_create("cni", MFD_CLOEXEC)
        try:
            rest = network.data
            while rest:
                rest = rest[write(stdin, rest) :]
            lseek(stdin, 0, 0)  # SEEK_SET
            code, stdout = _execute(path, stdin, variables)
        finally:
            close(stdin)
    except OSError as problem:
        busy = problem.errno == ETXTBSY  # the executable is just being written
        raise Failure(
            TRY_AGAIN_LATER if busy else IO_FAILURE,
            f"ipam.type: cannot run {path}: {problem.strerror}",
        ) from None
    if code != 0:
        raise _error(name, verb, code, stdout)
    return stdout


def _find(name: str, path: str) -> str:
    for folder in path.split(":"):
        candidate = f"{folder}/{name}"
        try:
            if folder and S_ISREG(stat(candidate).st_mode) and access(candidate, X_OK):
                return candidate
        except OSError:
            continue
    raise Failure(
        INVALID_CONFIG,
        f"ipam.type: no executable {name!r} in CNI_PATH {path}; install it, or remove ipam to let "
        "noctuled say the addresses",
    )


def _execute(path: str, stdin: int, variables: dict[bytes, bytes]) -> tuple[int, bytes]:
    """Return the exit code (negative for a signal) and stdout."""
    reader, writer = pipe()
    try:
        try:
            actions = [(POSIX_SPAWN_DUP2, stdin, 0), (POSIX_SPAWN_DUP2, writer, 1)]
            child = posix_spawn(path, [path], variables, file_actions=actions)
        finally:
            close(writer)
        stdout = bytearray()
        while part := read(reader, 65536):
            stdout += part
    finally:
        close(reader)
    return waitstatus_to_exitcode(waitpid(child, 0)[1]), bytes(stdout)


def _error(name: str, verb: str, code: int, stdout: bytes) -> Failure:
    try:
        value = decode(stdout)
    except ValueError:
        value = None
    failure = relayed(value)
    if failure is not None:
        return Failure(failure.code, f"ipam: {name}: {failure.message}", failure.details)
    said = stdout[:400].decode("utf-8", "replace").strip()
    return Failure(INTERNAL, f"ipam: {name} ended {verb} with {code} and without an error", said)


def _lease(name: str, stdout: bytes) -> Lease:
    where = f"ipam: the result of {name}"
    try:
        result = object_of(decode(stdout), where, ("ips", "routes", "dns"))
    except ValueError as problem:
        raise Failure(INTERNAL, f"{where} is not JSON", str(problem)) from None
    said = [
        text_of(
            object_of(ip, f"{where}: ips", ("address",)).get("address"), f"{where}: ips.address"
        )
        for ip in list_of(result.get("ips"), f"{where}: ips")
    ]
    four, six = addresses_of(said, f"{where}: ips", INVALID_CONFIG)
    if four is None:
        raise Failure(INVALID_CONFIG, f"{where}: ips: no IPv4 address; let it say one")
    if list_of(result.get("routes"), f"{where}: routes"):
        raise Failure(
            UNSUPPORTED_FIELD,
            f"{where}: routes: a replica reaches its own network and its VIPs only; "
            "remove routes from ipam",
        )
    dns: dict[str, object] = {}
    if result.get("dns"):
        from cni.dns import settings

        dns = settings(result["dns"], f"{where}: dns")
    return Lease(four, six, dns)
