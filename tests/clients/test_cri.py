"""Pods on two nodes, run by containerd's CRI plugin as a kubelet has them run."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netconf.names import NAMESERVER
from tests.clients.cri import ANNOTATIONS, Pods, Refused
from tests.clients.runtimes import asking, picture, replicas, serving
from tests.e2e.cluster import NETWORK, Cluster
from tests.e2e.inventory import Bag, settle
from tests.e2e.machine import inside, run, until

FIELDS: dict[str, Any] = {
    "podNames": ["{service}-{replicaset}-{random}", "{service}-{ordinal}"],
    "capabilities": {"bandwidth": True, "dns": True, ANNOTATIONS: True},
}
DNS = {"servers": [NAMESERVER], "searches": ["lab.test"], "options": ["ndots:1"]}
LIMITS = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "20M"}
PERIOD = 5.0
"""Seconds between two questions for STATUS, as containerd 2 and CRI-O ask."""


@pytest.fixture(scope="module")
def n1(cluster: Cluster) -> Iterator[Pods]:
    with Pods(cluster, "n1", **FIELDS) as made:
        yield made


@pytest.fixture(scope="module")
def n2(cluster: Cluster) -> Iterator[Pods]:
    with Pods(cluster, "n2", **FIELDS) as made:
        yield made


def _picture(*nodes: Pods) -> Bag:
    bag = picture(*nodes)
    for node in nodes:
        bag.update(node.kept())
    return bag


def test_pods_talk_by_name(cluster: Cluster, n1: Pods, n2: Pods) -> None:
    """One network configuration: an annotation makes one pod web, its name the other one api."""
    before = _picture(n1, n2)
    front = n1.pod(
        "front", annotations={"noctule.io/service": "web", "other.io/x": "y", **LIMITS},
        dns_config=DNS,
        port_mappings=[{"protocol": 0, "container_port": 8080, "host_port": 18080}],
    )  # fmt: skip
    web, web_main = n1.start(front, "sleep", "10000")
    back = n2.pod("api-5d4f8c7b9d-x2b4c", dns_config=DNS)
    api, _ = n2.start(back, *serving("pod"))

    (ours,) = replicas(cluster, "n1").values()
    (theirs,) = replicas(cluster, "n2").values()
    assert (ours["service"], ours["address"]) == ("web", n1.address(web))
    assert (theirs["service"], theirs["address"]) == ("api", n2.address(api))
    until(lambda: len(cluster.status("n1")["replicas"]) == 2, "n1 to know both")

    assert "pod" in n1.within(web_main, *asking("api")).split("\n")
    resolv = n1.within(web_main, "cat", "/etc/resolv.conf")
    assert f"nameserver {NAMESERVER}\n" in resolv
    assert "lab.test" in resolv
    # web may not dial db, so for it there is none.
    with pytest.raises(Refused):
        n1.within(web_main, *asking("db"))

    # 10M towards the pod and 20M from it, in bytes per second.
    shown = json.loads(inside("/run/netns/n1", "tc", "-j", "qdisc", "show").stdout)
    buckets = {one["dev"][:2]: one["options"]["rate"] for one in shown if one["kind"] == "tbf"}
    assert buckets == {"vh": 1_250_000, "vc": 2_500_000}

    n1.stop(web)
    n2.stop(api)
    assert replicas(cluster, "n1") == replicas(cluster, "n2") == {}
    settle(lambda: _picture(n1, n2), before)


@pytest.mark.parametrize(
    ("name", "annotations", "words"),
    [
        ("lonely", {}, "service: missing for pod .*lonely.*noctule.io/service"),
        ("db-0", {"noctule.io/servise": "db"}, "noctule.io/servise: unknown annotation"),
    ],
)
def test_a_pod_that_names_no_service(
    n1: Pods, name: str, annotations: dict[str, str], words: str
) -> None:
    """The kubelet shows the sentence, which names the annotation; nothing stays."""
    before = _picture(n1)
    with pytest.raises(Refused, match=words):
        n1.ask("RunPodSandbox", config=n1.pod(name, annotations=annotations))
    # The kubelet then stops and removes what the list shows, if anything.
    n1.stop(*(one["id"] for one in n1.ask("ListPodSandbox")["items"]))
    settle(lambda: _picture(n1), before)


def test_pods_while_the_daemon_is_away(cluster: Cluster, n1: Pods) -> None:
    """A pod starts closed and is opened later; one that is removed meanwhile is gone."""
    before = _picture(n1)
    stays, main = n1.start(n1.pod("web-0", dns_config=DNS), "sleep", "10000")
    goes, _ = n1.start(n1.pod("web-1", dns_config=DNS), "sleep", "10000")
    assert len(replicas(cluster, "n1")) == 2
    cluster.kill("n1")
    n1.stop(goes)
    late, _ = n1.start(n1.pod("api-0", dns_config=DNS), *serving("late"))
    cluster.start("n1")
    until(lambda: _services(cluster, "n1") == ["api", "web"], "the daemon to take over")
    until(lambda: "late" in _tried(n1, main), "web to reach what started closed")
    n1.stop(stays, late)
    assert replicas(cluster, "n1") == {}
    settle(lambda: _picture(n1), before)


def _services(cluster: Cluster, node: str) -> list[str]:
    return sorted(one["service"] for one in replicas(cluster, node).values())


def _tried(node: Pods, container: str) -> str:
    try:
        return node.within(container, *asking("api"))
    except Refused:
        return ""


def test_status_costs_next_to_nothing(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """STATUS as libcni has it asked, in processor time beside that of starting an interpreter
    which does nothing: other work on the machine makes both dearer alike."""
    config = {
        "cniVersion": "1.1.0", "name": NETWORK, "type": "noctule", **FIELDS,
        "key": {"file": str(cluster.base / "mesh.key")}, "socket": str(cluster.socket("n1")),
    }  # fmt: skip
    variables = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/opt/cni/bin", "PATH": os.environ["PATH"]}
    text = json.dumps(config)
    start, idle, _ = _costs(cluster, lambda: run(sys.executable, "-I", "-S", "-c", "pass"))
    executable, daemon, took = _costs(cluster, lambda: cluster.execute("n1", variables, text))
    daemon = max(0.0, daemon - idle) * took
    with capsys.disabled():
        print(
            f"\nSTATUS uses {executable * 1e3:.0f} ms of processor and has noctuled use "
            f"{daemon * 1e3:.0f} ms; an interpreter's bare start uses {start * 1e3:.0f} ms. Every "
            f"{PERIOD:.0f} s that is {(executable + daemon) / PERIOD:.1%} of this processor."
        )
    assert executable + daemon < 4 * start


def _costs(cluster: Cluster, call: Callable[[], object]) -> tuple[float, float, float]:
    """Return the seconds of processor that a call's processes use, how much of a processor the
    daemon of n1 uses meanwhile, and the seconds that a call takes."""
    call()
    times, began = 10, time.monotonic()
    daemon, processes = _processor(cluster), _children()
    for _ in range(times):
        call()
    took = time.monotonic() - began
    return (
        (_children() - processes) / times,
        (_processor(cluster) - daemon) / took,
        took / times,
    )


def _processor(cluster: Cluster) -> float:
    """Return the seconds of processor that the daemon of n1 has used so far."""
    words = Path(f"/proc/{cluster.daemons['n1'].pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _children() -> float:
    """Return the seconds of processor that processes which have ended used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
