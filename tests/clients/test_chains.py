"""Noctule in chains and over delegated IPAM, with the reference plugins themselves.

They are Debian's containernetworking-plugins (1.1.1), which speak 1.0.0 at most. What libcni
does with a list of plugins is done here by hand: ADD in order, each with the result of the one
before; CHECK and DEL with the last result, DEL in reverse order.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netconf import names
from tests.e2e.bare import Bare, bare
from tests.e2e.cluster import NETWORK, PLUGIN, ULA, Cluster, Failed
from tests.e2e.container import Container
from tests.e2e.inventory import Bag, inventory, settle
from tests.e2e.machine import inside, run, socket_in, until

REFERENCE = Path("/usr/lib/cni")
VERSION = "1.0.0"
NODE = "/run/netns/n1"
LIMITS = {
    "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 80_000, "egressBurst": 16_000,
}  # fmt: skip


class Chain:
    """A list of plugins, and the container that goes through it."""

    def __init__(self, cluster: Cluster, box: Container, *plugins: dict[str, Any]) -> None:
        """The first plugin is Noctule; `plugins` are the others, as in a conflist."""
        self.cluster = cluster
        self.box = box
        self.plugins: list[dict[str, Any]] = [{"type": "noctule"}, *plugins]
        self.runtime: dict[str, Any] = {}
        """Capability arguments."""
        self.result: dict[str, Any] | None = None

    def _call(self, verb: str, plugin: dict[str, Any], previous: Any) -> dict[str, Any]:
        own = plugin["type"] == "noctule"
        wanted = plugin.get("capabilities", {})
        given = {name: value for name, value in self.runtime.items() if wanted.get(name)}
        config: dict[str, Any] = {**plugin, "cniVersion": VERSION, "name": NETWORK}
        if own:
            config = self.cluster.config(self.box, **config)
        if given:
            config["runtimeConfig"] = given
        if previous is not None:
            config["prevResult"] = previous
        binary = PLUGIN if own else str(REFERENCE / plugin["type"])
        variables = self.cluster.environment(verb, self.box, CNI_PATH=f"/opt/cni/bin:{REFERENCE}")
        done = inside(NODE, binary, check=False, input=json.dumps(config), env=variables)
        answer = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode != 0:
            raise Failed(answer, done.stderr)
        return dict(answer)

    def add(self) -> dict[str, Any]:
        """ADD through all plugins."""
        for plugin in self.plugins:
            self.result = self._call("ADD", plugin, self.result)
        assert self.result is not None
        return self.result

    @property
    def address(self) -> str:
        """The container's address, without the prefix."""
        assert self.result is not None
        return str(self.result["ips"][0]["address"]).partition("/")[0]

    def check(self, *types: str) -> None:
        """CHECK through all plugins, or only those of `types`."""
        for plugin in self.plugins:
            if not types or plugin["type"] in types:
                self._call("CHECK", plugin, self.result)

    def delete(self) -> None:
        """DEL through all plugins."""
        for plugin in reversed(self.plugins):
            self._call("DEL", plugin, self.result)
        self.result = None


@pytest.fixture(scope="module")
def before(lone: Cluster) -> Bag:
    """What is there when a first container has come and gone."""
    first = bare(lone, "first", "web")
    first.result = lone.cni("ADD", first)
    lone.delete("first")
    return inventory(lone, "n1")


@pytest.fixture
def box(lone: Cluster, before: Bag, request: pytest.FixtureRequest) -> Iterator[Bare]:
    """A container for one test, which must leave it as it was."""
    made = bare(lone, request.node.name.removeprefix("test_"), "web")
    try:
        yield made
        links = json.loads(inside(made.netns, "ip", "-j", "link").stdout)
        assert [link["ifname"] for link in links] == ["lo"]
        assert attachments(lone) == []
    finally:
        lone.delete(made.name)


def attachments(lone: Cluster) -> list[str]:
    """State files of n1: there is one for whatever the kernel has of an attachment."""
    return [path.name for path in (lone.base / "n1" / "run" / "attachments").iterdir()]


def disciplines(box: Container) -> list[dict[str, Any]]:
    """The root disciplines of vh and vc, as tc shows them."""
    attachment = names.attachment_id(NETWORK, box.name, box.ifname)
    return [
        json.loads(inside(NODE, "tc", "-j", "-s", "qdisc", "show", "dev", end).stdout)[0]
        for end in (names.host_end(attachment), names.lower_end(attachment))
    ]


def test_portmap(lone: Cluster, box: Bare) -> None:
    """It works as a plugin; but the node has no way into the mesh, so nothing comes of it."""
    chain = Chain(lone, box, {"type": "portmap", "capabilities": {"portMappings": True}})
    chain.runtime = {"portMappings": [{"hostPort": 8099, "containerPort": 80, "protocol": "tcp"}]}

    def rules() -> list[str]:
        shown = inside(NODE, "iptables-save", "-t", "nat").stdout
        return [line for line in shown.splitlines() if "8099" in line]

    result = chain.add()
    assert [interface["name"][:2] for interface in result["interfaces"]] == ["et", "vh", "vc"]
    assert result["dns"] == {"nameservers": ["127.0.0.78"]}
    assert any(f"--to-destination {chain.address}:80" in line for line in rules())
    chain.check("noctule")
    # Of 1.1.1, CHECK looks for the IPv4 chain in ip6tables too, whatever it is chained to.
    with pytest.raises(Failed, match="could not check ipv6 dnat"):
        chain.check("portmap")
    with socket_in(NODE) as sock, pytest.raises(OSError):
        sock.settimeout(2)
        sock.connect(("192.0.2.1", 8099))
    chain.delete()
    assert rules() == []


def test_tuning(lone: Cluster, box: Bare) -> None:
    sysctl = {"net.core.somaxconn": "517"}
    chain = Chain(lone, box, {"type": "tuning", "sysctl": sysctl, "mtu": 1300})
    chain.add()
    assert inside(box.netns, "sysctl", "-n", "net.core.somaxconn").stdout == "517\n"
    (link,) = json.loads(inside(box.netns, "ip", "-j", "link", "show", "eth0").stdout)
    assert link["mtu"] == 1300
    chain.check()
    chain.delete()


def test_the_bandwidth_plugin_cannot_limit_us(lone: Cluster, box: Bare) -> None:
    """It looks for a veth in the container. Without limits it lets a result pass, no more."""
    chain = Chain(lone, box, {"type": "bandwidth", "capabilities": {"bandwidth": True}})
    interface = chain.add()["interfaces"][0]
    assert (interface["name"], interface["sandbox"]) == ("eth0", box.netns)
    chain.check("noctule")
    with pytest.raises(Failed, match="veth"):
        chain.check("bandwidth")
    chain.delete()
    chain.runtime = {"bandwidth": LIMITS}
    with pytest.raises(Failed, match="veth"):
        chain.add()
    chain.delete()


def test_noctule_limits_itself(lone: Cluster, box: Bare) -> None:
    chain = Chain(lone, box)
    chain.plugins[0]["capabilities"] = {"bandwidth": True}
    chain.runtime = {"bandwidth": LIMITS}
    api = bare(lone, "api1", "api")
    api.result = lone.cni("ADD", api)
    chain.add()
    towards, away = disciplines(box)
    assert (towards["kind"], towards["options"]["rate"]) == ("tbf", 1_000_000)
    assert (away["kind"], away["options"]["rate"]) == ("tbf", 10_000)
    # More at once than may wait, so that some must be dropped on any machine.
    ping = ("ping", "-q", "-W", "1", "-s", "1200", "-l", "30", "-c", "30", api.address)
    until(
        lambda: " 0 received" not in inside(box.netns, *ping, check=False).stdout,
        "some of the pings to come back",
    )
    towards, away = disciplines(box)
    assert away["drops"] > 0
    assert towards["drops"] == 0 < towards["packets"] < away["packets"] + away["drops"]
    chain.check()
    # Who asks for no limit has none.
    assert [found["kind"] for found in disciplines(api)] == ["noqueue", "noqueue"]
    end = names.host_end(names.attachment_id(NETWORK, box.name, "eth0"))
    inside(NODE, "tc", "qdisc", "del", "dev", end, "root")
    with pytest.raises(Failed, match=f"{end} has no token bucket"):
        chain.check()
    chain.delete()
    lone.delete("api1")


# --- delegated IPAM


def host_local(lone: Cluster, **fields: str) -> dict[str, Any]:
    store = {"type": "host-local", "dataDir": str(lone.base / "host-local")}
    return {**store, "ranges": [[{"subnet": "10.64.16.0/20", **fields}]]}


def leases(lone: Cluster) -> set[str]:
    folder = lone.base / "host-local" / NETWORK
    return {path.name for path in folder.glob("10.*")}


def delegating(lone: Cluster, box: Container, ipam: dict[str, Any]) -> Chain:
    chain = Chain(lone, box)
    chain.plugins[0]["ipam"] = ipam
    return chain


def both(address: str) -> list[dict[str, Any]]:
    """What a result says of a replica at this IPv4 address."""
    addresses = (f"{address}/12", f"{names.address6_of(address, ULA)}/108")
    return [{"address": one, "interface": 0} for one in addresses]


def test_host_local(lone: Cluster, box: Bare) -> None:
    ipam = host_local(lone, rangeStart="10.64.20.10")
    chain = delegating(lone, box, ipam)
    assert chain.add()["ips"] == both("10.64.20.10")
    assert leases(lone) == {"10.64.20.10"}
    chain.check()

    # What it said, our own allocation passes over; what ours said, it is refused.
    (lone.base / "n1" / "run" / "last").write_text("10.64.20.9")
    two = bare(lone, "two", "web")
    two.result = lone.cni("ADD", two)
    assert two.address == "10.64.20.11"
    three = bare(lone, "three", "web")
    with pytest.raises(Failed, match=r"ipam: host-local said 10\.64\.20\.11, .*another attach"):
        delegating(lone, three, ipam).add()
    assert leases(lone) == {"10.64.20.10"}

    (lone.base / "host-local" / NETWORK / "10.64.20.10").unlink()
    with pytest.raises(Failed, match="host-local"):
        chain.check()
    chain.delete()
    chain.delete()
    assert leases(lone) == set()
    lone.delete("two")
    lone.delete("three")


def test_static(lone: Cluster, box: Bare) -> None:
    ipam = {"type": "static", "addresses": [{"address": "10.64.21.7/20"}],
            "dns": {"nameservers": ["192.0.2.53"]}}  # fmt: skip
    chain = delegating(lone, box, ipam)
    result = chain.add()
    assert result["ips"] == both("10.64.21.7")
    assert result["ips"][1]["address"] == "fd4e:6f63:7475::a40:1507/108"
    assert result["dns"] == {"nameservers": ["127.0.0.78", "192.0.2.53"]}
    chain.check()
    chain.delete()
    ipam["addresses"] = [{"address": "10.64.32.7/20"}]
    with pytest.raises(Failed, match=r"ipam: static said 10\.64\.32\.7.*10\.64\.16\.0/20"):
        chain.add()
    ipam["addresses"] = []
    with pytest.raises(Failed, match="no IPv4 address"):
        chain.add()


# --- GC, STATUS, DEL


def test_two_runtimes_on_one_network(lone: Cluster, box: Bare) -> None:
    valid = "cni.dev/valid-attachments"
    kept, podmans = bare(lone, "kept", "web"), bare(lone, "podmans", "web")
    for one in (box, kept):
        one.result = lone.cni("ADD", one, runtime="containerd")
    podmans.result = lone.cni("ADD", podmans)  # by this process
    wanted = [{"containerID": kept.name, "ifname": "eth0"}]
    lone.cni("GC", kept, runtime="containerd", **{valid: wanted})
    lone.cni("CHECK", kept)
    lone.cni("CHECK", podmans)
    assert len(attachments(lone)) == 2
    lone.cni("GC", podmans, **{valid: []})
    lone.cni("CHECK", kept)
    lone.delete("kept")
    lone.delete("podmans")


def served(cluster: Cluster, box: Bare) -> bool:
    """Tell whether STATUS says that ADD would be served."""
    try:
        cluster.cni("STATUS", box)
    except Failed:
        return False
    return True


def test_status(lone: Cluster, box: Bare) -> None:
    lone.cni("STATUS", box)
    with pytest.raises(Failed, match=r"key\.file: cannot read /nowhere") as caught:
        lone.cni("STATUS", box, key={"file": "/nowhere"})
    assert caught.value.code == 50
    # The only link is gone. At once, or the daemon would set right what is done first.
    away = "link set eth1 down\nlink set eth1 name away0\nlink set away0 nomaster\n"
    run("ip", "-n", "n1", "-batch", "-", input=away)
    with pytest.raises(Failed, match="bat0 has no link to other nodes") as caught:
        lone.cni("STATUS", box)
    assert caught.value.code == 51
    run("ip", "-n", "n1", "link", "set", "away0", "name", "eth1")
    until(lambda: lone.status("n1")["mesh"] == [], "the daemon to use the link again")
    until(lambda: served(lone, box), "batman-adv to call the link active")


def test_del_at_the_same_time_as_add(lone: Cluster, box: Bare) -> None:
    """Whichever comes first, ADD tells the truth, and another DEL finds nothing left to do."""
    calls = [
        subprocess.Popen(
            ["nsenter", f"--net={NODE}", PLUGIN],
            env=lone.environment(verb, box), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for verb in ("ADD", "DEL", "DEL")
    ]  # fmt: skip
    for call in calls:
        assert call.stdin is not None
        call.stdin.write(json.dumps(lone.config(box)))
        call.stdin.close()
        call.stdin = None
    answers = [call.communicate(timeout=120)[0] for call in calls]
    assert [call.returncode for call in calls] == [0, 0, 0], answers
    lone.cni("DEL", box)
    lone.cni("DEL", box)


def test_nothing_is_left(lone: Cluster, before: Bag) -> None:
    """After all of the above. What portmap leaves is portmap's: its top-level chains."""
    settle(lambda: without_portmaps(inventory(lone, "n1")), before)


def without_portmaps(bag: Bag) -> Bag:
    return Bag({line: count for line, count in bag.items() if line != "table n1 nat"})
