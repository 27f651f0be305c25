"""Making the kernel's mesh devices as configured: hard interfaces, bat0 and the bridge.

1. `bring_up` makes the kernel agree with a `MeshConfig`: it keeps what is right, changes what
   differs, and never deletes and remakes what carries traffic. It may be called at any time
   and again; what it had to set right it says (`MeshFacts.mended`).
2. What cannot be changed in place (algorithm, kind), or is somebody else's, is an
   InvalidConfig that names the field. A bat0 is ours if it has our alias, or if the caller
   knows that it is (`adopt`).
3. A link that is not there yet is waited for, not refused (`MeshFacts.waiting`): an
   interface that appears later, a peer to whom no route leads, a link that the kernel refuses to
   set up. The others are used meanwhile.
4. A first bring-up that fails leaves nothing that it made; what it found stays. A later one
   stops where it fails, leaves what is right already, and lets no link's trouble keep the
   others from being set right.
5. Hard interfaces are segments shared with other nodes, and one GENEVE device ``gnv<id>``
   per static peer.
6. One MTU for the whole mesh, so that nothing is ever fragmented. This node can carry
   `MeshFacts.limit`; the caller compares it with what others can and passes the least.
7. The bridge holds bat0 and containers only: no STP, no snooping, no address, and no frame
   that it does not forward but hands to the node's own stack past the host filter.

Overheads: batman-adv reserves 32 bytes (net/batman-adv/hard-interface.c); GENEVE without
options takes 50 over IPv4 and 70 over IPv6 (outer IP, UDP 8, GENEVE 8, Ethernet 14).
"""

from __future__ import annotations

import contextlib
import secrets
from ipaddress import ip_address

import msgspec

from netconf import names
from netconf.errors import InvalidConfig, KernelFailure
from netconf.mesh import limit as limits
from netconf.mesh import source
from netconf.mesh.config import MTU_MAX, MTU_MIN, Geneve, Link, MeshConfig, validate
from netconf.netlink import batadv, links
from netconf.netlink.links import Facts
from netconf.netlink.routes import Way
from netconf.netlink.socket import Netlink, NetlinkRequest, doing

BATADV_OVERHEAD = 32
PLAIN_LIMIT = 1500 - BATADV_OVERHEAD
"""Bytes that a mesh over ordinary Ethernet carries. Containers get this MTU while no link is there.
It is not announced as this node's limit then: other nodes would lower their containers' MTU to it,
and they never raise an MTU again."""
GENEVE_OVERHEAD = {4: 50, 6: 70}

ALIAS = "noctule"
"""The alias of every device that Noctule made, by which it knows them again (`ip link show`)."""

GROUP_FWD_MASK = 0xFFF8
"""Forward frames to 01:80:c2:00:00:03–0f, so that the host filter sees them. Otherwise the bridge
hands those to LLDP's group (0e) to the node's own stack without asking any hook (br_handle_frame),
and an IPv4 packet inside would be delivered. The kernel refuses to forward the first three groups
(BR_GROUPFWD_RESTRICTED), which does no harm: 00 is forwarded anyway while STP is off, 01 is
dropped, and 02 passes the input hook."""

BRIDGE_SETTINGS: links.Attributes = [
    ("IFLA_BR_STP_STATE", 0),
    ("IFLA_BR_MCAST_SNOOPING", 0),
    ("IFLA_BR_GROUP_FWD_MASK", GROUP_FWD_MASK),
]


class MeshFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a bring-up."""

    mtu: int
    """MTU that bat0 and the bridge have now, in bytes of payload."""
    limit: int
    """The largest MTU of bat0 that this node's links can carry, in bytes of payload."""
    hard: dict[str, str]
    """MAC by the hard interface's name; other nodes see these as originators and neighbours."""
    mesh_index: int
    bridge_index: int
    mended: tuple[str, ...] = ()
    """One sentence for each thing that was repaired; empty if everything was right."""
    waiting: dict[str, str] = {}
    """By configuration field: why that link or value is not used now, and the fix."""
    advice: tuple[str, ...] = ()
    """One sentence for each setting that works but may not be what the operator meant."""


class _NotYetError(InvalidConfig):
    """A link cannot be used now, but may be later with the same configuration (rule 3)."""


def bring_up(
    mesh: MeshConfig,
    *,
    mesh_mtu: int | None = None,
    floor: int = MTU_MIN,
    before: MeshFacts | None = None,
    adopt: bool = False,
    bridge: str = names.BRIDGE,
    bat: str = names.MESH,
) -> MeshFacts:
    """Make mesh and bridge as configured, in the calling thread's namespace.

    `mesh_mtu` is the least limit other nodes announced, if known; a fixed ``mesh.mtu``
    overrides it. `floor` is the least that a mesh must carry (``netconf.mesh.limit``). `before`
    is what came of the last bring-up, None for the first (rule 4). With `adopt` a bat0 without
    our mark is ours all the same. InvalidConfig or KernelFailure.
    """
    validate(mesh)
    with links.open() as rtnl, batadv.open() as genl:
        site = _Site(mesh, rtnl, genl, before, adopt=adopt)
        try:
            return site.bring_up(mesh_mtu, floor, bridge, bat)
        except BaseException:
            if before is None:
                site.undo()
            raise


class _Site:
    """One bring-up: its sockets, what it has made so far, and what it has found."""

    def __init__(
        self,
        mesh: MeshConfig,
        rtnl: Netlink,
        genl: Netlink,
        before: MeshFacts | None,
        *,
        adopt: bool,
    ) -> None:
        self._mesh = mesh
        self._rtnl = rtnl
        self._genl = genl
        self._before = before
        self._adopt = adopt
        self._made: list[str] = []
        self._routed = source.peers(rtnl) if before is None else set()
        """Peers to whom a rule led before (rule 4)."""
        self._new: set[str] = set()
        """Names of devices that were made or appeared just now. Setting them up is no repair, so it
        is not reported in `_mended`."""
        self._enslaved: list[str] = []
        self._mended: list[str] = []
        self._waiting: dict[str, str] = {}
        self._advice: list[str] = []

    def bring_up(self, mesh_mtu: int | None, floor: int, bridge: str, bat: str) -> MeshFacts:
        """See the function `bring_up`."""
        bat0 = self._bat(bat)
        hard: list[Facts] = []
        for number, link in enumerate(self._mesh.links):
            field = f"mesh.links[{number}]"
            try:
                hard.append(self._link(field, link, bat0))
            except (InvalidConfig, KernelFailure) as error:
                if self._before is None and not isinstance(error, (_NotYetError, KernelFailure)):
                    raise
                refused = isinstance(error, KernelFailure)
                self._waiting[field] = f"{field}: {error.message}" if refused else error.message
                facts = links.get(self._rtnl, link.name)
                if facts is not None and facts.master == bat0.index:
                    # It still belongs to bat0, so other nodes still see its MAC.
                    hard.append(facts)
        self._forget_sources()
        carried = {facts.name: facts.mtu - BATADV_OVERHEAD for facts in hard}
        before = self._before.limit if self._before is not None else None
        limit, faults = limits.limit(carried, floor, before)
        self._waiting |= faults
        if not hard:
            mesh_mtu = min(mesh_mtu or PLAIN_LIMIT, PLAIN_LIMIT)
        mtu = self._mtu(limit, mesh_mtu)
        switch = self._bridge(bridge)
        self._enslave("mesh", bat0, switch)
        self._settle(bat0, mtu)
        self._settle(switch, mtu)
        return MeshFacts(
            mtu=mtu,
            limit=limit,
            hard={facts.name: facts.mac for facts in hard},
            mesh_index=bat0.index,
            bridge_index=switch.index,
            mended=tuple(self._mended),
            waiting=self._waiting,
            advice=tuple(self._advice),
        )

    def undo(self) -> None:
        """Remove what this bring-up made, newest first.

        Failures are ignored: the error that led here is being raised already.
        """
        for name in reversed(self._enslaved):
            self._try(links.set_request(name, master=0))
        for name in reversed(self._made):
            self._try(links.delete_request(name))
        with contextlib.suppress(OSError):
            source.forget(self._rtnl, self._routed)

    def _try(self, request: NetlinkRequest) -> None:
        try:
            self._rtnl.batch([request])
        except OSError:
            return

    def _mend(self, what: str, facts: Facts, request: NetlinkRequest) -> None:
        """Send the `request` that repairs `what`, and report it unless the device is new."""
        if facts.name not in self._new:
            self._mended.append(what)
        self._rtnl.batch([request])

    # -- links to other nodes ------------------------------------------------------------

    def _link(self, field: str, link: Link, bat0: Facts) -> Facts:
        """Make one link a hard interface of bat0 that is up; return its facts."""
        if self._before is not None and field in self._before.waiting:
            self._new.add(link.name)
        if link.geneve is not None:
            facts = self._geneve(f"{field}.geneve", link.geneve)
        else:
            facts = self._interface(field, link.name)
        self._enslave(field, facts, bat0)
        if not facts.up:
            with doing(f"bring {facts.name} up"):
                request = links.set_request(facts.index, up=True)
                self._mend(f"{facts.name} was down", facts, request)
        if self._mesh.algorithm == "BATMAN_V":
            self._throughput(bat0, facts, link.throughput or 0)
        return facts

    def _interface(self, field: str, name: str) -> Facts:
        facts = links.get(self._rtnl, name)
        if facts is None:
            raise _NotYetError(
                f"{field}.interface: no interface {name} in this namespace; "
                "correct the name, or wait until it is there"
            )
        return facts

    def _geneve(self, field: str, geneve: Geneve) -> Facts:
        version = ip_address(geneve.remote).version
        remote = ("IFLA_GENEVE_REMOTE" if version == 4 else "IFLA_GENEVE_REMOTE6", geneve.remote)
        way = self._underlay(field, geneve)
        mtu = self._carried(way) - GENEVE_OVERHEAD[version]
        facts = links.get(self._rtnl, geneve.name)
        if facts is None:
            data: links.Attributes = [("IFLA_GENEVE_ID", geneve.id), remote]
            extra: links.Attributes = [("IFLA_MTU", mtu)]
            mac = self._before.hard.get(geneve.name) if self._before is not None else None
            mac = mac or _mac(source.identity(geneve, way))
            return self._make(geneve.name, "geneve", data, extra, mac)
        if facts.kind != "geneve":
            raise InvalidConfig(
                f"{field}.id: {geneve.name} exists and is no GENEVE device; choose another id"
            )
        with doing(f"change {geneve.name}"):
            if facts.data is None or facts.data.get_attr(remote[0]) != geneve.remote:
                data = [("IFLA_GENEVE_ID", geneve.id), remote]
                change = links.change_data_request(facts.index, "geneve", data)
                self._mend(f"{facts.name} did not lead to {geneve.remote}", facts, change)
        self._settle(facts, mtu)
        return msgspec.structs.replace(facts, mtu=mtu, up=True)

    def _underlay(self, field: str, geneve: Geneve) -> Way:
        """Make the tunnel send from its `local` address, if it has one; return the way to its peer.

        _NotYetError if there is no route to the peer, or if this node does not have `local`.
        """
        with doing(f"find the way to {geneve.remote}"):
            if geneve.local and not source.is_ours(self._rtnl, geneve.local):
                raise _NotYetError(
                    f"{field}.local: {geneve.local} is no address of this node; "
                    "correct it, or leave it out to have the kernel choose one"
                )
            way = source.way(self._rtnl, geneve)
        if way is None:
            raise _NotYetError(
                f"{field}.remote: no route to {geneve.remote} in this namespace; "
                "correct the address or bring the underlay up first"
            )
        with doing(f"have {geneve.name} send from {way.source}"):
            if geneve.local:
                if source.settle(self._rtnl, geneve, way):
                    self._mended.append(f"{geneve.name} did not send from {geneve.local}")
            elif several := source.several(self._rtnl, way):
                self._advice.append(
                    f"{field}.local: left out, so {geneve.name} sends from {way.source}, of "
                    f"{', '.join(several)}; give it if the peer's remote is another of them"
                )
        return way

    def _carried(self, way: Way) -> int:
        """Return the MTU of a way to a peer: bytes including the IP header."""
        below = links.get(self._rtnl, way.link)
        return way.mtu or (below.mtu if below is not None else MTU_MAX)

    def _forget_sources(self) -> None:
        """Remove the rules and routes of tunnels that were removed or no longer have a `local`."""
        tunnels = [link.geneve for link in self._mesh.links if link.geneve is not None]
        if self._before is None or tunnels:
            with doing("set the routes of the GENEVE tunnels"):
                source.forget(self._rtnl, {each.remote for each in tunnels if each.local})

    def _throughput(self, bat0: Facts, facts: Facts, kbit: int) -> None:
        with doing(f"set the throughput of {facts.name}"):
            known = {
                hard.ifindex: hard.throughput_override
                for hard in batadv.hard_interfaces(self._genl, bat0.index)
            }
            wanted = kbit // batadv.KBIT_PER_UNIT * batadv.KBIT_PER_UNIT
            if known.get(facts.index) != wanted:
                if facts.name not in self._new and facts.name not in self._enslaved:
                    self._mended.append(f"{facts.name} had another throughput override")
                batadv.override_throughput(self._genl, bat0.index, facts.index, kbit)

    # -- bat0 and the bridge -------------------------------------------------------------

    def _bat(self, bat: str) -> Facts:
        algorithm = self._mesh.algorithm
        facts = links.get(self._rtnl, bat)
        if facts is None:
            facts = self._make(bat, "batadv", [("IFLA_BATADV_ALGO_NAME", algorithm)], [])
        elif facts.kind != "batadv":
            raise InvalidConfig(f"mesh: {bat} exists and is no batman-adv device; rename it")
        elif facts.alias != ALIAS and not self._adopt:
            raise InvalidConfig(
                f"mesh: {bat} exists and Noctule did not make it; if nothing needs it, delete it "
                f"(ip link del {bat}), otherwise rename it (ip link set {bat} name bat1)"
            )
        with doing(f"set up {bat}"):
            settings = batadv.mesh(self._genl, facts.index)
            if settings.algorithm != algorithm:
                raise InvalidConfig(
                    f"mesh.algorithm: {bat} runs {settings.algorithm} and cannot be changed "
                    f"while it exists; set that, or delete {bat} on every node first"
                )
            if facts.alias != ALIAS:
                self._rtnl.batch([links.set_request(facts.index, alias=ALIAS)])
            if wrong := batadv.unfit(settings):
                if bat not in self._new:
                    self._mended.append(f"{bat} had {' and '.join(wrong)}")
                batadv.fit(self._genl, facts.index)
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
                self._mend(f"{bridge} had other settings", facts, change)
        return facts

    def _make(
        self,
        name: str,
        kind: str,
        data: links.Attributes,
        extra: links.Attributes,
        mac: str | None = None,
    ) -> Facts:
        with doing(f"make the {kind} device {name}"):
            # Choose the MAC ourselves: one that the kernel chose at random is replaced by
            # systemd-udevd a moment later (systemd.link, MACAddressPolicy=persistent), when other
            # nodes know the old one already.
            address = ("IFLA_ADDRESS", mac or _mac(secrets.token_bytes(5)))
            made = links.create_request(name, kind, data, [address, *extra])
            # Make the device and set its alias in one batch: after a crash in between, the next
            # bring-up would take the device for somebody else's.
            self._rtnl.batch([made, links.set_request(name, alias=ALIAS)])
            self._made.append(name)
            if name not in self._new:
                self._mended.append(f"{name} was missing")
            self._new.add(name)
            return links.facts(self._rtnl.batch([links.get_request(name)])[0][0])

    # -- what all of them need -----------------------------------------------------------

    def _enslave(self, field: str, facts: Facts, master: Facts) -> None:
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
                what = f"{facts.name} was no part of {master.name}"
                self._mend(what, facts, links.set_request(facts.index, master=master.index))
                self._enslaved.append(facts.name)

    def _settle(self, facts: Facts, mtu: int) -> None:
        """Give a device of ours its MTU, turn its own IPv6 addresses off, and bring it up."""
        with doing(f"set up {facts.name}"):
            now = links.get(self._rtnl, facts.index) or facts
            self._silence(now)
            if now.mtu != mtu:
                request = links.set_request(facts.index, mtu=mtu)
                if self._before is not None and now.mtu == self._before.mtu:
                    # It has what we set last, so nothing was wrong: the mesh's MTU has changed.
                    self._rtnl.batch([request])
                else:
                    self._mend(f"{facts.name} had an MTU of {now.mtu}, not {mtu}", facts, request)
            if not now.up:
                request = links.set_request(facts.index, up=True)
                self._mend(f"{facts.name} was down", facts, request)

    def _silence(self, facts: Facts) -> None:
        if facts.addrgen not in (links.IN6_ADDR_GEN_MODE_NONE, -1):
            what = f"{facts.name} would have given itself IPv6 addresses"
            self._mend(what, facts, links.set_request(facts.index, quiet=True))

    def _mtu(self, limit: int, mesh_mtu: int | None) -> int:
        told = self._mesh.mtu
        if told == "auto":
            return min(limit, mesh_mtu or limit)
        if told <= limit:
            return told
        why = (
            f"mesh.mtu: this node's links carry at most {limit} bytes; "
            f"set {limit} or less, or raise the MTU of its links"
        )
        if self._before is None:
            raise InvalidConfig(why)
        self._waiting["mesh.mtu"] = why
        return limit


def _mac(octets: bytes) -> str:
    """Return the MAC ``06`` and five `octets`: locally administered, unicast, and no replica's."""
    return "06:" + octets.hex(":")
