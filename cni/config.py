"""The network configuration on stdin, for one plugin and one call.

CNI specification 1.1.0, sections 1 and 3; CONVENTIONS.md for capabilities and ``args``.

1. Not JSON, or not an object: code 6. A version that is no version: 6. One not served, or too
   old for the verb: 1. A field missing or wrong: 7. One that cannot be honoured: 2.
2. A misspelt field must not be ignored silently: unknown fields are refused, except those that
   the specification reserves. DEL, GC and STATUS look at no more than they need, because they
   must work on whatever ADD was given.
3. The service is the first of: args.cni.service, CNI_ARGS NOCTULE_SERVICE, the first alias that
   policy knows, service. Policy is the daemon's: all candidates are sent to it, in this order.
4. The address is the first of: runtimeConfig.ips, args.cni.ips, CNI_ARGS IP. The MAC is the
   first of: runtimeConfig.mac, CNI_ARGS MAC.
5. An absent list of valid attachments is not an empty one; null, which Go writes for a list
   nobody made, counts as absent: not collecting is mended later, collecting too much is not.
"""

from __future__ import annotations

from _socket import AF_INET, inet_pton

from cni import environment
from cni.client import Candidate, Request
from cni.codec import decode, encode
from cni.environment import Environment
from cni.result import (
    DECODING_FAILURE,
    INCOMPATIBLE_VERSION,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    SUPPORTED,
    UNSUPPORTED_FIELD,
    Failure,
    since,
)

SOCKET = "/run/noctule/noctuled.sock"
SOCKET_PATH_LIMIT = 107
"""Bytes; UNIX_PATH_MAX of include/uapi/linux/un.h without the closing zero."""

OURS = ("service", "key", "socket")
STANDARD = (
    "cniVersion", "cniVersions", "name", "type", "capabilities", "runtimeConfig", "args",
    "prevResult", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "dns", "ipam", "ipMasq",
)  # fmt: skip
RESERVED = "cni.dev/"
CAPABILITIES = ("aliases", "ips", "mac")

FIRST_VERSION = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""The version of the specification that brought a verb, where it is not the first."""


class Network:
    """One plugin's configuration of one network; each member reads and validates its fields."""

    __slots__ = ("_fields", "name", "version")

    def __init__(self, version: str, name: str, fields: dict[str, object]) -> None:
        """`version` is supported, `name` is valid, `fields` are as they came."""
        self.version = version
        self.name = name
        self._fields = fields

    @property
    def socket(self) -> str:
        """The path of the daemon's socket; Failure 7 if it cannot be one."""
        path = _text(self._fields.get("socket", SOCKET), "socket")
        if not path.startswith("/") or "\0" in path or len(path.encode()) > SOCKET_PATH_LIMIT:
            raise _invalid(
                "socket", f"{path!r} must be an absolute path of at most {SOCKET_PATH_LIMIT} bytes"
            )
        return path

    def request(self, call: Environment) -> Request:
        """Return the attachment ADD or CHECK speaks of; Failure 2, 4 or 7 names the field."""
        self._refuse_unknown()
        self._refuse_unsupported()
        arguments = environment.arguments(call.args)
        args = _object(_object(self._fields.get("args"), "args").get("cni"), "args.cni")
        runtime = _object(self._fields.get("runtimeConfig"), "runtimeConfig")

        services: list[Candidate] = []
        if args.get("service") is not None:
            name = _text(args["service"], "args.cni.service")
            services.append(Candidate(name, "args.cni.service"))
        if arguments.service:
            services.append(Candidate(arguments.service, "CNI_ARGS NOCTULE_SERVICE"))
        services += [Candidate(name, "alias") for name in self._aliases(runtime)]
        if self._fields.get("service") is not None:
            services.append(Candidate(_text(self._fields["service"], "service"), "service"))
        if not services:
            raise _invalid(
                "service",
                "missing; set it in the network configuration, or let the runtime name it by "
                "args.cni.service, NOCTULE_SERVICE in CNI_ARGS, or a network alias",
            )

        address = _one_of(runtime.get("ips"), "runtimeConfig.ips")
        where = "runtimeConfig.ips"
        if address is None:
            address, where = _one_of(args.get("ips"), "args.cni.ips"), "args.cni.ips"
        code = INVALID_CONFIG
        if address is None and arguments.address:
            address, where, code = arguments.address, "CNI_ARGS: IP", INVALID_ENVIRONMENT
        address = _address(address, where, code) if address is not None else None

        mac = None
        if runtime.get("mac") not in (None, ""):
            mac = _mac(
                _text(runtime["mac"], "runtimeConfig.mac"), "runtimeConfig.mac", INVALID_CONFIG
            )
        elif arguments.mac:
            mac = _mac(arguments.mac, "CNI_ARGS: MAC", INVALID_ENVIRONMENT)
        return Request(
            call.container, call.ifname, call.netns, self.name, services, self._key_file(),
            address, mac,
        )  # fmt: skip

    def previous(self) -> dict[str, list[dict[str, object]]] | None:
        """Return prevResult's lists ``interfaces``, ``ips``, ``routes``; None if there is none."""
        if self._fields.get("prevResult") is None:
            return None
        result = _object(self._fields["prevResult"], "prevResult")
        return {
            name: [
                _object(entry, f"prevResult.{name}")
                for entry in _list(result.get(name), f"prevResult.{name}")
            ]
            for name in ("interfaces", "ips", "routes")
        }

    def dns(self) -> dict[str, object]:
        """Return prevResult's DNS settings; this plugin has none of its own."""
        result = _object(self._fields.get("prevResult"), "prevResult")
        return _object(result.get("dns"), "prevResult.dns")

    def valid_attachments(self) -> list[tuple[str, str]] | None:
        """Return GC's list of (container, ifname) to keep; None if there is no list (rule 5)."""
        # Spec 1.1.0 first misspelt the key; libcni sends both (its issue 1101).
        for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
            if self._fields.get(key) is not None:
                pairs = [_object(entry, key) for entry in _list(self._fields[key], key)]
                return [
                    (
                        _text(pair.get("containerID"), f"{key}.containerID"),
                        _text(pair.get("ifname"), f"{key}.ifname"),
                    )
                    for pair in pairs
                ]
        return None

    def _refuse_unknown(self) -> None:
        for name in self._fields:
            if name not in OURS and name not in STANDARD and not name.startswith(RESERVED):
                raise _invalid(
                    name, f"unknown field; noctule knows {', '.join(OURS)} and the standard fields"
                )

    def _refuse_unsupported(self) -> None:
        ipam = self._fields.get("ipam")
        if ipam and ipam != {"type": ""}:
            raise _unsupported("ipam", ipam, "noctule allocates addresses itself: remove it")
        if self._fields.get("ipMasq"):
            raise _unsupported("ipMasq", True, "a replica has no way out to masquerade: remove it")
        capabilities = _object(self._fields.get("capabilities"), "capabilities")
        runtime = _object(self._fields.get("runtimeConfig"), "runtimeConfig")
        for prefix, fields in (("capabilities", capabilities), ("runtimeConfig", runtime)):
            for name, value in fields.items():
                if value and name not in CAPABILITIES:
                    raise _unsupported(
                        f"{prefix}.{name}", value, f"noctule offers {', '.join(CAPABILITIES)}"
                    )

    def _key_file(self) -> str:
        if self._fields.get("key") is None:
            raise _invalid("key", 'missing; set {"file": PATH} to the file with the secret')
        key = _object(self._fields["key"], "key")
        for name in key:
            if name != "file":
                raise _invalid(f"key.{name}", "unknown field; key has only file")
        path = _text(key.get("file"), "key.file")
        if not path.startswith("/") or "\0" in path:
            raise _invalid("key.file", f"{path!r} must be an absolute path")
        return path

    def _aliases(self, runtime: dict[str, object]) -> list[str]:
        aliases = runtime.get("aliases")
        where = "runtimeConfig.aliases"
        if isinstance(aliases, dict):  # Podman's shape: a list for each network
            aliases, where = aliases.get(self.name), f"{where}.{self.name}"
        return [_text(name, where) for name in _list(aliases, where)]


def read(data: bytes, verb: str) -> Network:
    """Return the configuration in the JSON text `data`, fit for `verb`; Failure 1, 6 or 7."""
    try:
        value = decode(data)
    except ValueError as problem:
        raise Failure(
            DECODING_FAILURE, "network configuration on stdin is not JSON", str(problem)
        ) from None
    if not isinstance(value, dict):
        raise Failure(DECODING_FAILURE, "network configuration on stdin must be a JSON object")
    name = _text(value.get("name"), "name")
    if not environment.valid_name(name):
        raise _invalid(
            "name",
            f"{name!r} must begin with a letter or digit and hold only letters, digits, '_', '.' "
            "and '-'",
        )
    return Network(_version(value, verb), name, value)


def version_of(data: bytes) -> str:
    """Return the version an error about `data` should carry, if it can be known; else empty."""
    try:
        value = decode(data)
    except ValueError:
        return ""
    version = value.get("cniVersion") if isinstance(value, dict) else None
    return version if isinstance(version, str) and version in SUPPORTED else ""


def _version(fields: dict[str, object], verb: str) -> str:
    # Before 0.2.0 the field did not exist: none means 0.1.0 (pkg/version).
    version = fields.get("cniVersion") or "0.1.0"
    parts = version.split(".") if isinstance(version, str) else []
    if not isinstance(version, str) or len(parts) > 3 or not all(
        part.isascii() and part.isdigit() for part in parts
    ):  # fmt: skip
        raise Failure(
            DECODING_FAILURE,
            f"cniVersion: {encode(version)} must be three numbers such as {SUPPORTED[-1]!r}",
        )
    if version not in SUPPORTED:
        raise Failure(
            INCOMPATIBLE_VERSION,
            f"cniVersion: {version!r} is not supported",
            f"noctule supports {', '.join(SUPPORTED)}",
        )
    first = FIRST_VERSION.get(verb, SUPPORTED[0])
    if not since(version, first):
        raise Failure(
            INCOMPATIBLE_VERSION,
            f"cniVersion: {version!r} does not allow {verb}, which came with {first}",
        )
    return version


def _invalid(field: str, problem: str) -> Failure:
    return Failure(INVALID_CONFIG, f"{field}: {problem}")


def _unsupported(field: str, value: object, fix: str) -> Failure:
    return Failure(UNSUPPORTED_FIELD, f"{field}: {encode(value)} is not supported; {fix}")


def _text(value: object, field: str) -> str:
    if value is None:
        raise _invalid(field, "missing; set it to a string")
    if not isinstance(value, str) or not value:
        raise _invalid(field, f"{encode(value)} must be a string that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _invalid(field, f"{encode(value)} has half a surrogate pair") from None
    return value


def _object(value: object, field: str) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid(field, "must be an object")
    return value


def _list(value: object, field: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _invalid(field, "must be a list")
    return value


def _one_of(value: object, field: str) -> str | None:
    values = _list(value, field)
    if len(values) > 1:
        raise _unsupported(field, value, "a replica has one IPv4 address")
    return _text(values[0], field) if values else None


def _address(text: str, field: str, code: int) -> str:
    """Return the dotted IPv4 address of `text`, which may carry a prefix length."""
    address, slash, prefix = text.partition("/")
    try:
        inet_pton(AF_INET, address)
    except (OSError, ValueError):
        raise Failure(
            code, f"{field}: {text!r} must be an IPv4 address such as 10.64.16.5"
        ) from None
    if slash and not (prefix.isascii() and prefix.isdigit() and int(prefix[:3]) <= 32):
        raise Failure(code, f"{field}: {text!r} has a prefix length that is not 0 to 32")
    return address


def _mac(text: str, field: str, code: int) -> str:
    """Return the MAC `text` in lower case."""
    mac = text.lower()
    octets = mac.split(":")
    if len(octets) != 6 or not all(
        len(octet) == 2 and set(octet) <= set("0123456789abcdef") for octet in octets
    ):
        raise Failure(code, f"{field}: {text!r} must be a MAC such as 02:4e:0a:40:10:05")
    return mac
