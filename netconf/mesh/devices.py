"""The node's half of the switch: hard interfaces, bat0, bridge.

1. `bring_up` makes the kernel agree with a `MeshConfig`: it keeps what is right, changes
   what differs, and never deletes and remakes what carries traffic. What cannot be
   changed in place (algorithm, kind) is an InvalidConfig that names the field.
2. When it fails, nothing that this call created is left; what it found stays.
3. Hard interfaces are segments shared with other nodes, and one GENEVE device ``gnv<id>``
   per static peer.
4. One MTU for the whole mesh, so that nothing is ever fragmented. This node can carry
   `MeshFacts.limit`; the caller compares it with what others can and passes the least.
5. The bridge holds bat0 and containers only: no STP, no snooping, no address, and no frame
   that it does not forward but hands to the node's own stack past the host filter.

Overheads: batman-adv reserves 32 bytes (net/batman-adv/hard-interface.c); GENEVE without
options takes 50 over IPv4 and 70 over IPv6 (outer IP, UDP 8, GENEVE 8, Ethernet 14).
"""

from __future__ import annotations

import errno
import secrets
from ipaddress import ip_address
from typing import Literal

import msgspec

from netconf import names
from netconf.errors import InvalidConfig
from netconf.netlink import batadv, links
from netconf.netlink.links import Facts
from netconf.netlink.socket import Netlink, NetlinkRequest, doing

BATADV_OVERHEAD = 32
MTU_MAX = 1500
"""ETH_DATA_LEN: bat0 takes no more (batadv_hardif_min_mtu)."""
MTU_MIN = 576
"""Every IPv4 host must take packets of 576 bytes (RFC 791); less is a mistake."""
GENEVE_OVERHEAD = {4: 50, 6: 70}
GENEVE_ID_MAX = (1 << 24) - 1

GROUP_FWD_MASK = 0xFFF8
"""Forward, and hence filter, frames to 01:80:c2:00:00:03–0f: a bridge gives LLDP's (0e)
to the node's own stack without asking any hook (br_handle_frame), and an IPv4 packet inside
would be delivered. The first three cannot be forwarded (BR_GROUPFWD_RESTRICTED), but 00 is
without STP, 01 is dropped, and 02 passes the input hook."""

BRIDGE_SETTINGS: links.Attributes = [
    ("IFLA_BR_STP_STATE", 0),
    ("IFLA_BR_MCAST_SNOOPING", 0),
    ("IFLA_BR_GROUP_FWD_MASK", GROUP_FWD_MASK),
]


class Geneve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A static tunnel to one peer; both ends give the same id."""

    remote: str
    """The peer's underlay address, IPv4 or IPv6."""
    id: int
    """Virtual network identifier, 0–16777215, one per tunnel of this node."""

    @property
    def name(self) -> str:
        """The device's name."""
        return f"gnv{self.id}"


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One link of the mesh: either an interface or a GENEVE tunnel."""

    interface: str | None = None
    geneve: Geneve | None = None
    throughput: int | None = None
    """kbit/s; BATMAN_V believes it instead of asking the driver."""


class MeshConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``mesh`` section of node.yaml."""

    links: list[Link]
    algorithm: Literal["BATMAN_IV", "BATMAN_V"] = "BATMAN_IV"
    mtu: int | Literal["auto"] = "auto"


class MeshFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    mtu: int
    """bytes of payload that bat0 and the bridge have now"""
    limit: int
    """the most this node's links can carry"""
    hard: dict[str, str]
    """hard interface name → MAC; other nodes see these as originators and neighbours"""
    mesh_index: int
    bridge_index: int


def bring_up(
    mesh: MeshConfig,
    *,
    mesh_mtu: int | None = None,
    bridge: str = names.BRIDGE,
    bat: str = names.MESH,
) -> MeshFacts:
    """Make mesh and bridge as configured, in the calling thread's namespace.

    `mesh_mtu` is the least limit other nodes announced, if known; a fixed ``mesh.mtu``
    overrides it. InvalidConfig or KernelFailure, and then nothing new is left.
    """
    validate(mesh)
    with links.open() as rtnl, batadv.open() as genl:
        site = _Site(rtnl, genl)
        try:
            return site.bring_up(mesh, mesh_mtu, bridge, bat)
        except BaseException:
            site.undo()
            raise


def validate(mesh: MeshConfig) -> None:
    """Raise InvalidConfig for what is wrong whatever the kernel has."""
    if not mesh.links:
        raise InvalidConfig("mesh.links: there is none; name an interface or a GENEVE peer")
    seen: dict[str, int] = {}
    for number, link in enumerate(mesh.links):
        field = f"mesh.links[{number}]"
        if (link.interface is None) == (link.geneve is None):
            raise InvalidConfig(f"{field}: give either interface or geneve")
        if link.geneve is not None:
            _validate_geneve(f"{field}.geneve", link.geneve)
        name = link.interface or (link.geneve.name if link.geneve else "")
        if name in seen:
            raise InvalidConfig(f"{field}: {name} is link {seen[name]} already; leave one out")
        seen[name] = number
        if link.throughput is not None and link.throughput < batadv.KBIT_PER_UNIT:
            raise InvalidConfig(f"{field}.throughput: give kbit/s, at least 100")
    if mesh.mtu != "auto" and not MTU_MIN <= mesh.mtu <= MTU_MAX:
        raise InvalidConfig(f"mesh.mtu: {mesh.mtu} is not between {MTU_MIN} and {MTU_MAX}")


def _validate_geneve(field: str, geneve: Geneve) -> None:
    try:
        ip_address(geneve.remote)
    except ValueError as error:
        raise InvalidConfig(f"{field}.remote: {error}; give the peer's address") from error
    if not 0 <= geneve.id <= GENEVE_ID_MAX:
        raise InvalidConfig(f"{field}.id: {geneve.id} is not between 0 and {GENEVE_ID_MAX}")


class _Site:
    """One bring-up: its sockets, and what it has made so far."""

    def __init__(self, rtnl: Netlink, genl: Netlink) -> None:
        self._rtnl = rtnl
        self._genl = genl
        self._made: list[str] = []
        self._enslaved: list[str] = []

    def bring_up(self, mesh: MeshConfig, mesh_mtu: int | None, bridge: str, bat: str) -> MeshFacts:
        """See `bring_up`."""
        hard = [self._hard(number, link) for number, link in enumerate(mesh.links)]
        limit = min(MTU_MAX, *(facts.mtu - BATADV_OVERHEAD for facts in hard))
        mtu = _mtu(mesh, limit, mesh_mtu)
        bat0 = self._bat(mesh, bat)
        for number, (link, facts) in enumerate(zip(mesh.links, hard, strict=True)):
            self._enslave(f"mesh.links[{number}]", facts, bat0, up=True)
            if mesh.algorithm == "BATMAN_V":
                self._throughput(bat0, facts, link.throughput or 0)
        switch = self._bridge(bridge)
        self._enslave("mesh", bat0, switch, up=False)
        self._settle(bat0, mtu)
        self._settle(switch, mtu)
        return MeshFacts(
            mtu=mtu,
            limit=limit,
            hard={facts.name: facts.mac for facts in hard},
            mesh_index=bat0.index,
            bridge_index=switch.index,
        )

    def undo(self) -> None:
        """Remove what this bring-up made, newest first; best effort, the error is known."""
        for name in reversed(self._enslaved):
            self._try(links.set_request(name, master=0))
        for name in reversed(self._made):
            self._try(links.delete_request(name))

    def _try(self, request: NetlinkRequest) -> None:
        try:
            self._rtnl.batch([request])
        except OSError:
            return

    def _hard(self, number: int, link: Link) -> Facts:
        if link.geneve is not None:
            return self._geneve(f"mesh.links[{number}].geneve", link.geneve)
        name = link.interface or ""
        facts = links.get(self._rtnl, name)
        if facts is None:
            there = ", ".join(other.name for other in links.every(self._rtnl) if other.mac)
            raise InvalidConfig(
                f"mesh.links[{number}].interface: no interface {name} in this namespace; "
                f"name one of: {there or 'none has an Ethernet address'}"
            )
        return facts

    def _geneve(self, field: str, geneve: Geneve) -> Facts:
        version = ip_address(geneve.remote).version
        remote = ("IFLA_GENEVE_REMOTE" if version == 4 else "IFLA_GENEVE_REMOTE6", geneve.remote)
        mtu = self._underlay_mtu(field, geneve) - GENEVE_OVERHEAD[version]
        facts = links.get(self._rtnl, geneve.name)
        if facts is None:
            data: links.Attributes = [("IFLA_GENEVE_ID", geneve.id), remote]
            extra: links.Attributes = [("IFLA_MTU", mtu)]
            return self._make(geneve.name, "geneve", data, extra)
        if facts.kind != "geneve":
            raise InvalidConfig(
                f"{field}.id: {geneve.name} exists and is no GENEVE device; choose another id"
            )
        with doing(f"change {geneve.name}"):
            if facts.data is None or facts.data.get_attr(remote[0]) != geneve.remote:
                data = [("IFLA_GENEVE_ID", geneve.id), remote]
                self._rtnl.batch([links.change_data_request(facts.index, "geneve", data)])
            self._settle(facts, mtu)
        return msgspec.structs.replace(facts, mtu=mtu)

    def _underlay_mtu(self, field: str, geneve: Geneve) -> int:
        try:
            index, mtu = links.route_to(self._rtnl, geneve.remote)
        except OSError as error:
            if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                raise
            raise InvalidConfig(
                f"{field}.remote: no route to {geneve.remote} in this namespace; "
                "correct the address or bring the underlay up first"
            ) from error
        below = links.get(self._rtnl, index)
        return mtu or (below.mtu if below is not None else MTU_MAX)

    def _bat(self, mesh: MeshConfig, bat: str) -> Facts:
        facts = links.get(self._rtnl, bat)
        if facts is None:
            algorithm: links.Attributes = [("IFLA_BATADV_ALGO_NAME", mesh.algorithm)]
            facts = self._make(bat, "batadv", algorithm, [])
        elif facts.kind != "batadv":
            raise InvalidConfig(f"mesh: {bat} exists and is no batman-adv device; rename it")
        with doing(f"set up {bat}"):
            settings = batadv.mesh(self._genl, facts.index)
            if settings.algorithm != mesh.algorithm:
                raise InvalidConfig(
                    f"mesh.algorithm: {bat} runs {settings.algorithm} and cannot be changed "
                    f"while it exists; set that, or delete {bat} on every node first"
                )
            if settings.bridge_loop_avoidance or settings.distributed_arp_table:
                batadv.quieten(self._genl, facts.index)
        return facts

    def _bridge(self, bridge: str) -> Facts:
        facts = links.get(self._rtnl, bridge)
        if facts is None:
            return self._make(bridge, "bridge", BRIDGE_SETTINGS, [])
        if facts.kind != "bridge":
            raise InvalidConfig(f"mesh: {bridge} exists and is no bridge; rename it")
        data = facts.data
        if data is None or any(data.get_attr(key) != value for key, value in BRIDGE_SETTINGS):
            change = links.change_data_request(facts.index, "bridge", BRIDGE_SETTINGS)
            with doing(f"set up {bridge}"):
                self._rtnl.batch([change])
        return facts

    def _make(self, name: str, kind: str, data: links.Attributes, extra: links.Attributes) -> Facts:
        with doing(f"make the {kind} device {name}"):
            # An address of our own choosing, or systemd-udevd replaces it a moment later
            # (systemd.link, MACAddressPolicy=persistent), and others would know the old one.
            address = ("IFLA_ADDRESS", _random_mac())
            request = links.create_request(name, kind, data, [address, *extra])
            self._rtnl.batch([request])
            self._made.append(name)
            return links.facts(self._rtnl.batch([links.get_request(name)])[0][0])

    def _enslave(self, field: str, facts: Facts, master: Facts, *, up: bool) -> None:
        with doing(f"make {facts.name} part of {master.name}"):
            if facts.master not in (0, master.index):
                other = links.get(self._rtnl, facts.master)
                raise InvalidConfig(
                    f"{field}: {facts.name} belongs to {other.name if other else 'another device'}"
                    f" and cannot be part of {master.name}; free it first"
                )
            if facts.kind in ("geneve", "batadv"):
                self._silence(facts)
            if facts.master == 0:
                self._rtnl.batch([links.set_request(facts.index, master=master.index)])
                self._enslaved.append(facts.name)
            if up and not facts.up:
                self._rtnl.batch([links.set_request(facts.index, up=True)])

    def _throughput(self, bat0: Facts, facts: Facts, kbit: int) -> None:
        with doing(f"set the throughput of {facts.name}"):
            known = {
                hard.ifindex: hard.throughput_override
                for hard in batadv.hard_interfaces(self._genl, bat0.index)
            }
            wanted = kbit // batadv.KBIT_PER_UNIT * batadv.KBIT_PER_UNIT
            if known.get(facts.index) != wanted:
                batadv.override_throughput(self._genl, bat0.index, facts.index, kbit)

    def _settle(self, facts: Facts, mtu: int) -> None:
        """Give a link of ours its MTU, silence and life, where they differ."""
        now = links.get(self._rtnl, facts.index) or facts
        with doing(f"set up {facts.name}"):
            self._silence(now)
            if now.mtu != mtu:
                self._rtnl.batch([links.set_request(facts.index, mtu=mtu)])
            if not now.up:
                self._rtnl.batch([links.set_request(facts.index, up=True)])

    def _silence(self, facts: Facts) -> None:
        if facts.addrgen not in (links.IN6_ADDR_GEN_MODE_NONE, -1):
            self._rtnl.batch([links.set_request(facts.index, quiet=True)])


def _random_mac() -> str:
    """Return a locally administered unicast MAC that is no replica's."""
    return "06:" + secrets.token_bytes(5).hex(":")


def _mtu(mesh: MeshConfig, limit: int, mesh_mtu: int | None) -> int:
    if mesh.mtu == "auto":
        return min(limit, mesh_mtu or limit)
    if mesh.mtu > limit:
        raise InvalidConfig(
            f"mesh.mtu: this node's links carry at most {limit} bytes; "
            f"set {limit} or less, or raise the MTU of its links"
        )
    return mesh.mtu
