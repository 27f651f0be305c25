"""Comparing an attachment's links with what attach made, and repairing them.

1. A difference is one plain sentence and the requests that set it right, or none where only a
   new attachment helps: lost keys, another MAC inside, a device that is gone.
2. Outside the container: the veth pair's state, master and MTU, the port's options and its
   forwarding entry, the token buckets. Inside: the SecY's settings, the sending key, the
   addresses, the routes to the VIPs, and that the link is up and silent.
3. Permanent neighbours, receiving keys and nftables follow the plan and are compared with it
   (``netconf.program``).
4. What others add is no business of ours: further addresses, routes and rules, a smaller MTU
   inside, a queue where no limit was asked for.
5. Setting right harms nothing that works: every request is one of those that made the
   attachment, repeated.
6. Every MACsec device has a SecY. One that the kernel's listing leaves out has more channels
   than fit a message (`netconf.netlink.macsec`), and nothing is said of it.
"""

from __future__ import annotations

import msgspec

from netconf import keys, names
from netconf.attach.attachment import VC_EXTRA, Attachment, NodeNet
from netconf.attach.state import State
from netconf.errors import TryAgain
from netconf.namespace import Namespace, identity
from netconf.netlink import links, macsec, routes, shaping
from netconf.netlink.links import Facts
from netconf.netlink.socket import Netlink, NetlinkRequest, doing

FORWARDING = 3
"""BR_STATE_FORWARDING, include/uapi/linux/if_bridge.h."""


class Difference(msgspec.Struct, frozen=True):
    """One thing that is not as attach made it."""

    what: str
    mending: tuple[NetlinkRequest, ...] = ()
    """The requests that repair it, in this order; empty if a person has to (rule 1)."""


def mend(node: NodeNet, state: State, attachment_id: str) -> list[str]:
    """Repair an attachment's links as far as possible; return a sentence for each difference.

    An attachment that is being attached or detached just now, or whose namespace is gone, is left
    alone, and the list is empty. KernelFailure if the kernel cannot be read.
    """
    try:
        with state.holding(attachment_id, timeout=0):
            made = state.get(attachment_id)
            if made is None or made.phase != "ready" or identity(made.netns) != made.netns_id:
                return []
            return _mend(msgspec.structs.replace(node, ula=made.ula), made)
    except TryAgain:
        return []


def _mend(node: NodeNet, made: Attachment) -> list[str]:
    with (
        Namespace.open_known(made.netns, made.netns_id) as netns,
        doing(f"read back the links of {made.id}"),
    ):
        with links.open() as rtnl:
            found = [(each, _settle(rtnl, each)) for each in outside(rtnl, node, made)]
        with links.open(netns) as rtnl, macsec.open(netns) as genl:
            found += [(each, _settle(rtnl, each)) for each in inside(rtnl, genl, node, made)]
    return [f"{difference.what}; {outcome}" for difference, outcome in found]


def _settle(rtnl: Netlink, difference: Difference) -> str:
    """Repair a difference; return the outcome in words."""
    if not difference.mending:
        return "recreate the container"
    try:
        for request in difference.mending:
            rtnl.batch([request])
    except OSError as error:
        return f"it could not be set right ({error.strerror}): recreate the container"
    return "set right"


# -- outside -----------------------------------------------------------------------------


def outside(rtnl: Netlink, node: NodeNet, made: Attachment) -> list[Difference]:
    """Return the differences in the node's namespace, where `rtnl` was opened. OSError."""
    bridge = links.get(rtnl, node.bridge)
    vh, vc = links.get(rtnl, made.vh), links.get(rtnl, made.vc)
    if vh is None or vc is None:
        missing = [name for name, at in ((made.vh, vh), (made.vc, vc)) if at is None]
        return [Difference(f"{name} is missing on the node") for name in missing]
    found = []
    for facts, mtu, mac in (
        (vc, made.mtu + VC_EXTRA, made.mac),
        (vh, made.mtu, names.port_mac_of(made.address)),
    ):
        if facts.mac != mac:
            what = f"{facts.name} has MAC {facts.mac}, not {mac}"
            found.append(Difference(what, (links.set_request(facts.index, mac=mac),)))
        if facts.mtu != mtu:
            what = f"{facts.name} has MTU {facts.mtu}, not {mtu}"
            found.append(Difference(what, (links.set_request(facts.index, mtu=mtu),)))
        if facts.addrgen not in (links.IN6_ADDR_GEN_MODE_NONE, -1):
            what = f"{facts.name} would give itself IPv6 addresses"
            found.append(Difference(what, (links.set_request(facts.index, quiet=True),)))
    if bridge is None:
        found.append(Difference(f"{node.bridge} is missing on the node"))
    else:
        found += _port(rtnl, bridge, vh, made)
    for facts in (vc, vh):
        if not facts.up:
            up = links.set_request(facts.index, up=True)
            found.append(Difference(f"{facts.name} is down", (up,)))
    ends = ((vh.name, vh.index), (vc.name, vc.index))
    wanted = shaping.buckets(made.bandwidth, made.mtu + VC_EXTRA)
    found += [
        Difference(what, request) for what, request in shaping.differences(rtnl, ends, wanted)
    ]
    return found


def port_requests(index: int, mac: str) -> tuple[NetlinkRequest, ...]:
    """Return the requests that make a bridge port a container's port.

    They close the port (`links.CLOSED_PORT`) and enter `mac` as the only MAC behind it.
    """
    return links.port_request(index, links.CLOSED_PORT), links.forward_request(index, mac)


def _port(rtnl: Netlink, bridge: Facts, vh: Facts, made: Attachment) -> list[Difference]:
    """Return the differences in the port's master, options, state and forwarding entry."""
    closed = port_requests(vh.index, made.mac)
    if vh.master != bridge.index:
        master = links.set_request(vh.index, master=bridge.index)
        return [Difference(f"{vh.name} is not a port of {bridge.name}", (master, *closed))]
    found = []
    options = {} if vh.port is None else {name: vh.port.get_attr(name) for name, _ in _OPTIONS}
    if wrong := [name for name, value in _OPTIONS if options.get(name) not in (value, None)]:
        said = ", ".join(name.removeprefix("IFLA_BRPORT_").lower() for name in wrong)
        options_back = links.port_request(vh.index, _OPTIONS)
        found.append(
            Difference(f"{vh.name} has other options as a bridge port: {said}", (options_back,))
        )
    if vh.running and vh.port is not None and vh.port.get_attr("IFLA_BRPORT_STATE") != FORWARDING:
        state = links.port_request(vh.index, [("IFLA_BRPORT_STATE", FORWARDING)])
        found.append(Difference(f"{vh.name} does not forward", (state,)))
    entry = links.forwarded(rtnl, vh.index, made.mac)
    if entry is None or entry.port != vh.index or not entry.fixed:
        what = f"{bridge.name} has no fixed forwarding entry of {made.mac} at {vh.name}"
        found.append(Difference(what, closed[1:]))
    return found


_OPTIONS: links.Attributes = [
    *links.CLOSED_PORT,
    ("IFLA_BRPORT_MODE", 0),
    ("IFLA_BRPORT_ISOLATED", 0),
]
"""A container's port is closed and sends no frame back to where it came from (no hairpin mode). It
is not isolated: an isolated port could not reach the ports of other containers."""


# -- inside ------------------------------------------------------------------------------


def inside(rtnl: Netlink, genl: Netlink, node: NodeNet, made: Attachment) -> list[Difference]:
    """Return the differences in the container's namespace, where both sockets are open. OSError."""
    facts = links.get(rtnl, made.ifname)
    if facts is None or facts.kind != "macsec":
        return [Difference(f"{made.ifname} is not a MACsec device")]
    found = _secy(macsec.dump(genl).get(facts.index), made, facts.index)
    if facts.mac != made.mac:
        found.append(Difference(f"its MAC is {facts.mac}, not {made.mac}"))
    most = made.mtu - names.MACSEC_OVERHEAD
    if facts.mtu > most:
        lower = links.set_request(facts.index, mtu=most)
        found.append(Difference(f"its MTU is {facts.mtu}, above {most}", (lower,)))
    if not facts.noarp:
        silent = links.set_request(facts.index, noarp=True)
        found.append(Difference("it asks by ARP", (silent,)))
    if facts.addrgen not in (links.IN6_ADDR_GEN_MODE_NONE, -1):
        silent = links.set_request(facts.index, quiet=True)
        found.append(Difference("it would give itself IPv6 addresses", (silent,)))
    if not facts.up:
        found.append(Difference("it is down", (links.set_request(facts.index, up=True),)))
    there = {f"{address}/{n}" for address, n in routes.addresses(rtnl, facts.index).items()}
    for address in node.addresses(made.address):
        if address not in there:
            back = routes.address_request(facts.index, address)
            found.append(Difference(f"it has no address {address}", (back,)))
    for network in node.routes():
        if not routes.routed(rtnl, facts.index, network):
            back = routes.route_request(facts.index, network)
            found.append(Difference(f"{network} is not routed to it", (back,)))
    return found


def _secy(secy: macsec.SecY | None, made: Attachment, index: int) -> list[Difference]:
    if secy is None:  # rule 6
        return []
    found = []
    for setting in macsec.lacking(secy):
        back = macsec.settings_request(index) if setting in macsec.CHANGEABLE else None
        found.append(Difference(f"not {setting}", (back,) if back else ()))
    if secy.sci != made.sci:
        found.append(Difference(f"SCI is {secy.sci.hex()}, not {made.sci.hex()}"))
    sa = secy.tx_sas.get(made.an)
    if sa is not None and sa.key_id != _key_id(made):
        what = f"SA {made.an} has key {sa.key_id.hex()}, not {_key_id(made).hex()}"
        found.append(Difference(what))
    elif sa is None or not sa.active:
        found.append(Difference(f"it does not transmit with SA {made.an}"))
    elif secy.encoding_sa != made.an:
        back = macsec.encoding_sa_request(index, made.an)
        found.append(Difference(f"it does not transmit with SA {made.an}", (back,)))
    return found


def secy_differences(secy: macsec.SecY | None, made: Attachment) -> list[str]:
    """Name how a SecY read back differs from what the attachment should have."""
    if secy is None:
        return ["there is no SecY"]
    return [difference.what for difference in _secy(secy, made, 0)]


def _key_id(made: Attachment) -> bytes:
    return keys.key_id(bytes.fromhex(made.salt), made.sci)
