"""A client and two replicas of a service under a container's ruleset, and no more: veth, no MACsec.

Both families are there; each test chooses which one it speaks.
"""

from __future__ import annotations

import contextlib
import socket
import struct

import pytest

from netconf import names
from netconf.nft import ruleset
from netconf.nft.elements import (
    EGRESS,
    EGRESS_ICMP,
    GENUINE6,
    INGRESS,
    INGRESS_ICMP,
    LB,
    LB6,
    PEER,
    PEER6,
)
from netconf.nft.wire import Batch, NftSocket
from tests.kernel.sandbox import nodes, run

SO_MARK = 36
CLIENT, FIRST, SECOND, STRANGER = "10.64.0.1", "10.64.0.2", "10.64.0.3", "10.64.0.9"
FORGED = "10.64.0.4"
VIP, EMPTY_VIP = "10.80.0.1", "10.80.0.2"
WEB, API = 5, 7
ULA = "fd4e:6f63:7475::/96"
LIMIT = 5.0
"""Seconds until a socket operation counts as hung."""


def six(address):
    return names.address6_of(address, ULA)


class World:
    """A client namespace and one with the addresses of two replicas, joined by a veth.

    Both families are there; `of` gives an address in the family that is tested.
    """

    def __init__(self, client, server, family):
        self.client, self.server = client, server
        self.family = family
        self.of = six if family == socket.AF_INET6 else str
        self.lb, self.peer = (LB6, PEER6) if family == socket.AF_INET6 else (LB, PEER)
        self.icmp = "icmpv6" if family == socket.AF_INET6 else "icmp"
        client.ip(
            "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", server.name
        )
        client.ip("link", "set", "eth0", "address", names.mac_of(CLIENT))
        for node, addresses in ((client, [CLIENT]), (server, [FIRST, SECOND, STRANGER])):
            node.ip("link", "set", "eth0", "addrgenmode", "none", "up")
            for address in addresses:
                node.ip("address", "add", f"{address}/12", "dev", "eth0")
                node.ip("address", "add", f"{six(address)}/108", "dev", "eth0", "nodad")
            ruleset.load_container(node.ns, "10.80.0.0/16", ULA)
        for node, other, peers in (
            (client, server, [FIRST, SECOND, STRANGER]),
            (server, client, [CLIENT]),
        ):
            mac = other.ip("-br", "link", "show", "eth0").split()[2]
            for address in peers:
                node.ip("neighbour", "add", six(address), "lladdr", mac, "dev", "eth0")
        # One device plays three replicas here: its MAC cannot spell all their addresses.
        for act in ("flush", "delete"):
            run(
                "nsenter", f"--net={client.path}", "nft", act, "chain", "inet", "noctule", "genuine"
            )
        client.ip("route", "add", "10.80.0.0/16", "dev", "eth0")
        client.ip("route", "add", f"{six('10.80.0.0')}/112", "dev", "eth0")
        self.out, self.inside = NftSocket(client.ns), NftSocket(server.ns)
        slots = [
            ((self.of(VIP), protocol, 80, n), (self.of((FIRST, SECOND)[n % 4 == 3]), 8080))
            for n in range(64)
            for protocol in ("tcp", "udp")
        ]
        peers = [((self.of(address),), (API,)) for address in (FIRST, SECOND)]
        grants = [((API, protocol, 8080), ()) for protocol in ("tcp", "udp")]
        self.out.send(
            Batch()
            .add(self.peer, peers)
            .add(EGRESS, grants)
            .add(EGRESS_ICMP, [((API,), ())])
            .add(self.lb, slots)
        )
        grants = [((WEB, protocol, 8080), ()) for protocol in ("tcp", "udp")]
        self.inside.send(
            Batch()
            .add(self.peer, [((self.of(CLIENT),), (WEB,))])
            .add(GENUINE6, [((names.mac_of(CLIENT), six(CLIENT)), ())])
            .add(INGRESS, grants)
            .add(INGRESS_ICMP, [((WEB,), ())])
        )
        self.listener = self.socket(server, socket.SOCK_STREAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("", 8080))
        self.listener.listen(200)

    def socket(self, node, kind, protocol=0):
        with node.ns.enter():
            made = socket.socket(self.family, kind, protocol)
        made.settimeout(LIMIT)
        return made

    def dial(self, address, port, mark=0):
        """Connect; return (client's end, server's end). OSError if refused."""
        ours = self.socket(self.client, socket.SOCK_STREAM)
        if mark:
            ours.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        ours.connect((self.of(address), port))
        theirs, _ = self.listener.accept()
        theirs.settimeout(LIMIT)
        return ours, theirs

    def refused(self, address, port, mark=0):
        with pytest.raises(ConnectionRefusedError):
            self.dial(address, port, mark)

    def close(self):
        for each in (self.out, self.inside, self.listener):
            each.close()


@contextlib.contextmanager
def world_of(family):
    """A world whose tests speak `family`."""
    with nodes(2) as (client, server):
        made = World(client, server, family)
        with contextlib.closing(made):
            yield made


def echo_request(family):
    """An ICMP echo request, from its type on."""
    if family == socket.AF_INET6:
        return struct.pack("!BBHHH", 128, 0, 0, 1, 1)  # the kernel fills in the checksum
    header = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    total = sum(struct.unpack("!4H", header))
    return struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, 1, 1)
