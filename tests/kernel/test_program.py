"""The programmer on a kernel with MACsec: two containers on one node's bridge.

Skipped where the kernel has no macsec; the lab's has.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from types import SimpleNamespace

import pytest

from netconf import keys, names
from netconf.errors import UnknownContainer
from netconf.namespace import identity
from netconf.netlink import links, macsec
from netconf.nft import host, ruleset
from netconf.nft.elements import EGRESS, GENUINE6, LB, LB6, PEER, PEER6
from netconf.nft.wire import Batch, NftSocket
from netconf.program import actual, programmer
from netconf.program.desired import EMPTY, Desired, Peer
from tests.kernel.client_server import ULA, six
from tests.kernel.conftest import pairs
from tests.kernel.sandbox import nodes, run

CAK = b"the secret of this test's mesh"
WEB, API, VIP = 1, 2, "10.80.0.1"
LIMIT = 5.0


def macsec_is_there():
    with nodes(1) as (node,):
        try:
            node.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
            node.ip("link", "add", "link", "v0", "name", "m0", "type", "macsec")
        except Exception:
            return False
    return True


class Container:
    """A namespace whose eth0 is a SecY over a wire to the node's bridge."""

    def __init__(self, node, home, address, number):
        self.node, self.address, self.mac = node, address, names.mac_of(address)
        self.sci = names.sci_of(self.mac)
        vh, vc = f"vh{number}", f"vc{number}"
        home.ip("link", "add", vh, "type", "veth", "peer", "name", vc)
        home.ip("link", "set", vc, "address", self.mac, "mtu", "1508", "addrgenmode", "none")
        home.ip("link", "set", vh, "master", "noctule0", "mtu", "1508", "addrgenmode", "none")
        home.ip(
            *f"link add link {vc} name m{number} type macsec encrypt on validate strict "
            "replay on window 64 end_station on send_sci off".split()
        )
        home.ip("link", "set", f"m{number}", "netns", node.name, "name", "eth0")
        for name in (vh, vc):
            home.ip("link", "set", name, "up")
        node.ip("link", "set", "eth0", "arp", "off", "addrgenmode", "none")
        node.ip("link", "set", "eth0", "up")
        node.ip("address", "add", f"{address}/12", "dev", "eth0")
        node.ip("route", "add", "10.80.0.0/16", "dev", "eth0")
        node.ip("address", "add", f"{six(address)}/108", "dev", "eth0")
        node.ip("route", "add", names.network6_of("10.80.0.0/16", ULA), "dev", "eth0")
        ruleset.load_container(node.ns, "10.80.0.0/16", ULA)
        with home.ns.enter():
            host.add_port(vh, self.mac)
        self.salts = {}
        self.attachment = SimpleNamespace(
            id=str(number),
            network="mesh",
            ifname="eth0",
            netns=node.path,
            netns_id=identity(node.path),
            ula=ULA,
        )
        with links.open(node.ns) as rtnl:
            self.ifindex = links.get(rtnl, "eth0").index

    def transmit(self, an):
        """Draw a salt and send with its SAK."""
        salt = self.salts[an] = keys.new_salt()
        sak = keys.derive_sak(CAK, salt=salt, ca="mesh", sci=self.sci)
        with macsec.open(self.node.ns) as genl, links.open(self.node.ns) as rtnl:
            if an in macsec.dump(genl)[self.ifindex].tx_sas:
                macsec.del_tx_sa(genl, self.ifindex, an)
            macsec.add_tx_sa(genl, self.ifindex, an, sak, keys.key_id(salt, self.sci))
            macsec.set_encoding_sa(rtnl, self.ifindex, an)

    def peer(self, service):
        return Peer(address=self.address, service=service, salts=dict(self.salts))

    def socket(self, family):
        with self.node.ns.enter():
            made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(LIMIT)
        return made


class World:
    """web may dial api at the VIP; nothing else."""

    def __init__(self, home, web, api):
        self.home = home
        home.ip("link", "add", "noctule0", "type", "bridge")
        home.ip("link", "set", "noctule0", "up", "addrgenmode", "none")
        with home.ns.enter():
            ruleset.ensure_host()
        self.web = Container(web, home, "10.64.0.1", 1)
        self.api = Container(api, home, "10.64.0.2", 2)
        for container in (self.web, self.api):
            container.transmit(0)
        self.programmer = programmer.Programmer()
        for container in (self.web, self.api):
            self.programmer.admit(container.attachment.id)
        self.reads = 0
        self.listener = self.api.socket(socket.AF_INET6)
        self.listener.bind(("", 8080))  # both families
        self.listener.listen(20)

    def cak(self):
        self.reads += 1
        return CAK

    def web_view(self):
        return Desired(
            peers={self.api.address: self.api.peer(API)},
            egress=frozenset({(API, "tcp", 8080), (API, "icmp", 0)}),
            slots={(VIP, "tcp", 80, n): (self.api.address, 8080) for n in range(64)},
        )

    def api_view(self):
        return Desired(
            peers={self.web.address: self.web.peer(WEB)},
            ingress=frozenset({(WEB, "tcp", 8080), (WEB, "icmp", 0)}),
        )

    def apply(self, container, old, new):
        """Program one container and check that the kernel agrees."""
        self.programmer.apply(container.attachment, old, new, self.cak)
        found = self.programmer.observe(container.attachment)
        assert actual.differences(found, new, ULA) == []
        assert found == actual.expected(new, ULA)

    def open(self):
        """Allow what this world allows; return both views."""
        web, api = self.web_view(), self.api_view()
        self.apply(self.api, EMPTY, api)
        self.apply(self.web, EMPTY, web)
        with self.home.ns.enter():
            host.change_pairs(pairs(self.web.address, web), [])
        return web, api

    def dial(self, address=VIP, port=80):
        ours = self.web.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        ours.connect((address, port))
        theirs, _ = self.listener.accept()
        theirs.settimeout(LIMIT)
        return ours, theirs

    def close(self):
        self.programmer.close()
        self.listener.close()
        host.close()


@pytest.fixture
def world():
    if not macsec_is_there():
        pytest.skip("the kernel has no macsec")
    with nodes(3) as (home, web, api):
        made = World(home, web, api)
        with contextlib.closing(made):
            yield made


def carries(ours, theirs):
    ours.send(b"x")
    assert theirs.recv(1) == b"x"
    theirs.send(b"y")
    assert ours.recv(1) == b"y"


def test_what_is_granted_works_and_what_is_revoked_stops(world):
    vips = (VIP, six(VIP))
    for vip in vips:
        with pytest.raises(ConnectionRefusedError):
            world.dial(vip)
    web, api = world.open()
    flows = [world.dial(vip) for vip in vips]
    for flow in flows:
        carries(*flow)
    assert world.reads == 2
    world.apply(world.web, web, EMPTY)
    world.apply(world.api, api, EMPTY)
    for ours, _ in flows:
        with pytest.raises(ConnectionAbortedError):
            ours.send(b"x")
            ours.recv(1)
    for vip in vips:
        with pytest.raises(ConnectionRefusedError):
            world.dial(vip)


def test_drift_in_ipv6_is_read_back_and_repaired(world):
    web, _ = world.open()
    nft = NftSocket(world.web.node.ns)
    nft.send(
        Batch()
        .delete(LB6, [(six(VIP), "tcp", 80, 5)])
        .delete(PEER6, [(six(world.api.address),)])
        .delete(GENUINE6, [(world.api.mac, six(world.api.address))])
    )
    nft.close()
    world.web.node.ip("neighbour", "del", six(world.api.address), "dev", "eth0")
    found = world.programmer.observe(world.web.attachment)
    assert len(actual.differences(found, web, ULA)) == 4
    world.apply(world.web, None, web)
    carries(*world.dial(six(VIP)))


def test_a_rekey_interrupts_nothing(world):
    web, _ = world.open()
    ours, theirs = world.dial()
    world.api.salts[1] = salt = keys.new_salt()
    both = world.web_view()
    world.apply(world.web, web, both)
    carries(ours, theirs)
    sak = keys.derive_sak(CAK, salt=salt, ca="mesh", sci=world.api.sci)
    node = world.api.node
    with macsec.open(node.ns) as genl, links.open(node.ns) as rtnl:
        key_id = keys.key_id(salt, world.api.sci)
        macsec.add_tx_sa(genl, world.api.ifindex, 1, sak, key_id)
        macsec.set_encoding_sa(rtnl, world.api.ifindex, 1)
    carries(ours, theirs)
    del world.api.salts[0]
    world.apply(world.web, both, world.web_view())
    carries(ours, theirs)


def test_a_peer_that_began_anew_is_heard_again(world):
    web, _ = world.open()
    world.api.transmit(0)
    world.apply(world.web, web, world.web_view())
    carries(*world.dial())


def test_drift_is_read_back_and_repaired(world):
    web, api = world.open()
    assert not world.programmer.disturbed(world.web.attachment)
    nft = NftSocket(world.web.node.ns)
    nft.send(Batch().delete(LB, [(VIP, "tcp", 80, 5)]).delete(PEER, [(world.api.address,)]))
    nft.send(Batch().add(EGRESS, [((9, "tcp", 1), ())]))
    nft.close()
    world.web.node.ip("neighbour", "del", world.api.address, "dev", "eth0")
    with macsec.open(world.web.node.ns) as genl:
        macsec.del_rx_sc(genl, world.web.ifindex, world.api.sci)
    assert world.programmer.disturbed(world.web.attachment)
    found = world.programmer.observe(world.web.attachment)
    assert len(actual.differences(found, web, ULA)) == 6
    world.apply(world.web, web, EMPTY)
    world.apply(world.web, EMPTY, web)
    carries(*world.dial())
    world.apply(world.web, EMPTY, web)
    world.apply(world.api, None, api)
    carries(*world.dial())


def test_a_namespace_that_went_is_noticed_and_let_go(world):
    world.open()
    attachment = world.web.attachment
    inode = attachment.netns_id
    world.web.node.ns.close()
    run("umount", world.web.node.path)
    with pytest.raises(UnknownContainer):
        world.programmer.apply(attachment, EMPTY, EMPTY, world.cak)
    assert identity(world.web.node.path) != inode
    assert attachment.id not in world.programmer._sockets


def test_a_secy_that_went_is_noticed(world):
    web, _ = world.open()
    world.web.node.ip("link", "del", "eth0")
    with pytest.raises(UnknownContainer):
        world.programmer.observe(world.web.attachment)
    with pytest.raises(UnknownContainer):
        world.programmer.apply(world.web.attachment, web, EMPTY, world.cak)


def test_a_table_that_went_is_named(world):
    from netconf.errors import KernelFailure

    world.open()
    ruleset.delete_container(world.web.node.ns)
    with pytest.raises(KernelFailure) as refused:
        world.programmer.observe(world.web.attachment)
    assert errno.errorcode[errno.ENOENT] in refused.value.details
