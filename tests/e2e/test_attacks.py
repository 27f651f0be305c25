"""A container's root attacks: what leaves, what arrives, and what counts it.

1. The intruder has all capabilities in the container. `confined` says that the container has
   a user namespace of its own; the other one is root in the initial one, as ``--cap-add
   NET_ADMIN`` without ``userns-remap`` makes it: the kernel lets that one administer the
   node, and `test_the_initial_user_namespace_administers_the_node` shows it.
2. Wires are watched on all nodes, other containers above and below their SecYs. A watch ends
   with traffic that is allowed, on the same path and after the attack, which must be seen:
   what is not seen by then was not sent.
3. Frames are recognised by a marker inside or, when encrypted, by their pair of MACs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from netconf import keys, names
from netconf.namespace import Namespace
from netconf.netlink import links, macsec
from tests.e2e.attack import (
    ADMIN_PORT,
    RULES,
    Intruder,
    Scene,
    confined,
    datagram,
    dressed,
    frame,
    mac_of,
    octets,
    reaches,
    secy_counter,
    send_below,
    send_from_node,
    settled,
)
from tests.e2e.capture import BATMAN, IPV4, MACSEC
from tests.e2e.cluster import FABRIC, NETWORK, running
from tests.e2e.machine import inside, run, socket_in, until

ARP, IPV6, VLAN, LLDP, ANNOUNCE = 0x0806, 0x86DD, 0x8100, 0x88CC, 0x88B5
ETHERTYPES = (IPV4, ARP, IPV6, VLAN, LLDP, BATMAN, ANNOUNCE)
BROADCAST, NOBODY, GROUP = "ff:ff:ff:ff:ff:ff", "02:4e:00:00:00:00", "33:33:00:00:00:01"
LINK_LOCAL_GROUPS = tuple(f"01:80:c2:00:00:{last:02x}" for last in range(16))
INVENTED = "02:4e:0a:4f:ff:fe"
MARKER = b"what-must-not-appear"
Kind = tuple[str, Sequence[int]]
"""A kind of link, and one 16-bit attribute of it with its value."""
MACVLAN: Kind = ("macvlan", ())
IPVLAN: Kind = ("ipvlan", ())
VLAN_5: Kind = ("vlan", (1, 5))  # IFLA_VLAN_ID
MACSEC_7: Kind = ("macsec", (2, 7))  # IFLA_MACSEC_PORT
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with running(RULES) as cluster, contextlib.ExitStack() as opened:
        made = Scene(
            cluster,
            by=cluster.add("by", "n1", "web"),
            admin=cluster.add("admin", "n1", "admin"),
            api=cluster.add("api", "n2", "api", 8080, ADMIN_PORT),
            far=cluster.add("far", "n3", "api", 8080),
            db=cluster.add("db", "n2", "db", 5432),
        )
        for container in (confined(cluster, "in", "n1", "web"), cluster.add("out", "n1", "web")):
            intruder = Intruder(container)
            opened.callback(intruder.close)
            made.intruders[intruder.confined] = intruder
        assert set(made.intruders) == {True, False}
        for dialler in (made.by, *(intruder.container for intruder in made.intruders.values())):
            until(partial(reaches, dialler, made.api), f"{dialler.name} to reach api")
        until(lambda: reaches(made.by, made.far), "by to reach api on n3")
        yield made


@pytest.fixture(params=[True, False], ids=["confined", "initial user namespace"])
def intruder(scene: Scene, request: pytest.FixtureRequest) -> Iterator[Intruder]:
    chosen = scene.intruders[request.param]
    yield chosen
    # Whatever it did, it is a working replica again: the next test does not pass vacuously.
    until(lambda: reaches(chosen.container, scene.api), "the intruder to be as before")


def test_raw_frames_leave_encrypted_or_not_at_all(scene: Scene, intruder: Intruder) -> None:
    api, own = mac_of(scene.api), intruder.mac
    with scene.watch() as watch, scene.counted():
        for ethertype in (*ETHERTYPES, MACSEC):
            intruder.send(frame(api, own, ethertype, MARKER))
        pair = octets(api) + octets(own)
        until(partial(watch.saw, pair, {"wire of n1", "wire of n2"}), "them to leave")
    # They are for api, which may get frames from this one: its SecY alone shows them.
    assert watch.seen(MARKER) <= {"in api"}

    foreign = [mac_of(scene.admin), INVENTED, mac_of(scene.api), NOBODY]
    with scene.watch() as watch, scene.counted(foreign=len(foreign) * 2):
        for source in foreign:
            intruder.send(frame(api, source, IPV4, MARKER), mark=0x5)
            intruder.send(frame(BROADCAST, source, ANNOUNCE, MARKER))
    assert not watch.seen(MARKER)
    assert not any(watch.seen(octets(to) + octets(s)) for s in foreign for to in (api, BROADCAST))

    bridge = run("ip", "-n", "n1", "-br", "link", "show", names.BRIDGE).stdout.split()[2]
    forbidden = [mac_of(scene.db), mac_of(scene.admin), mac_of(scene.by), bridge, BROADCAST, GROUP]
    forbidden += [NOBODY, LINK_LOCAL_GROUPS[14]]
    with scene.watch() as watch, scene.counted(forbidden=len(forbidden) * 20):
        for target in forbidden:
            for _ in range(20):
                intruder.send(frame(target, own, ANNOUNCE, MARKER))
    assert not any(watch.seen(octets(to) + octets(own)) for to in forbidden)


def test_without_protection_nothing_leaves_in_the_clear(scene: Scene, intruder: Intruder) -> None:
    api, own = mac_of(scene.api), intruder.mac
    # The bridge itself drops PAUSE frames (01) and gives LACP's (02) to its input hook only.
    groups = [group for group in LINK_LOCAL_GROUPS if group[-2:] not in ("01", "02")]
    targets = [api, mac_of(scene.by), BROADCAST, NOBODY, GROUP, *groups]
    with (
        socket_in("/run/netns/n1", socket.SOCK_DGRAM) as node,
        intruder.secy("protect off", "protect on"),
        scene.watch() as watch,
    ):
        node.bind((FABRIC["n1"], 5555))
        with scene.counted(plaintext=len(targets) * len(ETHERTYPES)):
            for target in targets:
                for ethertype in ETHERTYPES:
                    intruder.send(frame(target, own, ethertype, MARKER))
        with scene.counted(plaintext=len(groups) + 1, foreign=len(groups)):
            packet = datagram(FABRIC["n2"], FABRIC["n1"], 5555, MARKER)
            intruder.send(frame(api, own, IPV4, packet))
            for group in groups:
                intruder.send(frame(group, own, IPV4, packet))
                intruder.send(frame(group, INVENTED, IPV4, packet))
            for group in LINK_LOCAL_GROUPS[1:3]:
                intruder.send(frame(group, own, IPV4, packet))
        _nothing_but_the_last(node, (FABRIC["n1"], 5555))

        # Bytes may be dressed as ciphertext; they go where ciphertext may go, and no further.
        with scene.counted(foreign=1, forbidden=2):
            intruder.send(dressed(api, INVENTED, MARKER))
            for target in (mac_of(scene.db), BROADCAST):
                intruder.send(dressed(target, own, MARKER))
    assert not watch.seen(MARKER)

    with intruder.secy("protect off", "protect on"), scene.watch() as watch, scene.counted():
        before = secy_counter(scene.api, "InPktsNotValid")
        intruder.send(dressed(api, own, MARKER))
        until(lambda: secy_counter(scene.api, "InPktsNotValid") > before, "api to discard it")
    assert watch.seen(MARKER) == {"wire of n1", "wire of n2"}


def test_settings_of_the_secy_open_nothing(scene: Scene, intruder: Intruder) -> None:
    api, own = mac_of(scene.api), intruder.mac
    attempt = frame(api, own, IPV4, MARKER)
    for settings, back, plaintext, foreign in (
        ("encrypt off", "encrypt on", 1, 0),
        ("end_station off send_sci on", "send_sci off end_station on", 0, 1),
        ("end_station off", "end_station on", 0, 1),
        ("end_station off scb on", "scb off end_station on", 0, 1),
        ("encodingsa 2", "encodingsa 0", 0, 0),
    ):
        with (
            scene.watch() as watch,
            intruder.secy(settings, back),
            scene.counted(plaintext=plaintext, foreign=foreign),
        ):
            intruder.send(attempt)
        assert not watch.seen(MARKER), settings
        if plaintext or foreign:
            assert not watch.seen(octets(api) + octets(own)), settings

    other = mac_of(scene.admin)
    with scene.watch() as watch, scene.counted(foreign=1):
        intruder.run("ip", "link", "set", "eth0", "address", other)
        intruder.send(frame(api, other, IPV4, MARKER))
        intruder.run("ip", "link", "set", "eth0", "address", own)
        # A new MAC costs all neighbours, permanent ones too; the audit would bring them back.
        intruder.run("ip", "neigh", "replace", scene.api.address, "lladdr", api, "dev", "eth0",
                     "nud", "permanent")  # fmt: skip
    assert not watch.seen(octets(api) + octets(other))


def test_devices_of_its_own_lead_nowhere_else(scene: Scene, intruder: Intruder) -> None:
    api, own, other = mac_of(scene.api), intruder.mac, mac_of(scene.admin)
    intruder.run("ip", "link", "add", "link", "eth0", "name", "v0", "type", "vlan", "id", "5")
    intruder.run("ip", "link", "add", "link", "eth0", "name", "m0", "address", other,
                 "type", "macvlan", "mode", "bridge")  # fmt: skip
    for device, source, dropped in (("v0", own, 0), ("m0", other, 1)):
        with scene.watch() as watch, scene.counted(foreign=dropped):
            # Up with IPv6 it would chatter, and the count would not be exact.
            intruder.run("ip", "link", "set", device, "addrgenmode", "none", "up")
            intruder.send(frame(api, source, IPV4, MARKER), link=device)
            if not dropped:
                pair = octets(api) + octets(source)
                until(partial(watch.saw, pair, {"wire of n2"}), "it to leave encrypted")
        assert watch.seen(MARKER) <= {"in api"}
        intruder.run("ip", "link", "del", device)
    # A bridge would take frames of any source from its other ports to eth0.
    intruder.run("ip", "link", "add", "b0", "type", "bridge")
    intruder.run("ip", "link", "set", "eth0", "master", "b0")
    intruder.run("ip", "link", "set", "b0", "address", other, "addrgenmode", "none", "up")
    with scene.watch() as watch, scene.counted(foreign=1):
        intruder.send(frame(api, other, IPV4, MARKER), link="b0")
    assert not watch.seen(octets(api) + octets(other))
    intruder.run("ip", "link", "del", "b0")


def test_a_forged_mark_and_no_table_open_nothing(scene: Scene, intruder: Intruder) -> None:
    box, api, db = intruder.container, scene.api, scene.db
    with pytest.raises(OSError), socket_in(box.netns) as marked:
        marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 3)
        marked.connect((db.address, 5432))
    intruder.run("ip", "neigh", "replace", db.address, "lladdr", mac_of(db), "dev", "eth0",
                 "nud", "permanent")  # fmt: skip
    before, refused = scene.counters(), scene.denied(api, "tcp", ADMIN_PORT, box.address)
    with scene.watch() as watch:
        intruder.run("nft", "flush", "ruleset")
        with pytest.raises(OSError) as silence:
            box.dial(db.address, 5432, timeout=1.0)
        with pytest.raises(ConnectionRefusedError):
            box.dial(api.address, ADMIN_PORT)
    assert isinstance(silence.value, TimeoutError) or silence.value.errno == errno.EHOSTUNREACH
    assert scene.counters()["forbidden"] > before["forbidden"]
    assert not watch.seen(octets(mac_of(db)) + octets(intruder.mac))
    assert scene.denied(api, "tcp", ADMIN_PORT, box.address) > refused


def test_a_forged_source_address_is_taken_for_the_forger(scene: Scene, intruder: Intruder) -> None:
    box, api, admin = intruder.container, scene.api, scene.admin
    with socket_in(api.netns, socket.SOCK_DGRAM) as target:
        target.bind((api.address, ADMIN_PORT))
        forged = datagram(admin.address, api.address, ADMIN_PORT, MARKER)
        refused = scene.denied(api, "udp", ADMIN_PORT, box.address)
        intruder.send(frame(mac_of(api), intruder.mac, IPV4, forged))
        until(
            lambda: scene.denied(api, "udp", ADMIN_PORT, box.address) > refused,
            "api to refuse the forger by its own address",
        )
        with socket_in(admin.netns, socket.SOCK_DGRAM) as allowed:
            allowed.sendto(b"control", (api.address, ADMIN_PORT))
        target.settimeout(20)
        data, (source, _) = target.recvfrom(100)
        assert (data, source) == (b"control", admin.address)


def test_keys_added_by_hand_reach_nobody(scene: Scene, intruder: Intruder) -> None:
    """The secret is shared and salts are public: any replica can derive any other's key."""
    db = scene.db
    sci = names.sci_of(mac_of(db))
    command = ("ip", "macsec", "add", "eth0", "rx", "port", "1", "address", mac_of(db))
    if intruder.confined:
        assert "not permitted" in intruder.refused(*command)
        return
    state = scene.cluster.base / "n2" / "run" / "attachments"
    (saved,) = state.glob(f"*@{db.address}.json")
    salt = bytes.fromhex(json.loads(saved.read_text())["salt"])
    cak = keys.read_key(str(scene.cluster.base / "mesh.key"))
    sak = keys.derive_sak(cak, salt=salt, ca=NETWORK, sci=sci)
    key_id = keys.key_id(salt, sci).hex()

    def taken() -> bool:
        # The node's audit takes a foreign channel away whenever it looks, be it in between.
        intruder.refused(*command, "on")
        key = ("sa", "0", "pn", "1", "on", "key", key_id, sak.hex())
        return not intruder.refused(*command, *key)

    until(taken, "the kernel to take db's key")
    with Namespace.open(db.netns) as netns, macsec.open(netns) as genl:
        (secy,) = macsec.dump(genl).values()
        assert secy.tx_sas[0].key_id.hex() == key_id, "not the key db sends with"
    with scene.watch() as watch, scene.counted(forbidden=1):
        intruder.send(frame(mac_of(db), intruder.mac, IPV4, MARKER))
    with scene.counted("n2", forbidden=1), scene.watch() as back:
        send_below(db, frame(intruder.mac, mac_of(db), MACSEC, b"\x4c\0\0\1\0\0" + MARKER))
    assert not watch.seen(octets(mac_of(db)) + octets(intruder.mac))
    assert not back.seen(octets(intruder.mac) + octets(mac_of(db))) - {"in db"}


def test_the_devices_of_the_node_are_out_of_reach(scene: Scene) -> None:
    intruder = scene.intruders[True]
    (own,) = intruder.shown("ip", "-j", "link", "show", "eth0")
    assert own["link_netnsid"] == 0, "the kernel names the node's namespace: the attack is real"
    with Namespace.open("/run/netns/n1") as netns, links.open(netns) as rtnl:
        indexes = {facts.name: facts.index for facts in links.every(rtnl)}
    assert own["link_index"] in indexes.values()
    for kind in (MACVLAN, VLAN_5, MACSEC_7, IPVLAN):
        for name in (
            "eth1",
            names.MESH,
            names.BRIDGE,
            settled(intruder.container),
            settled(scene.by),
        ):
            assert intruder.add_link(indexes[name], *kind) == "EPERM", (kind, name)


def test_the_initial_user_namespace_administers_the_node(scene: Scene) -> None:
    """Not a promise but a warning: CAP_NET_ADMIN without a user namespace is the node's own."""
    intruder = scene.intruders[False]
    with Namespace.open("/run/netns/n1") as netns, links.open(netns) as rtnl:
        indexes = {facts.name: facts.index for facts in links.every(rtnl)}

    def add(lower: str, kind: Kind) -> str:
        return intruder.add_link(indexes[lower], *kind)

    for lower in (settled(intruder.container), settled(scene.by), names.MESH):
        assert add(lower, MACVLAN) == "EBUSY", "a SecY or a bridge has taken the device's input"
    # Still confined: the host filter stands between a container's lower device and the rest.
    assert add(settled(scene.by), VLAN_5) == "ok"
    # A new link may say something of its own too, so not exactly one.
    before = scene.counters("n1")["plaintext"]
    with scene.watch() as watch:
        intruder.run("ip", "link", "set", "x0", "addrgenmode", "none", "up")
        intruder.send(frame(mac_of(scene.api), mac_of(scene.by), IPV4, MARKER), link="x0")
        until(lambda: scene.counters("n1")["plaintext"] > before, "n1's host filter to drop it")
    assert watch.seen(MARKER) <= {"below by"}
    intruder.run("ip", "link", "del", "x0")
    # Not confined: a SecY over another's lower device, which may take any MAC, and the underlay.
    assert add(settled(scene.by), MACSEC_7) == "ok"
    intruder.run("ip", "link", "del", "x0")
    assert add("eth1", MACVLAN) == "ok"
    with scene.watch() as watch:
        intruder.run("ip", "link", "set", "x0", "addrgenmode", "none", "up")
        intruder.send(frame(BROADCAST, "06:00:00:00:00:01", LLDP, MARKER), link="x0")
    assert watch.seen(MARKER) >= {"wire of n1"}
    intruder.run("ip", "link", "del", "x0")


def test_a_stolen_node_is_heard_only_where_pairs_and_keys_agree(scene: Scene) -> None:
    api, by, stranger = mac_of(scene.api), mac_of(scene.by), INVENTED
    with scene.watch() as watch, scene.counted("n2", forbidden=2):
        send_from_node("n3", dressed(api, stranger, MARKER))
        send_from_node("n3", dressed(mac_of(scene.db), by, MARKER))
    assert not watch.seen(MARKER) & {"in api", "in db"}
    assert watch.seen(MARKER) >= {"wire of n3"}
    # From a MAC that may talk to api: the host filter lets it in, and it fails the check.
    before = secy_counter(scene.api, "InPktsNotValid")
    with scene.watch() as watch:
        send_from_node("n3", dressed(api, by, MARKER))
        until(lambda: secy_counter(scene.api, "InPktsNotValid") > before, "api to discard it")
    assert "in api" not in watch.seen(MARKER)
    # Even with n2's host filter wide open: a SecY knows no sender but its neighbours.
    before = secy_counter(scene.api, "InPktsNoSCI")
    inside("/run/netns/n2", "nft", "add", "element", "bridge", "noctule", "pair",
           f"{{ {stranger} . {api} }}")  # fmt: skip
    send_from_node("n3", dressed(api, stranger, MARKER))
    until(lambda: secy_counter(scene.api, "InPktsNoSCI") > before, "api to know no such sender")


def test_without_its_interface_a_container_has_none(scene: Scene) -> None:
    intruder = scene.intruders[True]
    (own,) = intruder.shown("ip", "-j", "link", "show", "eth0")
    intruder.run("ip", "link", "del", "eth0")
    assert intruder.add_link(own["link_index"], *MACSEC_7) == "EPERM"
    intruder.run("ip", "link", "add", "eth0", "address", intruder.mac, "type", "dummy")
    intruder.run("ip", "link", "set", "eth0", "addrgenmode", "none", "up")
    with scene.watch() as watch, scene.counted():
        intruder.send(frame(mac_of(scene.api), intruder.mac, IPV4, MARKER))
    assert not watch.seen(MARKER)


def _nothing_but_the_last(listener: socket.socket, where: tuple[str, int]) -> None:
    """Send the listener one datagram from its own node: it must be the only one to arrive."""
    with socket_in("/run/netns/n1", socket.SOCK_DGRAM) as near:
        near.sendto(b"control", where)
    listener.settimeout(20)
    assert listener.recv(100) == b"control"
