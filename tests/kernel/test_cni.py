"""The executable without a daemon, on a real kernel: what a container gets and what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from netconf.names import address6_of
from netconf.namespace import Namespace
from netconf.netlink import links, macsec
from netconf.nft import ruleset
from netconf.nft.elements import EGRESS, INGRESS, PEER
from netconf.nft.wire import NftSocket
from tests.kernel.client_server import ULA
from tests.kernel.conftest import Container, MeshNode
from tests.kernel.sandbox import run
from tests.kernel.test_attach import picture
from tests.unit import cni_kit
from tests.unit.cni_kit import Outcome

MakeContainer = Callable[[], Container]


class Runtime:
    """A container runtime on one node, whose daemon has run and is away."""

    def __init__(self, node: MeshNode) -> None:
        self.node = node
        self.socket = node.state.directory / "noctuled.sock"
        node.state.write_node(node.net)

    def variables(self, verb: str, container: Container, **changes: str | None) -> dict[str, str]:
        """Return the environment of a call."""
        return cni_kit.environment(
            verb,
            **{
                "CNI_CONTAINERID": container.sandbox.name,
                "CNI_NETNS": container.sandbox.path,
                "PATH": os.environ["PATH"],
                **changes,
            },
        )

    def config(self, container: Container, **changes: Any) -> dict[str, Any]:
        """Return the network configuration."""
        return cni_kit.configuration(
            self.socket, **{"key": {"file": str(container.key)}, **changes}
        )

    def call(self, verb: str, container: Container, **changes: Any) -> Outcome:
        """Call the executable; capitals change the environment, others the configuration."""
        variables = {name: value for name, value in changes.items() if name.isupper()}
        fields = {name: value for name, value in changes.items() if not name.isupper()}
        return cni_kit.run(
            self.variables(verb, container, **variables),
            self.config(container, **fields),
            netns=self.node.sandbox.path,
        )

    def picture(self, container: Container | None = None) -> dict[str, object]:
        """Everything that an attachment could leave behind."""
        shown = picture(self.node, container.sandbox if container else None)
        name = f"routes {self.node.sandbox.name}"
        # The mesh's own links get their IPv6 addresses a second or two after they are up.
        own = ("dev eth1 ", "dev bat0 ", "dev noctule0 ")
        shown[name] = [
            line for line in str(shown[name]).split("\n") if not any(word in line for word in own)
        ]
        return shown


@pytest.fixture
def runtime(mesh_nodes: tuple[MeshNode, MeshNode]) -> Runtime:
    return Runtime(mesh_nodes[0])


def test_add_check_del(runtime: Runtime, container: MakeContainer) -> None:
    one = container()
    before = runtime.picture(one)

    added = runtime.call("ADD", one)
    assert added.status == 0, added
    result = added.json
    interface, *host = result["interfaces"]
    shown = {
        link["ifname"]: (link["address"], link["mtu"])
        for link in json.loads(runtime.node.sandbox.ip("-j", "link"))
    }
    assert [shown[one["name"]] for one in host] == [(one["mac"], one["mtu"]) for one in host]
    assert [one["name"][:2] for one in host] == ["vh", "vc"]
    ip, ip6 = result["ips"]
    address = ip["address"].partition("/")[0]
    assert ip6["address"] == f"{address6_of(address, ULA)}/108"
    octets = "".join(f":{int(octet):02x}" for octet in address.split("."))
    assert interface == {
        "name": "eth0",
        "mac": f"02:4e{octets}",
        "mtu": runtime.node.net.mtu - 24,
        "sandbox": one.sandbox.path,
    }
    assert ip["address"].endswith("/12")
    assert result["routes"] == [{"dst": dst} for dst in runtime.node.net.routes()]
    line = json.loads(added.stderr)
    assert (line["event"], line["address"]) == ("attached without noctuled", address)

    # Complete and encrypted ...
    with (
        Namespace.open(one.sandbox.path) as netns,
        links.open(netns) as rtnl,
        macsec.open(netns) as genl,
    ):
        facts = links.get(rtnl, "eth0")
        assert facts is not None
        assert (facts.kind, facts.mac, facts.mtu, facts.up) == (
            "macsec", interface["mac"], interface["mtu"], True,
        )  # fmt: skip
        (secy,) = macsec.dump(genl).values()
        assert macsec.lacking(secy) == []
        assert secy.rx == {}
    names = {link["ifname"] for link in json.loads(one.sandbox.ip("-j", "link"))}
    assert names == {"lo", "eth0"}
    # ... and closed.
    with Namespace.open(one.sandbox.path) as netns:
        assert ruleset.container_present(netns)
        nft = NftSocket(netns)
        try:
            assert [list(nft.dump(target)) for target in (PEER, EGRESS, INGRESS)] == [[], [], []]
        finally:
            nft.close()

    assert runtime.call("CHECK", one, prevResult=result).status == 0
    one.sandbox.ip("link", "set", "eth0", "down")
    runtime.call("CHECK", one, prevResult=result).failed(102, "down")

    deleted = runtime.call("DEL", one, prevResult=result)
    deleted.succeeded()
    assert json.loads(deleted.stderr)["event"] == "detached without noctuled"
    runtime.call("DEL", one).succeeded()
    assert runtime.picture(one) == before


def test_del_when_everything_else_is_gone(runtime: Runtime, container: MakeContainer) -> None:
    before = runtime.picture()
    one = container()
    assert runtime.call("ADD", one).status == 0
    one.sandbox.remove()
    one.key.unlink()
    (runtime.node.state.directory / "node.json").unlink()
    # As containerd calls it: no namespace; and the configuration has changed meanwhile.
    runtime.call("DEL", one, CNI_NETNS="", key=None, service=None, servise="x").succeeded()
    assert runtime.picture() == before
    runtime.call("DEL", one, CNI_NETNS=None).succeeded()
    shutil.rmtree(runtime.node.state.directory)
    runtime.call("DEL", one).succeeded()


def test_add_that_fails_leaves_nothing(runtime: Runtime, container: MakeContainer) -> None:
    one = container()
    one.sandbox.ip("link", "add", "eth0", "type", "dummy")
    before = runtime.picture(one)
    runtime.call("ADD", one).failed(7, "CNI_IFNAME", "eth0")
    one.key.write_bytes(b"short")
    runtime.call("ADD", one, CNI_IFNAME="eth1").failed(7, "key.file")
    runtime.call("ADD", one, CNI_IFNAME="eth1", key={"file": "/nowhere"}).failed(7, "key.file")
    runtime.call("ADD", one, CNI_NETNS="/run/netns/nowhere").failed(3, "CNI_NETNS")
    assert runtime.picture(one) == before


def test_the_address_asked_for(runtime: Runtime, container: MakeContainer) -> None:
    one, two = container(), container()
    wanted = runtime.node.net.slice.replace(".0/20", ".77")
    added = runtime.call("ADD", one, runtimeConfig={"ips": [f"{wanted}/12"]})
    assert added.json["ips"][0]["address"] == f"{wanted}/12"
    runtime.call("ADD", two, CNI_ARGS=f"IP={wanted}").failed(7, wanted)
    runtime.call("ADD", one).failed(7, "already")  # no DEL in between


def start(runtime: Runtime, container: Container, verb: str = "ADD") -> subprocess.Popen[bytes]:
    """Start a call and do not wait for it."""
    code = cni_kit.LAUNCHER.format(root=str(cni_kit.ROOT), packages=cni_kit.PACKAGES, settings="")
    call = subprocess.Popen(
        [*cni_kit.command(runtime.node.sandbox.path), code],
        env=runtime.variables(verb, container),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert call.stdin is not None
    call.stdin.write(json.dumps(runtime.config(container)).encode())
    call.stdin.close()
    call.stdin = None
    return call


def test_parallel_adds(runtime: Runtime, container: MakeContainer) -> None:
    containers = [container() for _ in range(2)]
    calls = [start(runtime, one) for one in containers]
    results = [json.loads(call.communicate(timeout=120)[0]) for call in calls]
    assert [call.returncode for call in calls] == [0, 0], results
    assert len({result["ips"][0]["address"] for result in results}) == 2


def test_killed_in_the_middle(runtime: Runtime, container: MakeContainer) -> None:
    one = container()
    before = runtime.picture()
    call = start(runtime, one)
    files = runtime.node.state.directory / "attachments"
    while call.poll() is None and not any(files.iterdir()):
        os.sched_yield()
    call.send_signal(signal.SIGKILL)
    call.communicate(timeout=120)
    assert any(files.iterdir())
    runtime.call("DEL", one).succeeded()
    assert runtime.picture() == before
    assert runtime.call("ADD", one).status == 0


def test_a_daemon_that_dies_over_its_work(runtime: Runtime, container: MakeContainer) -> None:
    one = container()
    before = runtime.picture()
    first = runtime.call("ADD", one).json  # what the daemon had done
    with cni_kit.dying(runtime.socket):
        second = runtime.call("ADD", one)
    assert second.status == 0, second
    assert second.json["ips"] != first["ips"]
    assert len(list((runtime.node.state.directory / "attachments").iterdir())) == 1
    runtime.socket.unlink()
    with cni_kit.dying(runtime.socket):
        runtime.call("DEL", one).succeeded()
    assert runtime.picture() == before


LIMITS = {
    "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 80_000, "egressBurst": 16_000,
}  # fmt: skip


def test_limits_without_a_daemon(runtime: Runtime, container: MakeContainer) -> None:
    one = container()
    before = runtime.picture(one)
    result = runtime.call("ADD", one, runtimeConfig={"bandwidth": LIMITS}).json
    (made,) = runtime.node.state.all()
    shown = [
        json.loads(
            run("ip", "netns", "exec", runtime.node.sandbox.name,
                "tc", "-j", "qdisc", "show", "dev", end)
        )[0]
        for end in (made.vh, made.vc)
    ]  # fmt: skip
    assert [(found["kind"], found["options"]["rate"]) for found in shown] == [
        ("tbf", 1_000_000),
        ("tbf", 10_000),
    ]
    runtime.call("CHECK", one, prevResult=result).succeeded()
    run("ip", "netns", "exec", runtime.node.sandbox.name,
        "tc", "qdisc", "replace", "dev", made.vc, "root", "tbf", "rate", "1gbit",
        "burst", "100k", "latency", "25ms")  # fmt: skip
    outcome = runtime.call("CHECK", one, prevResult=result)
    outcome.failed(102, f"{made.vc} has no token bucket of 10000 bytes per second")
    runtime.call("DEL", one).succeeded()
    assert runtime.picture(one) == before


def test_gc_without_a_daemon(runtime: Runtime, container: MakeContainer) -> None:
    before = runtime.picture()
    boxes = [container() for _ in range(3)]
    for box, whose in zip(boxes, ("containerd", "containerd", "podman"), strict=True):
        assert runtime.call("ADD", box, runtime=whose).status == 0

    def left() -> set[str]:
        return {made.container for made in runtime.node.state.all()}

    valid = "cni.dev/valid-attachments"
    pair = {"containerID": boxes[0].sandbox.name, "ifname": "eth0"}
    runtime.call("GC", boxes[0], runtime="containerd", **{valid: [pair]}).succeeded()
    assert left() == {boxes[0].sandbox.name, boxes[2].sandbox.name}
    runtime.call("GC", boxes[0], runtime="containerd").succeeded()  # no list: nothing is stale
    runtime.call("GC", boxes[0], **{valid: []}).succeeded()  # this test is neither of them
    assert left() == {boxes[0].sandbox.name, boxes[2].sandbox.name}
    for whose in ("containerd", "podman"):
        outcome = runtime.call("GC", boxes[0], runtime=whose, **{valid: []})
        outcome.succeeded()
        assert json.loads(outcome.stderr)["event"] == "collected without noctuled"
    assert runtime.picture() == before


def test_status_without_a_daemon(runtime: Runtime, container: MakeContainer) -> None:
    one = container()
    outcome = runtime.call("STATUS", one)
    outcome.failed(50, "noctuled does not run", "systemctl start noctuled")
    assert "kernel" not in outcome.json["msg"]
    one.key.unlink()
    runtime.call("STATUS", one).failed(50, "noctuled does not run", "key.file", str(one.key))


@pytest.mark.parametrize("verbs", [("ADD", "DEL"), ("DEL", "ADD"), ("DEL", "DEL")])
def test_del_at_the_same_time(
    runtime: Runtime, container: MakeContainer, verbs: tuple[str, str]
) -> None:
    one = container()
    before = runtime.picture(one)
    if "ADD" not in verbs:
        assert runtime.call("ADD", one).status == 0
    calls = [start(runtime, one, verb) for verb in verbs]
    answers = [call.communicate(timeout=120)[0] for call in calls]
    assert [call.returncode for call in calls] == [0, 0], answers
    runtime.call("DEL", one).succeeded()
    assert runtime.picture(one) == before
