"""Podman on n1 and containerd on n2, unmodified: what they start is a replica, and then is gone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from tests.clients.runtimes import Containerd, Podman, asking, picture, replicas, serving
from tests.e2e.cluster import NETWORK, Cluster
from tests.e2e.inventory import inventory, settle
from tests.e2e.machine import until

PATH = os.environ["PATH"]
MANY = {True: 50, False: 10}
"""Containers of one Podman, in full size and otherwise."""


@pytest.fixture(scope="module")
def podman(cluster: Cluster) -> Iterator[Podman]:
    with Podman(cluster, "n1") as made:
        yield made


@pytest.fixture(scope="module")
def containerd(cluster: Cluster) -> Iterator[Containerd]:
    with Containerd(cluster, "n2") as made:
        yield made


def test_talk_by_name(cluster: Cluster, podman: Podman, containerd: Containerd) -> None:
    """The same services on both nodes; each client reaches both replicas by the one name."""
    before = picture(podman, containerd)
    podman.run("api1", "api", *serving("podman"))
    podman.run("web1", "web", "sleep", "10000")
    containerd.run("api2", "api", *serving("containerd"))
    containerd.run("web2", "web", "sleep", "10000")
    for node in ("n1", "n2"):
        services = sorted(one["service"] for one in replicas(cluster, node).values())
        assert services == ["api", "web"]
        until(lambda n=node: len(cluster.status(n)["replicas"]) == 4, f"{node} to know all")

    for runtime, web in ((podman, "web1"), (containerd, "web2")):
        # Either replica in 20 draws: one in half a million fails by bad luck.
        assert {"podman", "containerd"} <= set(runtime.exec(web, *asking("api", 20)).split("\n"))

    # web may not dial db, nor api web: the name does not exist for them, and nothing answers.
    for runtime, who, whom in ((podman, "web1", "db"), (containerd, "api2", "web")):
        with pytest.raises(AssertionError):
            runtime.exec(who, *asking(whom))
        with pytest.raises(AssertionError, match="NXDOMAIN"):
            runtime.exec(who, "nslookup", whom)

    podman.remove("web1", "api1")
    containerd.remove("web2", "api2")
    settle(lambda: picture(podman, containerd), before)


def test_podman_asks_for_more(cluster: Cluster, podman: Podman) -> None:
    before = picture(podman)
    assert NETWORK in podman("network", "ls", "--format", "{{.Name}}").split()
    assert json.loads(podman("network", "inspect", NETWORK))[0]["driver"] == "noctule"
    podman("network", "exists", NETWORK)

    options = ("--ip", "10.64.16.99", "--mac-address", "02:4e:0a:40:10:63", "--hostname", "box")
    podman.run("fixed", "db", "sleep", "10000", options=options)
    shown = podman.inspect("fixed")["NetworkSettings"]["Networks"][NETWORK]
    assert shown["IPAddress"] == "10.64.16.99"
    assert shown["MacAddress"] == "02:4e:0a:40:10:63"
    assert replicas(cluster, "n1")["10.64.16.99"]["service"] == "db"

    with pytest.raises(AssertionError, match=r"10\.64\.32\.9.*10\.64\.16\.0/20"):
        podman.run("foreign", "web", "sleep", "10000", options=("--ip", "10.64.32.9"))
    with pytest.raises(AssertionError, match="no alias is a service"):
        podman.run("nobody", "nobody", "sleep", "10000")
    with pytest.raises(AssertionError, match="associated containers"):
        podman("network", "rm", NETWORK)
    assert list(replicas(cluster, "n1")) == ["10.64.16.99"]

    podman("network", "disconnect", NETWORK, "fixed")
    assert replicas(cluster, "n1") == {}
    podman("network", "connect", "--alias", "web", NETWORK, "fixed")
    (again,) = replicas(cluster, "n1").values()
    assert again["service"] == "web"
    podman.remove("fixed", "foreign", "nobody")
    settle(lambda: picture(podman), before)


def test_podman_after_a_crash(cluster: Cluster, podman: Podman) -> None:
    """Podman holds the namespace by a path: nothing goes until Podman says so."""
    before = picture(podman)
    podman.run("crash", "web", "sleep", "10000")
    shown = podman.inspect("crash")
    os.kill(podman.monitors()[shown["Id"]], signal.SIGKILL)
    os.kill(shown["State"]["Pid"], signal.SIGKILL)
    assert len(replicas(cluster, "n1")) == 1
    podman.remove("crash")
    assert replicas(cluster, "n1") == {}
    settle(lambda: picture(podman), before)


def test_containerd_after_a_crash(cluster: Cluster, containerd: Containerd) -> None:
    """containerd kills what its dead shim held; nobody calls DEL, so the daemon collects."""
    before = picture(containerd)
    containerd.run("crash", "api", "sleep", "10000")
    assert len(replicas(cluster, "n2")) == 1
    os.kill(containerd.shim("crash"), signal.SIGKILL)
    until(lambda: replicas(cluster, "n2") == {}, "the daemon to notice")
    containerd.remove("crash")
    settle(lambda: picture(containerd), before)


def test_containerd_deletes_without_a_namespace(cluster: Cluster, containerd: Containerd) -> None:
    """ctr detaches a container that has ended, with CNI_NETNS empty: while no daemon is there
    to see that the namespace is gone, this alone takes the attachment away."""
    before = inventory(cluster, "n2", daemon=False)
    waiting = containerd.foreground("brief", "web", "sleep", "10000")
    try:
        until(lambda: len(replicas(cluster, "n2")) == 1, "the container to be attached")
        cluster.kill("n2")
        containerd("task", "kill", "--signal", "KILL", "brief")
        waiting.wait(90)
    finally:
        waiting.kill()
        waiting.wait()
    attachments = cluster.base / "n2" / "run" / "attachments"
    assert list(attachments.iterdir()) == []
    settle(lambda: inventory(cluster, "n2", daemon=False), before)
    cluster.start("n2")


@pytest.mark.timeout(900)  # emulated on a busy machine, it took four minutes
def test_many(cluster: Cluster, podman: Podman, full: bool) -> None:
    before = picture(podman)
    names = [f"many{number}" for number in range(MANY[full])]
    podman.run_many(names, "web", "sleep", "10000")
    found = replicas(cluster, "n1")
    assert len(found) == len(names)
    assert {one["service"] for one in found.values()} == {"web"}
    podman.remove(*names)
    assert replicas(cluster, "n1") == {}
    settle(lambda: picture(podman), before)


def test_two_runtimes_on_one_node(cluster: Cluster, podman: Podman) -> None:
    """They share a network and know nothing of each other: neither's GC takes the other's.

    Neither calls GC yet (libcni has it from 1.2 on), so the test does in their name.
    """
    with Containerd(cluster, "n1") as containerd:
        before = picture(podman, containerd)
        podman.run("ours", "web", "sleep", "10000")
        containerd.run("theirs", "api", "sleep", "10000")
        pairs = {"podman": podman.inspect("ours")["Id"], "ctr": "default-theirs"}

        def left(runtime: str, valid: list[str]) -> list[str]:
            """Collect for `runtime`; return the services that are still there."""
            attachments = [{"containerID": one, "ifname": "eth0"} for one in valid]
            config = {
                "cniVersion": "1.1.0", "name": NETWORK, "type": "noctule", "runtime": runtime,
                "key": {"file": str(cluster.base / "mesh.key")},
                "socket": str(cluster.socket("n1")), "cni.dev/valid-attachments": attachments,
            }  # fmt: skip
            variables = {"CNI_COMMAND": "GC", "CNI_PATH": "/opt/cni/bin", "PATH": PATH}
            cluster.execute("n1", variables, json.dumps(config))
            return sorted(one["service"] for one in replicas(cluster, "n1").values())

        for runtime, container in pairs.items():
            assert left(runtime, [container]) == ["api", "web"]
        assert left("crio", []) == ["api", "web"]
        assert left("podman", []) == ["api"]
        assert left("ctr", []) == []
        podman.remove("ours")
        containerd.remove("theirs")
        settle(lambda: picture(podman, containerd), before)
