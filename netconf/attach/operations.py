"""The life of one attachment: attach, detach, check, and lowering its MTU.

1. Attach works in this order: state file (``adding``) → veth pair, one end of which becomes a
   closed port of the bridge → SecY, made inside the container's namespace over a lower device that
   stays outside → transmitting SAK → all of it read back → port in the host filter → container
   ruleset → MTU, up, addresses, routes → announcement to the mesh → ``ready``.
   So the filters are in force before the interface comes up, and the interface is up before
   other nodes hear of it.
2. If a step fails, everything made so far is undone before the error is raised.
3. Detach works in this order: ``deleting`` → links (the SecY goes with its lower device) → port in
   the host filter → container ruleset → state file. Each step succeeds if there is nothing left to
   do, so a second call finishes what a crash interrupted. The address is free only at the end.
4. Attach first detaches an earlier attachment of the same id if that is half-made or dead.
5. One operation per attachment runs at a time (`State.holding`); operations on different
   attachments run in parallel.
6. No namespace stays open after an operation.
7. Everything here acts on the node whose namespace the calling thread is in.
8. What a detach cannot do inside the container's namespace is logged and does not fail it: the
   links are gone, and a container could otherwise keep its address for ever (a table may belong to
   one of its programs).

``addrgenmode none`` and ``arp off`` keep the link from sending by itself in both families: it gets
no link-local address, probes no addresses and reports no multicast groups. The container forwards
nothing and replies come back through the same device, so every rp_filter setting lets them pass.
The only sysctl written is the interface's own disable_ipv6, and only if the container's namespace
sets it for new interfaces.
"""

from __future__ import annotations

import errno
import logging

import msgspec

from netconf import frames, keys, names
from netconf.attach import allocation, inspection
from netconf.attach.attachment import VC_EXTRA, Attachment, AttachRequest, HostInterface, NodeNet
from netconf.attach.state import State
from netconf.errors import (
    CheckFailure,
    InvalidConfig,
    KernelFailure,
    NoctuleError,
    TryAgain,
    UnknownContainer,
)
from netconf.namespace import Namespace, identity
from netconf.netlink import links, macsec, routes, shaping
from netconf.netlink.socket import Netlink, doing
from netconf.nft import host, ruleset


def attach(node: NodeNet, state: State, request: AttachRequest) -> Attachment:
    """Give a container its interface, which reaches nobody until peers and grants are programmed.

    If this raises NoctuleError, everything it made has been removed again; if the removal failed
    too, a note on the error says so.
    """
    with state.holding(request.id), Namespace.open(request.netns) as netns:
        cak = keys.read_key(request.key_file)
        _clear_predecessor(state, request)
        if _replicas(netns):
            raise InvalidConfig(
                f"container {request.container} is on a Noctule network already, and one "
                "container ruleset serves one network; detach it from that network first"
            )
        salt = keys.new_salt()
        made = state.allocate(request, node, netns_id=netns.identity, salt=salt)
        try:
            with doing(f"attach {made.ifname}"):
                _build(node, made, netns, cak)
            made = msgspec.structs.replace(made, phase="ready")
            state.save(made)
        except BaseException as error:
            try:
                _tear_down(state, made)
            except NoctuleError as second:
                error.add_note(f"undoing it failed too: {second.message}")
            raise
        return made


def detach(state: State, attachment_id: str) -> Attachment | None:
    """Remove an attachment and free its address; return it, or None if there was none."""
    with state.holding(attachment_id):
        found = state.get(attachment_id)
        if found is not None:
            _tear_down(state, found)
        else:
            state.sweep(attachment_id)
        return found


def check(node: NodeNet, state: State, attachment_id: str) -> None:
    """Raise CheckFailure unless everything that attach made is there as it was made.

    What others added later is no failure: further addresses, routes and rules, a smaller MTU.
    """
    with state.holding(attachment_id):
        made = state.get(attachment_id)
        if made is None or made.phase != "ready":
            raise CheckFailure(
                f"attachment {attachment_id} is not in the state folder; add it anew"
            )
        if identity(made.netns) != made.netns_id:
            raise CheckFailure(f"{made.netns} is not the namespace that was attached; add it anew")
        node = msgspec.structs.replace(node, ula=made.ula)
        with (
            Namespace.open_known(made.netns, made.netns_id) as netns,
            doing(f"check {made.ifname}"),
        ):
            wrong = _wrong(node, made, netns)
    if wrong:
        raise CheckFailure(
            f"{made.ifname} of container {made.container}: {'; '.join(wrong)}; "
            "delete the attachment and add it anew"
        )


def _wrong(node: NodeNet, made: Attachment, netns: Namespace) -> list[str]:
    with links.open() as rtnl:
        found = inspection.outside(rtnl, node, made)
    with links.open(netns) as rtnl, macsec.open(netns) as genl:
        found += inspection.inside(rtnl, genl, node, made)
    wrong = [difference.what for difference in found]
    try:
        if (made.vh, made.mac) not in host.ports():
            wrong.append(f"the host filter has no port {made.vh}")
    except KernelFailure as error:
        wrong.append(error.message)
    if not ruleset.container_present(netns):
        wrong.append("the container ruleset is missing")
    return wrong


def resize(state: State, attachment_id: str, mtu: int) -> Attachment | None:
    """Lower an attachment's MTU to fit a bridge path of `mtu` bytes, under running traffic.

    An MTU that is small enough already stays. Return the attachment as it is then; None if there
    is no ready attachment of this id or its namespace is gone.
    """
    with state.holding(attachment_id):
        made = state.get(attachment_id)
        if made is None or made.phase != "ready":
            return None
        if made.mtu <= mtu:
            return made
        with doing(f"lower the MTU of {made.ifname}"):
            try:
                with (
                    Namespace.open_known(made.netns, made.netns_id) as netns,
                    links.open(netns) as inside,
                ):
                    inside.batch([links.set_request(made.ifname, mtu=mtu - names.MACSEC_OVERHEAD)])
            except UnknownContainer:
                return None
            with links.open() as outside:
                outside.batch([links.set_request(made.vc, mtu=mtu + VC_EXTRA)])
                outside.batch([links.set_request(made.vh, mtu=mtu)])
        made = msgspec.structs.replace(made, mtu=mtu)
        state.save(made)
        return made


def host_interfaces(made: Attachment) -> list[HostInterface]:
    """Return an attachment's interfaces in the node's namespace: bridge port and lower device."""
    port = HostInterface(name=made.vh, mac=names.port_mac_of(made.address), mtu=made.mtu)
    return [port, HostInterface(name=made.vc, mac=made.mac, mtu=made.mtu + VC_EXTRA)]


def alive(attachment: Attachment) -> bool:
    """Tell whether the attachment's namespace still exists and has its SecY in it.

    The SecY is checked as well because the kernel may give the same inode number to another
    namespace later.
    """
    if identity(attachment.netns) != attachment.netns_id:
        return False
    try:
        with (
            Namespace.open_known(attachment.netns, attachment.netns_id) as netns,
            links.open(netns) as rtnl,
        ):
            facts = links.get(rtnl, attachment.ifname)
    except (UnknownContainer, OSError):
        return False
    return facts is not None and facts.kind == "macsec" and facts.mac == attachment.mac


# -- attach ------------------------------------------------------------------------------


def _clear_predecessor(state: State, request: AttachRequest) -> None:
    """Detach an earlier attachment of the same id; InvalidConfig if it is still in use."""
    found = state.get(request.id)
    if found is None:
        return
    if found.phase == "ready" and alive(found):
        raise InvalidConfig(
            f"{request.ifname} of container {request.container} is attached to "
            f"{request.network} already, as {found.address}; detach it first"
        )
    _tear_down(state, found)


def _build(node: NodeNet, made: Attachment, netns: Namespace, cak: bytes) -> None:
    with links.open(netns) as inside, macsec.open(netns) as genl, links.open() as outside:
        vc = _veth(outside, node, made)
        index = _secy(outside, inside, made, netns, vc)
        salt = bytes.fromhex(made.salt)
        sak = keys.derive_sak(cak, salt=salt, ca=made.network, sci=made.sci)
        key_id = keys.key_id(salt, made.sci)
        with doing(f"install the key of {made.ifname}"):
            macsec.add_tx_sa(genl, index, made.an, sak, key_id)
            wrong = inspection.secy_differences(macsec.dump(genl).get(index), made)
        if wrong:
            raise KernelFailure(
                f"the kernel made {made.ifname} other than asked: {', '.join(wrong)}; "
                "is the macsec module of this kernel complete?"
            )
        host.add_port(made.vh, made.mac)
        ruleset.load_container(netns, node.vips, node.ula)
        _open_up(inside, node, made, index, netns)
    with doing(f"announce {made.mac} to the mesh"):
        frames.announce(made.mac)


def _veth(outside: Netlink, node: NodeNet, made: Attachment) -> int:
    """Make the veth pair; return the index of the lower device."""
    try:
        ((bridge,),) = outside.batch([links.index_request(node.bridge)])
    except OSError as error:
        raise TryAgain(
            f"the bridge {node.bridge} is missing in the node's namespace: "
            "noctuled makes it when it starts",
            details=str(error),
        ) from error
    peer: links.Attributes = [
        ("IFLA_IFNAME", made.vc),
        ("IFLA_ADDRESS", made.mac),
        ("IFLA_MTU", node.mtu + VC_EXTRA),
    ]
    pair = [
        links.create_request(
            made.vh,
            "veth",
            [("VETH_INFO_PEER", {"attrs": peer})],
            [
                ("IFLA_ADDRESS", names.port_mac_of(made.address)),
                ("IFLA_MTU", node.mtu),
                ("IFLA_MASTER", bridge["index"]),
            ],
        ),
        links.set_request(made.vh, quiet=True),
        links.set_request(made.vc, quiet=True),
        links.index_request(made.vh),
        links.index_request(made.vc),
    ]
    with doing(f"make the veth pair {made.vh}"):
        try:
            answers = outside.batch(pair)
        except FileExistsError:
            # The name is one of ours, but no state file names it: somebody emptied the state
            # folder. Nobody uses the pair, so it is made anew.
            links.delete(outside, made.vh)
            answers = outside.batch(pair)
        except OSError as error:
            if error.errno == errno.EXFULL:  # devices that are not ours fill the bridge
                raise allocation.full() from error
            raise
        vh, vc = (int(answer[0]["index"]) for answer in answers[3:])
        outside.batch(
            [
                *inspection.port_requests(vh, made.mac),
                *shaping.requests((vh, vc), _buckets(made)),
                links.set_request(vh, up=True),
                links.set_request(vc, up=True),
            ]
        )
    return vc


def _buckets(made: Attachment) -> tuple[shaping.Bucket | None, shaping.Bucket | None]:
    return shaping.buckets(made.bandwidth, made.mtu + VC_EXTRA)


def _secy(outside: Netlink, inside: Netlink, made: Attachment, netns: Namespace, vc: int) -> int:
    """Make the SecY in the container, down, silent and without ARP; return its index."""
    data = macsec.link_data()
    # Create the device in the container's namespace at once. Moving it there afterwards would
    # take two RCU grace periods, and until then the node would have a device of that name
    # (``eth0``) that is not its own.
    place: links.Attributes = [("IFLA_LINK", vc), ("IFLA_NET_NS_FD", netns.fd)]
    with doing(f"make the MACsec device {made.ifname}"):
        try:
            outside.batch([links.create_request(made.ifname, "macsec", data, place)])
        except FileExistsError as error:
            raise InvalidConfig(
                f"CNI_IFNAME: {made.ifname} exists in the container already; "
                "choose another name or remove that interface"
            ) from error
        changes = [
            links.set_request(made.ifname, quiet=True, noarp=True),
            links.index_request(made.ifname),
        ]
        return int(inside.batch(changes)[1][0]["index"])


def _open_up(
    inside: Netlink, node: NodeNet, made: Attachment, index: int, netns: Namespace
) -> None:
    """Give the interface its addresses, bring it up, and route the VIPs to it."""
    steps = [
        links.set_request(links.LOOPBACK_INDEX, up=True),
        links.set_request(index, mtu=made.mtu - names.MACSEC_OVERHEAD),
        links.set_request(index, up=True),
        *(routes.address_request(index, address) for address in node.addresses(made.address)),
        *(routes.route_request(index, network) for network in node.routes()),
    ]
    with doing(f"give {made.ifname} the address {made.address}"):
        try:
            inside.batch(steps)
        except OSError as error:
            # Either the namespace disables IPv6 on new interfaces (the sysctl
            # net.ipv6.conf.default.disable_ipv6), or the kernel has no IPv6.
            if not node.ula or error.errno not in (errno.EACCES, errno.EOPNOTSUPP):
                raise
            links.enable_ipv6(netns, made.ifname)
            inside.batch(steps)


def _replicas(netns: Namespace) -> list[macsec.SecY]:
    """Return the SecYs in a namespace whose SCI is one of a Noctule replica."""
    with doing(f"list the MACsec devices in {netns.path}"), macsec.open(netns) as genl:
        return [
            secy for secy in macsec.dump(genl).values() if secy.sci.startswith(names.MAC_PREFIX)
        ]


# -- detach ------------------------------------------------------------------------------


def _tear_down(state: State, made: Attachment) -> None:
    if made.phase != "deleting":
        state.save(msgspec.structs.replace(made, phase="deleting"))
    with doing(f"delete the veth pair {made.vh}"), links.open() as outside:
        links.delete(outside, made.vh)
    try:
        host.del_port(made.vh, made.mac)
    except KernelFailure as error:
        # ENOENT: the host filter itself is missing, so there is no port to close.
        if getattr(error.__cause__, "errno", None) != errno.ENOENT:
            raise
    _remove_ruleset(made)
    state.remove(made)


def _remove_ruleset(made: Attachment) -> None:
    """Take the ruleset out of a namespace that outlives its attachment.

    A failure is logged only (rule 8).
    """
    try:
        with Namespace.open_known(made.netns, made.netns_id) as netns:
            # The path and the inode may by now mean another container: leave that one closed.
            if not _replicas(netns):
                ruleset.delete_container(netns)
    except UnknownContainer:
        pass  # it went with its namespace
    except (NoctuleError, OSError) as error:
        fields = {"attachment": made.id, "service": made.service, "error": str(error)}
        logging.getLogger("noctule").warning("ruleset not removed", extra={"fields": fields})
