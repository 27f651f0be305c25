"""The network configuration on stdin, for one plugin and one call.

CNI specification 1.1.0, sections 1 and 3; CONVENTIONS.md for capabilities and ``args``.

1. Error codes: 6 if the text is not a JSON object or its version is not a version; 1 if that
   version is not supported or too old for the verb; 7 if a field is missing or wrong; 2 if a
   field asks for something that Noctule does not offer.
2. Unknown fields are refused, except those that the specification reserves, so that a misspelt
   field is not ignored silently. DEL, GC and STATUS read only the fields they need, because they
   must work with any configuration that ADD was given.
   Names of fields are matched as Go's decoder would (`cni.codec`, rule 4).
3. The service is the first of: args.cni.service, CNI_ARGS NOCTULE_SERVICE, the pod's annotation
   noctule.io/service, the first alias that policy knows, what podNames makes of the pod's name
   (`cni.pods`), service. Only the daemon knows the policy, so all candidates are sent to it in
   this order, and it chooses.
4. The addresses, at most one of each family, are the first of: runtimeConfig.ips,
   args.cni.ips, CNI_ARGS IP. If ``ipam.type`` names a plugin, that plugin reads these fields and
   gives the addresses. The MAC is the first of: runtimeConfig.mac, CNI_ARGS MAC.
5. Without a list of valid attachments GC removes nothing; with an empty list it removes all.
   null counts as no list, because Go writes null for a list that was never made. If in doubt GC
   must keep: what it leaves can be collected later, what it removes cannot be brought back.
6. The runtime that calls is known by the field ``runtime``, or else by the name of the parent
   process's executable. GC uses it to keep runtimes apart that share a network (`cni.gc`).
7. Fields that few calls have (prevResult, limits, DNS settings, pods) are read by modules of
   their own, which are imported only if the field is there: imports delay every ADD.
"""

from __future__ import annotations

from posix import getppid, readlink

from cni import environment
from cni.client import AttachRequest, Candidate
from cni.codec import decode, encode, matched
from cni.environment import Arguments, Environment
from cni.errors import (
    DECODING_FAILURE,
    INCOMPATIBLE_VERSION,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    Failure,
)
from cni.fields import (
    addresses_of,
    invalid,
    list_of,
    mac_of,
    map_of,
    object_of,
    text_of,
    unsupported,
)
from cni.result import SUPPORTED, since

SOCKET = "/run/noctule/noctuled.sock"
SOCKET_PATH_LIMIT = 107
"""Bytes; UNIX_PATH_MAX of include/uapi/linux/un.h without the closing zero."""

OURS = ("service", "key", "socket", "runtime", "podNames")
STANDARD = (
    "cniVersion", "cniVersions", "name", "type", "capabilities", "runtimeConfig", "args",
    "prevResult", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "dns", "ipam", "ipMasq",
)  # fmt: skip
RESERVED = "cni.dev/"
VALID = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""GC's list. Spec 1.1.0 first misspelt the key; libcni sends both (its issue 1101)."""

NAMES = (*OURS, *STANDARD, *VALID)
ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
"""The capability by which containerd passes the annotations of a pod."""

CAPABILITIES = ("aliases", "bandwidth", "dns", "ips", "mac", ANNOTATIONS)
DELEGATED_CAPABILITIES = ("ipRanges",)
"""What a runtime may pass to the plugin that ``ipam.type`` names, through us."""

FIRST_VERSION = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""The version of the specification that brought a verb, where it is not the first."""


class Network:
    """One plugin's configuration of one network. Each member validates the fields that it reads."""

    __slots__ = ("_fields", "data", "name", "version")

    def __init__(self, version: str, name: str, fields: dict[str, object], data: bytes) -> None:
        """`version` is supported and `name` is valid; `data` are the bytes from stdin, unchanged.

        `fields` is what `data` decodes to, with fields renamed to the spelling in `NAMES`.
        """
        self.version = version
        self.name = name
        self.data = data
        self._fields = fields

    @property
    def socket(self) -> str:
        """The path of the daemon's socket; Failure 7 if it cannot be one."""
        path = text_of(self._fields.get("socket", SOCKET), "socket")
        if not path.startswith("/") or "\0" in path or len(path.encode()) > SOCKET_PATH_LIMIT:
            raise invalid(
                "socket", f"{path!r} must be an absolute path of at most {SOCKET_PATH_LIMIT} bytes"
            )
        return path

    @property
    def ipam(self) -> str:
        """The delegated plugin that gives the addresses; empty if the daemon does. Failure 7."""
        ipam = object_of(self._fields.get("ipam"), "ipam", ("type",))
        if not ipam or ipam == {"type": ""}:
            return ""
        name = text_of(ipam.get("type"), "ipam.type")
        if "/" in name or "\0" in name or name in (".", ".."):
            raise invalid("ipam.type", f"{name!r} must be the name of an executable in CNI_PATH")
        return name

    @property
    def runtime(self) -> str:
        """The runtime that calls (rule 6); empty if that cannot be found out. Failure 7."""
        if self._fields.get("runtime") is not None:
            return text_of(self._fields["runtime"], "runtime")
        try:
            path = readlink(f"/proc/{getppid()}/exe".encode())
        except OSError:
            return ""
        # If an upgrade replaced the runtime's file while it runs, the kernel adds this suffix.
        name = path.rpartition(b"/")[2].removesuffix(b" (deleted)")
        return name.decode("utf-8", "backslashreplace")

    @property
    def key_file(self) -> str:
        """The path of the network's secret; Failure 7 if there is none."""
        if self._fields.get("key") is None:
            raise invalid("key", 'missing; set {"file": PATH} to the file with the secret')
        key = object_of(self._fields["key"], "key", ("file",))
        for name in key:
            if name != "file":
                raise invalid(f"key.{name}", "unknown field; key has only file")
        path = text_of(key.get("file"), "key.file")
        if not path.startswith("/") or "\0" in path:
            raise invalid("key.file", f"{path!r} must be an absolute path")
        return path

    def request(self, call: Environment) -> AttachRequest:
        """Return the attachment that ADD or CHECK is about; Failure 2, 4 or 7 names the field."""
        self._refuse_unknown()
        self._refuse_unsupported()
        arguments = environment.arguments(call.args)
        args = object_of(self._fields.get("args"), "args", ("cni",))
        args = object_of(args.get("cni"), "args.cni", ("service", "ips"))
        runtime = self._runtime_config()
        services = self._services(args, arguments, runtime)
        address = address6 = None
        if not self.ipam:
            address, address6 = _asked(runtime, args, arguments.address)
        mac = None
        if runtime.get("mac") not in (None, ""):
            mac = mac_of(
                text_of(runtime["mac"], "runtimeConfig.mac"), "runtimeConfig.mac", INVALID_CONFIG
            )
        elif arguments.mac:
            mac = mac_of(arguments.mac, "CNI_ARGS: MAC", INVALID_ENVIRONMENT)
        bandwidth = None
        if runtime.get("bandwidth") is not None:
            from cni.bandwidth import limits

            bandwidth = limits(runtime["bandwidth"])
        return AttachRequest(
            call.container, call.ifname, call.netns, self.name, services, self.key_file,
            address, mac, address6, self.runtime, bandwidth,
        )  # fmt: skip

    def previous(self) -> dict[str, object]:
        """Return prevResult in this configuration's version; empty without one. Failure 1 or 7.

        Its ``interfaces``, ``ips`` and ``routes``, if any, are lists of objects.
        """
        if self._fields.get("prevResult") is None:
            return {}
        from cni import chain

        return chain.previous(self._fields["prevResult"], self.version)

    def dns(self) -> list[dict[str, object]]:
        """Return the DNS settings of the configuration and of the runtime; Failure 7."""
        runtime = self._runtime_config()
        found = [(self._fields.get("dns"), "dns"), (runtime.get("dns"), "runtimeConfig.dns")]
        if not any(settings for settings, _ in found):
            return []
        from cni import dns

        return [dns.asked(settings, where) for settings, where in found]

    def valid_attachments(self) -> list[tuple[str, str]] | None:
        """Return GC's list of (container, ifname) to keep; None if there is no list (rule 5)."""
        for key in VALID:
            if self._fields.get(key) is not None:
                names = ("containerID", "ifname")
                pairs = [object_of(entry, key, names) for entry in list_of(self._fields[key], key)]
                return [
                    (
                        text_of(pair.get("containerID"), f"{key}.containerID"),
                        text_of(pair.get("ifname"), f"{key}.ifname"),
                    )
                    for pair in pairs
                ]
        return None

    def _refuse_unknown(self) -> None:
        for name in self._fields:
            if name not in OURS and name not in STANDARD and not name.startswith(RESERVED):
                raise invalid(
                    name, f"unknown field; noctule knows {', '.join(OURS)} and the standard fields"
                )

    def _refuse_unsupported(self) -> None:
        if self._fields.get("ipMasq"):
            raise unsupported("ipMasq", True, "a replica has no way out to masquerade: remove it")
        known = (*CAPABILITIES, *DELEGATED_CAPABILITIES) if self.ipam else CAPABILITIES
        # Go reads capabilities into a map, so a runtime compares their names exactly.
        capabilities = map_of(self._fields.get("capabilities"), "capabilities")
        runtime = self._runtime_config()
        for prefix, fields in (("capabilities", capabilities), ("runtimeConfig", runtime)):
            for name, value in fields.items():
                if value and name not in known:
                    raise unsupported(
                        f"{prefix}.{name}", value, f"noctule offers {', '.join(known)}"
                    )

    def _runtime_config(self) -> dict[str, object]:
        names = (*CAPABILITIES, *DELEGATED_CAPABILITIES)
        return object_of(self._fields.get("runtimeConfig"), "runtimeConfig", names)

    def _services(
        self, args: dict[str, object], arguments: Arguments, runtime: dict[str, object]
    ) -> list[Candidate]:
        """Return the names that may be the service (rule 3); Failure 7 if there is none."""
        found: list[Candidate] = []
        if args.get("service") is not None:
            name = text_of(args["service"], "args.cni.service")
            found.append(Candidate(name, "args.cni.service"))
        if arguments.service:
            found.append(Candidate(arguments.service, "CNI_ARGS NOCTULE_SERVICE"))
        if runtime.get(ANNOTATIONS):
            from cni import pods

            if name := pods.annotated(runtime[ANNOTATIONS], f"runtimeConfig.{ANNOTATIONS}"):
                found.append(Candidate(name, "annotation"))
        found += [Candidate(name, "alias") for name in self._aliases(runtime)]
        if self._fields.get("podNames") is not None:
            from cni import pods

            if name := pods.named(self._fields["podNames"], arguments.pod):
                found.append(Candidate(name, "pod name"))
        if self._fields.get("service") is not None:
            found.append(Candidate(text_of(self._fields["service"], "service"), "service"))
        if not found:
            raise invalid("service", self._missing(arguments.pod))
        return found

    def _missing(self, pod: str) -> str:
        """Return the error message for a call in which nothing names the service."""
        if not pod:
            return (
                "missing; set it in the network configuration, or let the runtime name it by "
                "args.cni.service, NOCTULE_SERVICE in CNI_ARGS, or a network alias"
            )
        return (
            f"missing for pod {pod!r}; annotate the pod with noctule.io/service and declare the "
            f"capability {ANNOTATIONS}, or set service, or podNames with a pattern that fits, "
            "in the network configuration"
        )

    def _aliases(self, runtime: dict[str, object]) -> list[str]:
        aliases = runtime.get("aliases")
        where = "runtimeConfig.aliases"
        if isinstance(aliases, dict):  # Podman's shape: a list for each network
            aliases, where = aliases.get(self.name), f"{where}.{self.name}"
        return [text_of(name, where) for name in list_of(aliases, where)]


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
    fields = matched(value, NAMES)
    name = text_of(fields.get("name"), "name")
    if not environment.valid_name(name):
        raise invalid(
            "name",
            f"{name!r} must begin with a letter or digit and hold only letters, digits, '_', '.' "
            "and '-'",
        )
    return Network(_version(fields, verb), name, fields, data)


def version_of(data: bytes) -> str:
    """Return the supported version that `data` names, for an error about it; empty if none."""
    try:
        value = decode(data)
    except ValueError:
        return ""
    version = matched(value, NAMES).get("cniVersion") if isinstance(value, dict) else None
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


def _asked(
    runtime: dict[str, object], args: dict[str, object], argument: str
) -> tuple[str | None, str | None]:
    """Return the IPv4 and the IPv6 address asked for (rule 4)."""
    for values, where in (
        (runtime.get("ips"), "runtimeConfig.ips"),
        (args.get("ips"), "args.cni.ips"),
    ):
        if listed := list_of(values, where):
            return addresses_of([text_of(value, where) for value in listed], where, INVALID_CONFIG)
    if argument:
        return addresses_of(argument.split(","), "CNI_ARGS: IP", INVALID_ENVIRONMENT)
    return None, None
