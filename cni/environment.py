"""The parameters a runtime passes as environment variables.

CNI specification 1.1.0, section 2 "Parameters"; what is required for which verb, and how
names are validated, is as in the reference library (pkg/skel, pkg/utils).

1. One error (code 4) names all missing variables, or all malformed ones, at once.
2. A container id is ASCII letters, digits, ``_``, ``.`` and ``-``, the first a letter or digit.
3. An interface name is 1 to 15 bytes, not ``.`` or ``..``, without ``/``, ``:`` and white
   space; nor ``%``, which the kernel would take for a pattern (``dev_alloc_name``).
4. CNI_ARGS is ``KEY=VALUE;KEY=VALUE``. An unknown key is an error unless IgnoreUnknown is set.
   Keys are matched exactly, as the reference library does (pkg/types, LoadArgs).
"""

from __future__ import annotations

from posix import environ

from cni.errors import INVALID_ENVIRONMENT, Failure

ATTACHMENT = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")

REQUIRED: dict[str, tuple[str, ...]] = {
    "ADD": ATTACHMENT,
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ATTACHMENT,
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
    "VERSION": (),
}

INTERFACE_NAME_LIMIT = 15
"""Bytes; IFNAMSIZ of include/uapi/linux/if.h without the closing zero."""

_INITIAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _INITIAL | frozenset("_.-")

_ARGUMENTS = ("IgnoreUnknown", "IP", "MAC", "NOCTULE_SERVICE")
_ORCHESTRATOR = "K8S_"  # pod name, namespace, uid, sandbox: sent by every Kubernetes runtime
_POD = "K8S_POD_NAME"
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


class Environment:
    """The validated parameters of one call; empty strings for what the verb does not need."""

    __slots__ = ("args", "command", "container", "ifname", "netns", "path", "shared_netns")

    def __init__(
        self,
        command: str,
        container: str = "",
        netns: str = "",
        ifname: str = "",
        args: str = "",
        shared_netns: bool = False,
        path: str = "",
    ) -> None:
        """`netns` is a path. `shared_netns` tells that the runtime set CNI_NETNS_OVERRIDE: `netns`
        may then be the namespace that the plugin itself runs in."""
        self.command = command
        self.container = container
        self.netns = netns
        self.ifname = ifname
        self.args = args
        self.shared_netns = shared_netns
        self.path = path


class Arguments:
    """What CNI_ARGS asks for; empty strings where it asks for nothing."""

    __slots__ = ("address", "mac", "pod", "service")

    def __init__(self, address: str = "", mac: str = "", service: str = "", pod: str = "") -> None:
        """Values as the runtime wrote them, not yet validated."""
        self.address = address
        self.mac = mac
        self.service = service
        self.pod = pod


def valid_name(name: str) -> bool:
    """Say whether `name` may be a container id or a network name (rule 2)."""
    return name[:1] in _INITIAL and bool(name) and _NAME.issuperset(name)


def _interface_name_problem(name: str) -> str:
    if len(name.encode()) > INTERFACE_NAME_LIMIT:
        return f"is longer than {INTERFACE_NAME_LIMIT} bytes"
    if name in (".", ".."):
        return "is . or .."
    if any(character in "/:%" or character.isspace() for character in name):
        return "contains one of / : % or white space"
    return ""


def command() -> str:
    """Return CNI_COMMAND, empty if there is none."""
    return environ.get(b"CNI_COMMAND", b"").decode("utf-8", "backslashreplace")


def read(verb: str) -> Environment:
    """Return what `verb` needs; Failure 4 names every missing or every malformed variable."""
    needed = REQUIRED[verb]
    values: dict[str, str] = {}
    missing: list[str] = []
    malformed: list[str] = []
    for name in needed:
        raw = environ.get(name.encode(), b"")
        if not raw:
            missing.append(name)
            continue
        try:
            values[name] = raw.decode("utf-8")
        except UnicodeDecodeError:
            malformed.append(f"{name} is not UTF-8")
    if missing:
        raise Failure(
            INVALID_ENVIRONMENT,
            f"required environment variables missing: {', '.join(missing)}",
            f"{verb} needs CNI_COMMAND, {', '.join(needed)}",
        )
    container = values.get("CNI_CONTAINERID", "")
    if container and not valid_name(container):
        malformed.append(
            f"CNI_CONTAINERID {container!r} must begin with a letter or digit and hold only "
            "letters, digits, '_', '.' and '-'"
        )
    ifname = values.get("CNI_IFNAME", "")
    if problem := _interface_name_problem(ifname):
        malformed.append(f"CNI_IFNAME {ifname!r} {problem}")
    if malformed:
        raise Failure(INVALID_ENVIRONMENT, f"invalid environment variables: {'; '.join(malformed)}")
    return Environment(
        verb,
        container,
        # DEL does not require it: containerd passes an empty one once the namespace is gone.
        values.get("CNI_NETNS") or environ.get(b"CNI_NETNS", b"").decode("utf-8", "replace"),
        ifname,
        environ.get(b"CNI_ARGS", b"").decode("utf-8", "backslashreplace"),
        environ.get(b"CNI_NETNS_OVERRIDE", b"").lower() in (b"1", b"true"),
        values.get("CNI_PATH", ""),
    )


def arguments(text: str) -> Arguments:
    """Return what CNI_ARGS asks for; Failure 4 names the pair that is wrong (rule 4)."""
    values: dict[str, str] = {}
    unknown: list[str] = []
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if not equals or "=" in value:
            raise Failure(
                INVALID_ENVIRONMENT, f"CNI_ARGS: {pair!r} must be KEY=VALUE, pairs split by ';'"
            )
        if key in _ARGUMENTS or key == _POD:
            values[key] = value
        elif not key.startswith(_ORCHESTRATOR):
            unknown.append(key)
    ignore = _BOOLEANS.get(values.get("IgnoreUnknown", "0").lower())
    if ignore is None:
        raise Failure(
            INVALID_ENVIRONMENT,
            f"CNI_ARGS: IgnoreUnknown={values['IgnoreUnknown']!r} must be 1, true, 0 or false",
        )
    if unknown and not ignore:
        raise Failure(
            INVALID_ENVIRONMENT,
            f"CNI_ARGS: unknown keys {', '.join(unknown)}; known are {', '.join(_ARGUMENTS)} and "
            f"{_ORCHESTRATOR}*, or set IgnoreUnknown=1",
        )
    return Arguments(
        values.get("IP", ""),
        values.get("MAC", ""),
        values.get("NOCTULE_SERVICE", ""),
        values.get(_POD, ""),
    )
