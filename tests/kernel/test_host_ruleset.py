"""The host filter under attack: a bridge with two containers, a mesh and a stray port."""

from __future__ import annotations

import contextlib
import select
import socket

import pytest

from netconf.mesh import devices
from netconf.nft import host, ruleset
from netconf.nft.host import HostCounters
from tests.kernel.sandbox import nodes

ONE, TWO, FAR = "02:4e:0a:40:00:01", "02:4e:0a:40:00:02", "02:4e:0a:40:00:03"
STRANGER = "02:4e:0a:40:00:09"
BROADCAST, NOBODY = "ff:ff:ff:ff:ff:ff", "02:4e:00:00:00:00"
MACSEC, ANNOUNCE = 0x88E5, 0x88B5
ETH_P_ALL = 3
GOOD = 0x4C
"""TCI of the form we send: ES, E and C."""

PORTS = ("vh1", "vh2", "bat0", "stray")
WIRE = {"vh1": "c1", "vh2": "c2", "bat0": "far", "stray": "out"}
"""The other end of each port's wire."""


class Bridge:
    """Four ports of one bridge, each with a raw socket at the other end of its wire."""

    def __init__(self, node):
        self.node = node
        mask = hex(devices.GROUP_FWD_MASK)
        node.ip("link", "add", "noctule0", "type", "bridge", "group_fwd_mask", mask)
        node.ip("link", "set", "noctule0", "up", "addrgenmode", "none")
        self.wires = {}
        for port in PORTS:
            node.ip("link", "add", port, "type", "veth", "peer", "name", WIRE[port])
            for name in (port, WIRE[port]):
                node.ip("link", "set", name, "addrgenmode", "none")
                node.ip("link", "set", name, "up")
            node.ip("link", "set", port, "master", "noctule0")
        with node.ns.enter():
            ruleset.ensure_host()
            host.add_port("vh1", ONE)
            host.add_port("vh2", TWO)
            pairs = [(ONE, TWO), (TWO, ONE), (ONE, FAR), (FAR, ONE)]
            host.change_pairs(pairs, [])
        for name in (*WIRE.values(), "noctule0"):
            self.listen(name)

    def listen(self, name):
        """Hear and send whole frames on a device."""
        with self.node.ns.enter():
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            opened.bind((name, 0))
        opened.setblocking(False)
        self.wires[name] = opened

    def send(self, wire, source, target, ethertype=MACSEC, tci=GOOD, tag=b""):
        """Put one frame on a wire; return the wires (and the bridge) it came out of."""
        frame = bytes.fromhex((target + source).replace(":", "")) + tag
        frame += ethertype.to_bytes(2, "big") + bytes((tci,)) + bytes(59)
        self.wires[wire].send(frame)
        return {name for name in self.wires if name != wire and self.arrived(name, frame)}

    def arrived(self, name, frame):
        """Tell whether `frame` came out; veth and bridge deliver before sendmsg returns."""
        opened = self.wires[name]
        while select.select([opened], [], [], 0.02)[0]:
            data, address = opened.recvfrom(2000)
            if address[2] != socket.PACKET_OUTGOING and data[:14] == frame[:14]:
                return True
        return False

    def counters(self):
        with self.node.ns.enter():
            return host.counters()

    def close(self):
        for opened in self.wires.values():
            opened.close()
        host.close()


@pytest.fixture(scope="module")
def bridge():
    with nodes(1) as (node,):
        made = Bridge(node)
        with contextlib.closing(made):
            made.send("c1", ONE, TWO)
            made.send("c2", TWO, ONE)
            yield made


NO_COUNT = HostCounters(0, 0, 0)


CASES = [
    ("to a neighbour", "c1", ONE, TWO, {}, {"c2"}, NO_COUNT),
    ("with another AN", "c2", TWO, ONE, {"tci": GOOD | 3}, {"c1"}, NO_COUNT),
    ("into the mesh", "c1", ONE, FAR, {}, {"far"}, NO_COUNT),
    ("out of the mesh", "far", FAR, ONE, {}, {"c1"}, NO_COUNT),
    ("announcement", "c1", ONE, BROADCAST, {"ethertype": ANNOUNCE}, set(),
     HostCounters(1, 0, 0)),
    ("keep-alive", "c1", ONE, NOBODY, {"ethertype": ANNOUNCE}, set(), HostCounters(1, 0, 0)),
    ("IPv4", "c1", ONE, TWO, {"ethertype": 0x800}, set(), HostCounters(1, 0, 0)),
    ("ARP", "c1", ONE, BROADCAST, {"ethertype": 0x806}, set(), HostCounters(1, 0, 0)),
    ("VLAN", "c1", ONE, TWO, {"tag": b"\x81\0\0\1"}, set(), HostCounters(1, 0, 0)),
    ("IPv4 from the mesh", "far", FAR, ONE, {"ethertype": 0x800}, set(), HostCounters(1, 0, 0)),
    ("not encrypted", "c1", ONE, TWO, {"tci": 0x40}, set(), HostCounters(1, 0, 0)),
    ("changed, not encrypted", "c1", ONE, TWO, {"tci": 0x44}, set(), HostCounters(1, 0, 0)),
    ("E without C", "c1", ONE, TWO, {"tci": 0x48}, set(), HostCounters(1, 0, 0)),
    ("announcement to one", "c1", ONE, TWO, {"ethertype": ANNOUNCE}, set(),
     HostCounters(1, 0, 0)),
    ("explicit SCI", "c1", ONE, TWO, {"tci": 0x2C}, set(), HostCounters(0, 1, 0)),
    ("version 1", "c1", ONE, TWO, {"tci": 0xCC}, set(), HostCounters(0, 1, 0)),
    ("single copy broadcast", "c1", ONE, TWO, {"tci": 0x1C}, set(), HostCounters(0, 1, 0)),
    ("foreign source", "c1", TWO, ONE, {}, set(), HostCounters(0, 1, 0)),
    ("foreign announcement", "c1", TWO, BROADCAST, {"ethertype": ANNOUNCE}, set(),
     HostCounters(0, 1, 0)),
    ("unlisted pair", "c2", TWO, FAR, {}, set(), HostCounters(0, 0, 1)),
    ("unlisted from the mesh", "far", FAR, TWO, {}, set(), HostCounters(0, 0, 1)),
    ("stranger in the mesh", "far", STRANGER, ONE, {}, set(), HostCounters(0, 0, 1)),
    ("broadcast MACsec", "c1", ONE, BROADCAST, {}, set(), HostCounters(0, 0, 1)),
    ("another node's announcement", "far", FAR, BROADCAST, {"ethertype": ANNOUNCE}, set(),
     NO_COUNT),
    ("a stray port to a container", "out", FAR, ONE, {}, set(), NO_COUNT),
    ("a stray port to all", "out", STRANGER, BROADCAST, {"ethertype": 0x88B6}, {"noctule0"},
     NO_COUNT),
    ("the bridge to a container", "noctule0", FAR, ONE, {}, set(), NO_COUNT),
    ("to the bridge group", "c1", ONE, "01:80:c2:00:00:00", {}, set(), HostCounters(0, 0, 1)),
    ("to LLDP's group", "c1", ONE, "01:80:c2:00:00:0e", {}, set(), HostCounters(0, 0, 1)),
    ("IPv4 to LLDP's group", "c1", ONE, "01:80:c2:00:00:0e", {"ethertype": 0x800}, set(),
     HostCounters(1, 0, 0)),
    ("foreign to LLDP's group", "c1", TWO, "01:80:c2:00:00:0e", {}, set(),
     HostCounters(0, 1, 0)),
    ("LLDP's group from the mesh", "far", FAR, "01:80:c2:00:00:0e", {}, set(),
     HostCounters(0, 0, 1)),
    ("to LACP's group", "c1", ONE, "01:80:c2:00:00:02", {}, set(), NO_COUNT),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "wire", "source", "target", "options", "reached", "counted"),
    CASES,
    ids=[case[0] for case in CASES],
)
def test_a_frame_goes_where_it_may(bridge, what, wire, source, target, options, reached, counted):
    before = bridge.counters()
    assert bridge.send(wire, source, target, **options) == reached
    after = bridge.counters()
    assert (
        HostCounters(
            after.plaintext - before.plaintext,
            after.foreign - before.foreign,
            after.forbidden - before.forbidden,
        )
        == counted
    )


def test_a_flooded_frame_reaches_nobody_else(bridge):
    bridge.node.ip("link", "set", "noctule0", "type", "bridge", "fdb_flush")
    assert bridge.send("far", FAR, ONE) == {"c1"}


def test_a_port_that_closed_neither_sends_nor_receives(bridge):
    with bridge.node.ns.enter():
        host.del_port("vh2", TWO)
    try:
        assert bridge.send("c1", ONE, TWO) <= {"far"}
        assert bridge.send("c2", TWO, ONE) == set()
    finally:
        with bridge.node.ns.enter():
            host.add_port("vh2", TWO)


def test_other_bridges_are_left_alone():
    with nodes(1) as (node,):
        made = Bridge(node)
        with contextlib.closing(made):
            node.ip("link", "add", "docker0", "type", "bridge")
            node.ip("link", "add", "other", "type", "veth", "peer", "name", "away")
            for name in ("docker0", "other", "away"):
                node.ip("link", "set", name, "up", "addrgenmode", "none")
            for port in ("stray", "other"):
                node.ip("link", "set", port, "master", "docker0")
            made.listen("away")
            made.listen("docker0")
            assert made.send("out", STRANGER, BROADCAST, 0x88B6) == {"away", "docker0"}
