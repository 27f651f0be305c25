"""``node.yaml``, the configuration of this node, which is checked before the daemon does anything.

1. Paths and names have defaults; addresses and identities do not.
2. The slice lies in the pool; the VIP range overlaps neither. IPv6 addresses are derived from
   IPv4 ones (`netconf.names`, rule 4), so the IPv6 network is not divided in this way.
3. The fields of ``mesh`` are defined and checked by ``netconf.mesh``.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import msgspec
from cryptography import x509

from daemon import yamlfile
from daemon.fabric.interface import LEASE_MS, Settings, parse_endpoint
from daemon.model.identity import parse_certificates
from daemon.model.identity import read as pem
from daemon.model.trust import Trust
from daemon.naming import NAME
from daemon.paths import Paths
from netconf import names
from netconf.errors import InvalidConfig, IOFailure
from netconf.mesh.config import MeshConfig, validate

ULA = IPv6Network("fc00::/7")
"""Unique local addresses (RFC 4193)."""


class Addresses(msgspec.Struct, forbid_unknown_fields=True):
    """IPv4 networks in CIDR form: the cluster's pool, this node's slice of it, and all VIPs."""

    pool: str
    slice: str
    vips: str
    ula: str = ""
    """The cluster's IPv6 network, CIDR, in the form of RFC 5952 once read. Empty: IPv4 only."""


class IdentityFiles(msgspec.Struct, forbid_unknown_fields=True):
    """PEM files: the CA that nodes trust, this node's certificate and its key."""

    ca: str
    certificate: str
    key: str


class Fabric(msgspec.Struct, forbid_unknown_fields=True):
    """Where the daemon listens for its peers (``tls/HOST:PORT``) and whom it dials."""

    listen: list[str]
    identity: IdentityFiles
    connect: list[str] = []
    confirm_ms: int = 100
    """Milliseconds that ADD waits at most for the neighbours' confirmation (0–10,000)."""
    lease_ms: int = LEASE_MS
    """Milliseconds of silence after which a peer's daemon counts as gone (100–60,000)."""


class Authority(msgspec.Struct, forbid_unknown_fields=True):
    """The path of the PEM file with the certificate of the authority that signs policy."""

    authority: str


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """The whole of ``node.yaml``."""

    cluster: str
    mesh: MeshConfig
    addresses: Addresses
    fabric: Fabric
    policy: Authority
    node: str = ""
    paths: Paths = msgspec.field(default_factory=Paths)


def read(path: Path) -> Config:
    """Return the configuration in the file at `path`.

    Raises IOFailure when it cannot be read, DecodeFailure when it is not YAML, and
    InvalidConfig naming the field otherwise.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IOFailure(f"cannot read {path}: {error}; give the file with --config") from error
    return parse(text, path.name)


def parse(text: str, name: str = "node.yaml") -> Config:
    """Return the configuration in `text`; `name` is the file's name in messages."""
    config = yamlfile.load(text, name, Config)
    if not config.node:
        config.node = socket.gethostname()
    try:
        _check(config)
    except InvalidConfig as error:
        raise InvalidConfig(f"{name}: {error.message}") from error
    return config


def _check(config: Config) -> None:
    for field, value in (("cluster", config.cluster), ("node", config.node)):
        if not NAME.fullmatch(value):
            raise InvalidConfig(
                f'{field}: "{value}" is not a name; begin with a letter or digit and use '
                "letters, digits, '_', '.' and '-' only"
            )
    _check_addresses(config.addresses)
    validate(config.mesh)
    if config.addresses.ula:
        _check_ula(config)
    _check_fabric(config.fabric)
    for name in ("state", "socket", "cache"):
        value = getattr(config.paths, name)
        if not Path(value).is_absolute():
            raise InvalidConfig(f'paths.{name}: "{value}" is relative; give an absolute path')
    # sun_path of unix(7) holds 108 bytes with its terminating zero.
    if len(config.paths.socket.encode()) > 107:
        raise InvalidConfig("paths.socket: longer than the 107 bytes a unix socket may have")


def _check_addresses(addresses: Addresses) -> None:
    networks: dict[str, IPv4Network] = {}
    for name in ("pool", "slice", "vips"):
        value = getattr(addresses, name)
        try:
            networks[name] = IPv4Network(value)
        except ValueError as error:
            raise InvalidConfig(
                f"addresses.{name}: {error}; write an IPv4 network such as 10.64.0.0/12"
            ) from error
    pool, slice_, vips = networks["pool"], networks["slice"], networks["vips"]
    if not slice_.subnet_of(pool):
        raise InvalidConfig(
            f"addresses.slice: {slice_} is outside the pool {pool}; choose a part of the pool"
        )
    if slice_.prefixlen > 30:
        raise InvalidConfig(f"addresses.slice: {slice_} has no room for a replica; use /30 or more")
    if vips.overlaps(pool):
        raise InvalidConfig(
            f"addresses.vips: {vips} overlaps the pool {pool}; choose a range beside it"
        )


def _check_ula(config: Config) -> None:
    try:
        ula = IPv6Network(config.addresses.ula)
    except ValueError as error:
        raise InvalidConfig(
            f"addresses.ula: {error}; write an IPv6 network such as fd4e:6f63:7475::/96"
        ) from error
    if not ula.subnet_of(ULA):
        raise InvalidConfig(
            f"addresses.ula: {ula} is not unique local; take 40 random bits after fd (RFC 4193)"
        )
    if ula.prefixlen > 96:
        raise InvalidConfig(
            f"addresses.ula: {ula} is longer than /96; an IPv4 address must fit behind it"
        )
    if config.mesh.mtu != "auto" and config.mesh.mtu < names.MTU_MIN6:
        raise InvalidConfig(
            f"mesh.mtu: {config.mesh.mtu} leaves a container less than the 1280 bytes of IPv6; "
            f"choose {names.MTU_MIN6} or more, or leave addresses.ula out on every node"
        )
    config.addresses.ula = str(ula)


def _check_fabric(fabric: Fabric) -> None:
    for name in ("listen", "connect"):
        for index, endpoint in enumerate(getattr(fabric, name)):
            host, _ = parse_endpoint(endpoint, field=f"fabric.{name}[{index}]")
            if host in ("0.0.0.0", "::"):
                raise InvalidConfig(
                    f"fabric.{name}[{index}]: others are told to dial just this; "
                    f"write an address of this node instead of {host}"
                )
    if not fabric.listen:
        raise InvalidConfig("fabric.listen: empty; peers must be able to dial this node")
    if not 0 <= fabric.confirm_ms <= 10_000:
        raise InvalidConfig("fabric.confirm_ms: choose between 0 and 10000 milliseconds")
    if not 100 <= fabric.lease_ms <= 60_000:
        raise InvalidConfig("fabric.lease_ms: choose between 100 and 60000 milliseconds")


def trust_of(config: Config, roots: Sequence[x509.Certificate]) -> Trust:
    """Return the trust in the CAs `roots` and in the policy authority's certificate.

    Raises IOFailure or InvalidConfig, naming the field, if that certificate cannot be used.
    """
    field = "policy.authority"
    pinned = parse_certificates(pem(Path(config.policy.authority), field), field)[0]
    return Trust(roots, pinned)


def fabric_settings(
    config: Config, endpoints: Iterable[str], speakers: frozenset[str] | None
) -> Settings:
    """Return the settings with which this node joins the fabric.

    `endpoints` (``tls/HOST:PORT``) are dialled. `speakers` are the nodes that may send messages,
    None for all that the CA certified.
    """
    paths = config.fabric.identity
    return Settings(
        cluster=config.cluster,
        node=config.node,
        listen=tuple(config.fabric.listen),
        connect=tuple(endpoints),
        nodes=speakers,
        ca=paths.ca,
        certificate=paths.certificate,
        key=paths.key,
        lease_ms=config.fabric.lease_ms,
    )
