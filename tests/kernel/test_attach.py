"""Attach, detach and check on a real kernel, with two nodes and what crashes leave."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netconf import frames, keys, names
from netconf.attach import operations
from netconf.attach.attachment import Attachment
from netconf.errors import (
    CheckFailure,
    InvalidConfig,
    KernelFailure,
    NoctuleError,
    TryAgain,
    UnknownContainer,
)
from netconf.namespace import Namespace
from netconf.netlink import batadv, links, macsec, routes
from netconf.netlink.socket import Netlink
from netconf.nft import host, ruleset
from tests.kernel.conftest import SECRET, Container, MeshNode
from tests.kernel.sandbox import Node, run

MakeContainer = Callable[[], Container]
LIMIT = 20.0
"""Seconds for what takes a fraction of one on any machine, and some in an emulated one."""

PATTERN = bytes.fromhex("6e6f6374756c652d706c61696e7478")
"""What pings carry; nobody may see it outside the containers."""


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, with a limit."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"


def ip_json(sandbox: Node, *arguments: str) -> Any:
    """Run ``ip -j`` in a namespace."""
    return json.loads(sandbox.ip("-j", "-d", *arguments) or "[]")


def picture(node: MeshNode, inside: Node | None = None) -> dict[str, object]:
    """Everything that an attachment could leave behind on a node or in a container."""
    shown: dict[str, object] = {
        "files": sorted(path.name for path in (node.state.directory / "attachments").iterdir())
    }
    for place in (node.sandbox, inside):
        if place is None:
            continue
        kept = ("ifname", "link", "address", "mtu", "flags", "master", "linkinfo")
        found = ip_json(place, "link")
        for link in found:
            # Whether a bridge has a carrier is found out by a timer of the kernel's.
            link["flags"] = sorted(set(link["flags"]) - {"NO-CARRIER", "LOWER_UP"})
        shown[f"links {place.name}"] = [
            {key: link[key] for key in kept[:-1] if key in link} for link in found
        ]
        shown[f"rules {place.name}"] = [
            line
            for line in run("ip", "netns", "exec", place.name, "nft", "list", "ruleset").split("\n")
            if "packets" not in line
        ]
        # IPv4: the wire's own IPv6 routes still appear while its addresses are probed.
        shown[f"routes {place.name}"] = place.ip("-4", "route", "show", "table", "all")
    return shown


def sketch(node: MeshNode, box: Container) -> dict[str, object]:
    """The same as `picture`, asked by netlink: in an emulated machine programs start slowly."""
    with node.sandbox.ns.enter(), Namespace.open(box.sandbox.path) as inside:
        with links.open() as outer, links.open(inside) as inner:
            found = [
                [
                    (link.name, link.mac, link.mtu, link.up, link.noarp, link.kind, link.master)
                    for link in links.every(rtnl)
                ]
                for rtnl in (outer, inner)
            ]
        folder = node.state.directory / "attachments"
        return {
            "files": sorted(path.name for path in folder.iterdir()),
            "links": found,
            "ports": host.ports(),
            "ruleset": ruleset.container_present(inside),
        }


@contextlib.contextmanager
def opened(container: Container) -> Iterator[tuple[Netlink, Netlink]]:
    """Open rtnetlink and MACsec sockets inside a container."""
    with (
        Namespace.open(container.sandbox.path) as netns,
        links.open(netns) as rtnl,
        macsec.open(netns) as genl,
    ):
        yield rtnl, genl


def secy(container: Container) -> macsec.SecY:
    """Return the container's only SecY."""
    with opened(container) as (_, genl):
        (found,) = macsec.dump(genl).values()
    return found


def befriend(node: MeshNode, mine: Container, own: Attachment, peer: Attachment) -> None:
    """Open one attachment towards a peer, by hand: key, neighbour, ACL, pair."""
    salt = bytes.fromhex(peer.salt)
    sak = keys.derive_sak(SECRET, salt=salt, ca=peer.network, sci=peer.sci)
    with opened(mine) as (rtnl, genl):
        facts = links.get(rtnl, own.ifname)
        assert facts is not None
        macsec.add_rx_sc(genl, facts.index, peer.sci)
        macsec.add_rx_sa(genl, facts.index, peer.sci, peer.an, sak, keys.key_id(salt, peer.sci))
        links.set_neighbour(rtnl, facts.index, peer.address, peer.mac)
        assert links.neighbours(rtnl, facts.index) == {peer.address: peer.mac}
    for element in (f"peer {{ {peer.address} : 1 }}", "egress_icmp { 1 }", "ingress_icmp { 1 }"):
        run(
            *("ip", "netns", "exec", mine.sandbox.name),
            *("nft", f"add element inet noctule {element}"),
        )
    with node.sandbox.ns.enter():
        host.change_pairs([(own.mac, peer.mac), (peer.mac, own.mac)], [])


def ping(source: Container, address: str) -> bool:
    """Send one ping with our pattern."""
    command = ["ip", "netns", "exec", source.sandbox.name, "ping", "-c1", "-W1"]
    command += ["-p", PATTERN.hex(), address]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def capture(namespace: Namespace, interface: str) -> Iterator[list[bytes]]:
    """Collect the frames that pass an interface while the block runs."""
    every = 0x0003
    with namespace.enter():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every))
        tap.bind((interface, every))
    tap.setblocking(False)
    seen: list[bytes] = []
    with tap:
        yield seen
        with contextlib.suppress(BlockingIOError):
            while True:
                seen.append(tap.recv(65536))


def test_two_containers_talk_and_nobody_else_understands(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    here, there = mesh_nodes
    first, second = container(), container()
    one, two = here.attach(first.request()), there.attach(second.request())
    assert not ping(first, two.address), "an attachment begins closed"
    befriend(here, first, one, two)
    befriend(there, second, two, one)
    with (
        Namespace.open(first.sandbox.path) as inside,
        capture(here.sandbox.ns, "eth1") as wire,
        capture(inside, "eth0") as plain,
    ):
        until(lambda: ping(first, two.address), "the two containers ping each other")
    assert any(PATTERN in frame for frame in plain), "the capture sees what is there"
    assert any(b"\x88\xe5" in frame[14:40] for frame in wire), "MACsec is on the wire"
    assert not any(PATTERN in frame for frame in wire)
    received = secy(second).rx[one.sci][one.an]
    assert received.stats.in_ok > 0
    assert received.key_id == secy(first).tx_sas[one.an].key_id
    here.check(one.id)
    there.check(two.id)
    with batadv.open(here.sandbox.ns) as genl:
        clients = batadv.translation_global(genl, here.facts.mesh_index)
        paths = batadv.originators(genl, here.facts.mesh_index)
        neighbours = batadv.neighbours(genl, here.facts.mesh_index)
        local = batadv.translation_local(genl, here.facts.mesh_index)
    assert two.mac in {client.mac for client in clients}
    assert one.mac in {client.mac for client in local}
    assert there.facts.hard["eth1"] in {path.mac for path in paths if path.best and path.tq}
    assert there.facts.hard["eth1"] in {neighbour.mac for neighbour in neighbours}


def test_what_is_attached_is_what_was_asked(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    node, box = mesh_nodes[0], container()
    made = node.attach(box.request())
    found = secy(box)
    assert macsec.lacking(found) == []
    assert (found.encrypt, found.protect, found.replay) == (True, True, True)
    assert (found.send_sci, found.end_station, found.window) == (False, True, macsec.WINDOW)
    assert found.sci == names.sci_of(made.mac)
    assert found.tx_sas[0].key_id == keys.key_id(bytes.fromhex(made.salt), found.sci)
    shown = box.sandbox.ip("-d", "macsec", "show")
    assert "validate strict sc off sa off encrypt on send_sci off end_station on" in shown
    assert f"replay on window {macsec.WINDOW}" in shown
    (link,) = ip_json(box.sandbox, "link", "show", "eth0")
    assert link["mtu"] == node.facts.mtu - names.MACSEC_OVERHEAD
    assert link["address"] == made.mac
    assert "NOARP" in link["flags"] and "UP" in link["flags"]
    assert link["inet6_addr_gen_mode"] == "none"
    assert {entry["ifname"] for entry in ip_json(box.sandbox, "link")} == {"lo", "eth0"}
    shown = ip_json(box.sandbox, "addr", "show", "eth0")[0]["addr_info"]
    assert [f"{one['local']}/{one['prefixlen']}" for one in shown] == node.net.addresses(
        made.address
    )
    assert not any(one.get("tentative") for one in shown)
    assert "10.80.0.0/16 dev eth0" in box.sandbox.ip("route")
    assert "fd4e:6f63:7475::a50:0/112 dev eth0" in box.sandbox.ip("-6", "route")
    (port,) = ip_json(node.sandbox, "link", "show", made.vh)
    assert port["address"] != made.mac
    assert port["master"] == names.BRIDGE
    learned = run("bridge", "-n", node.sandbox.name, "fdb", "show", "dev", made.vh)
    assert f"{made.mac} sticky master {names.BRIDGE} static" in learned
    with node.sandbox.ns.enter():
        assert (made.vh, made.mac) in host.ports()
        assert operations.alive(made)
    with Namespace.open(box.sandbox.path) as netns:
        assert ruleset.container_present(netns)


def test_reattaching_never_uses_a_key_again(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    node, box = mesh_nodes[0], container()
    first = node.attach(box.request())
    before = secy(box).tx_sas[0].key_id
    node.detach(first.id)
    second = node.attach(box.request(address=first.address))
    assert (second.id, second.address) == (first.id, first.address)
    assert second.salt != first.salt
    assert secy(box).tx_sas[0].key_id != before


def test_detach_leaves_nothing_and_can_be_repeated(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    node, box = mesh_nodes[0], container()
    before = picture(node, box.sandbox)
    made = node.attach(box.request())
    assert picture(node, box.sandbox) != before
    assert node.detach(made.id) is not None
    assert picture(node, box.sandbox) == before
    assert node.detach(made.id) is None
    assert picture(node, box.sandbox) == before


def test_detach_after_the_namespace_is_gone(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    node, box = mesh_nodes[0], container()
    before = picture(node)
    made = node.attach(box.request())
    box.sandbox.remove()
    with node.sandbox.ns.enter():
        assert not operations.alive(made)
    with pytest.raises(CheckFailure):
        node.check(made.id)
    assert node.detach(made.id) is not None
    assert picture(node) == before


def test_detach_after_others_removed_what_was_ours(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    node, box = mesh_nodes[0], container()
    made = node.attach(box.request())
    node.sandbox.ip("link", "del", made.vh)
    run("ip", "netns", "exec", node.sandbox.name, "nft", "delete", "table", "bridge", "noctule")
    with pytest.raises(CheckFailure, match=made.vh):
        node.check(made.id)
    assert node.detach(made.id) is not None
    assert node.state.all() == []


def test_failures_leave_nothing(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer, tmp_path: Path
) -> None:
    node, box = mesh_nodes[0], container()
    box.sandbox.ip("link", "add", "taken0", "type", "dummy")
    short = tmp_path / "short.key"
    short.write_bytes(b"short")
    before = sketch(node, box)
    cases: list[tuple[type[NoctuleError], str, dict[str, str]]] = [
        (InvalidConfig, "CNI_IFNAME: taken0 exists", {"ifname": "taken0"}),
        (InvalidConfig, "key.file: .* at least 16 bytes", {"key_file": str(short)}),
        (InvalidConfig, "key.file: cannot read", {"key_file": str(tmp_path / "none")}),
        (UnknownContainer, "CNI_NETNS", {"netns": "/run/netns/there-is-none"}),
        (UnknownContainer, "not a network namespace", {"netns": "/proc/self/ns/mnt"}),
        (InvalidConfig, "address: .*slice", {"address": "10.65.0.1"}),
        (InvalidConfig, "address: .*network or broadcast", {"address": "10.64.16.0"}),
        (InvalidConfig, "mac: ", {"mac": "02:00:00:00:00:01"}),
    ]
    for error, text, change in cases:
        with pytest.raises(error, match=text):
            node.attach(box.request(**change))
        assert sketch(node, box) == before, text


def test_failures_of_the_kernel_leave_nothing(
    mesh_nodes: tuple[MeshNode, MeshNode],
    container: MakeContainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node, box = mesh_nodes[0], container()
    before = sketch(node, box)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "injected")

    for target, name in (
        (macsec, "add_tx_sa"),
        (links, "forward_request"),
        (routes, "route_request"),
        (frames, "announce"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, refuse)
            with pytest.raises(KernelFailure, match="injected"):
                node.attach(box.request())
        assert sketch(node, box) == before, name
    node.net = msgspec.structs.replace(node.net, bridge="nobridge0")
    with pytest.raises(TryAgain, match="nobridge0"):
        node.attach(box.request())
    assert sketch(node, box) == before


def test_an_unsafe_device_is_noticed(
    mesh_nodes: tuple[MeshNode, MeshNode],
    container: MakeContainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node, box = mesh_nodes[0], container()
    before = sketch(node, box)
    unsafe = [
        (name, 0 if name == "IFLA_MACSEC_ENCRYPT" else value) for name, value in macsec.link_data()
    ]
    with monkeypatch.context() as patch:
        patch.setattr(macsec, "link_data", lambda: unsafe)
        with pytest.raises(KernelFailure, match="not encrypt on"):
            node.attach(box.request())
    assert sketch(node, box) == before
    made = node.attach(box.request())
    node.check(made.id)
    # What later plugins of a chain may add.
    box.sandbox.ip("addr", "add", "192.0.2.1/32", "dev", "eth0")
    box.sandbox.ip("link", "set", "eth0", "mtu", "1300")
    node.check(made.id)
    box.sandbox.ip("link", "set", "eth0", "type", "macsec", "encrypt", "off")
    with pytest.raises(CheckFailure, match="not encrypt on"):
        node.check(made.id)


def test_an_attachment_is_made_once(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    node, box = mesh_nodes[0], container()
    made = node.attach(box.request())
    with pytest.raises(InvalidConfig, match="already"):
        node.attach(box.request())
    with pytest.raises(InvalidConfig, match="already"):
        node.attach(box.request(network="another", ifname="eth1"))
    node.check(made.id)
    assert [found.id for found in node.state.all()] == [made.id]


def test_different_containers_in_parallel(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    node = mesh_nodes[0]
    boxes = [container() for _ in range(6)]
    before = picture(node)
    with ThreadPoolExecutor(len(boxes)) as threads:
        made = list(threads.map(lambda box: node.attach(box.request()), boxes))
        assert len({attachment.address for attachment in made}) == len(boxes)
        list(threads.map(lambda attachment: node.check(attachment.id), made))
        list(threads.map(lambda attachment: node.detach(attachment.id), made))
    assert picture(node) == before
