"""The mesh's pure parts: paths, news, and what the kernel's events say."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.mesh import paths
from daemon.model.records import NodeInfo
from daemon.news import FORGET, REMIND, News
from netconf.netlink.batadv import Originator
from netconf.netlink.events import RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, Changes, note
from netconf.uapi.messages import ifinfmsg

MACS = {"n1": "06:00:00:00:00:01", "n2": "06:00:00:00:00:02", "n3": "06:00:00:00:00:03"}
OWNERS = paths.owners(
    NodeInfo(node=node, certificate="", endpoints=(), slice="", mtu=1468, mesh_macs=(mac,))
    for node, mac in MACS.items()
)


def path(node: str, by: str, *, best: bool = True, **measured: int) -> Originator:
    return Originator(
        mac=MACS.get(node, node),
        neighbour=MACS.get(by, by),
        interface="eth1",
        tq=measured.get("tq"),
        throughput=measured.get("throughput"),
        last_seen_ms=10,
        best=best,
    )


def test_quality_is_that_of_the_best_path() -> None:
    found = [
        path("n1", "n1", tq=255),
        path("n2", "n1", tq=51),
        path("n2", "n2", tq=200, best=False),
        path("06:00:00:00:00:99", "n1", tq=255),
    ]
    assert paths.quality(found, OWNERS) == {"n1": 1.0, "n2": 0.2}
    assert paths.via(found, OWNERS) == {"n1": "n1", "n2": "n1"}


def test_throughput_is_measured_by_the_best_of_all() -> None:
    found = [path("n1", "n1", throughput=200_000), path("n2", "02:00:00:00:00:07", throughput=0)]
    assert paths.quality(found, OWNERS) == {"n1": 1.0, "n2": 0.0}
    assert paths.via(found, OWNERS) == {"n1": "n1", "n2": ""}
    assert paths.quality([], OWNERS) == {}


def test_news_is_what_is_new() -> None:
    news = News()
    assert news.tell(0.0, ["a"]) == ["a"]
    assert [news.tell(second, ["a"]) for second in (1.0, 2.0, 3.0)] == [[], [], []]
    assert news.tell(4.0, ["a", "b"]) == ["b"]
    # It lasts: a reminder now and then.
    told = [second for second in range(5, 2000) if news.tell(float(second), ["a"])]
    assert told == [600, 1200, 1800]
    # It was gone, and is back.
    assert news.tell(2000 + FORGET, ["a"]) == ["a"]
    # What is long gone is not remembered.
    news.tell(10_000 + REMIND, [])
    assert news.tell(10_001 + REMIND, ["a"]) == ["a"]


def link(kind: int, name: str, *, up: bool, master: int = 0, family: int = 0) -> bytes:
    message = ifinfmsg()
    message["family"] = family
    message["flags"] = 1 if up else 0
    message["attrs"] = [("IFLA_IFNAME", name), *([("IFLA_MASTER", master)] if master else [])]
    message["header"] = {"type": kind, "flags": 0, "sequence_number": 0, "pid": 0}
    message.encode()
    return bytes(message.data)


@pytest.mark.parametrize(
    ("message", "links", "off", "free"),
    [
        (link(RTM_NEWLINK, "eth1", up=True, master=3), {"eth1"}, set(), set()),
        (link(RTM_NEWLINK, "eth1", up=False, master=3), {"eth1"}, {"eth1"}, set()),
        (link(RTM_NEWLINK, "eth1", up=True), {"eth1"}, set(), {"eth1"}),
        (link(RTM_DELLINK, "bat0", up=True), {"bat0"}, {"bat0"}, {"bat0"}),
        # A bridge's message about its port: it left, which the link's own message says too.
        (link(RTM_DELLINK, "bat0", up=True, master=3, family=7), {"bat0"}, set(), set()),
    ],
)
def test_events_name_the_link(
    message: bytes, links: set[str], off: set[str], free: set[str]
) -> None:
    changes = Changes()
    note(changes, message)
    assert changes == Changes(links=links, off=off, free=free)


def test_a_datagram_holds_several_events_and_damage_ends_it() -> None:
    first, second = (link(RTM_NEWLINK, name, up=True, master=1) for name in ("eth1", "eth22"))
    changes = Changes()
    note(changes, first + second)
    assert changes.links == {"eth1", "eth22"}
    for damaged in (first[:20], b"\x04\0\0\0" + first[4:], first + second[:7], b""):
        note(Changes(), damaged)
    address = bytearray(first)
    address[4] = RTM_NEWADDR
    seen: Any = Changes()
    note(seen, bytes(address))
    assert (seen.addresses, seen.links) == (True, set())
