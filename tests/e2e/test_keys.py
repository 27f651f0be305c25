"""The same key, SCI and packet number never occur twice, whatever is started again.

GCM under one key falls apart when a nonce repeats, and the nonce is SCI and packet number.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
from dataclasses import dataclass

import pytest

from tests.e2e.bare import bare
from tests.e2e.cluster import Cluster
from tests.e2e.container import Container
from tests.e2e.machine import inside, run, until


@dataclass(frozen=True)
class Transmission:
    """The SA that a replica sends with."""

    sci: str
    key: str
    an: int
    pn: int


def transmission(container: Container) -> Transmission:
    """Read it with iproute2's eyes."""
    shown = inside(container.netns, "ip", "macsec", "show").stdout
    found = re.search(
        r"TXSC: (?P<sci>[0-9a-f]+) on SA (?P<an>\d)\s+"
        r"(?P=an): PN (?P<pn>\d+), state on, key (?P<key>[0-9a-f]+)",
        shown,
    )
    assert found, shown
    return Transmission(found["sci"], found["key"], int(found["an"]), int(found["pn"]))


class Ledger:
    """All keys that were ever in use, by SCI."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def fresh(self, container: Container) -> Transmission:
        """Note the key of a container that was just attached; it must never have been seen."""
        now = transmission(container)
        assert (now.sci, now.key) not in self._seen, f"{container.name} sends with an old key"
        self._seen.add((now.sci, now.key))
        return now


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture(scope="module")
def api(lone: Cluster, ledger: Ledger) -> Container:
    made = lone.add("api", "n1", "api", 8080)
    ledger.fresh(made)
    return made


def _attach(cluster: Cluster, container: Container, address: str = "") -> None:
    """ADD, at a given address if any."""
    variables = {"CNI_ARGS": f"IP={address}"} if address else {}
    environment = cluster.environment("ADD", container, **variables)
    config = json.dumps(cluster.config(container))
    container.result = cluster.execute(container.node, environment, config)


def _echo(stream: socket.socket) -> None:
    stream.sendall(b"still there")
    assert stream.recv(100) == b"still there"


def test_attached_again(lone: Cluster, api: Container, ledger: Ledger) -> None:
    """The same container at the same address: the same SCI, and another key each time."""
    box = bare(lone, "again", "web")
    _attach(lone, box)
    address = box.address
    first = ledger.fresh(box)
    for _ in range(4):
        lone.cni("DEL", box)
        _attach(lone, box, address)
        assert box.address == address
        assert ledger.fresh(box).sci == first.sci
        assert box.greet(api.address, 8080) == "api", "the peer did not follow to the new key"
    lone.delete(box.name)


def test_container_started_again(lone: Cluster, api: Container, ledger: Ledger) -> None:
    """A new namespace under the old name, with and without a DEL in between."""
    box = bare(lone, "restarted", "web")
    _attach(lone, box)
    address = box.address
    ledger.fresh(box)
    for deleted in (True, False, True):
        old = lone.containers.pop(box.name)
        if deleted:
            lone.cni("DEL", old)
        old.kill()
        box = bare(lone, "restarted", "web")
        _attach(lone, box, address if deleted else "")
        ledger.fresh(box)
        assert box.greet(api.address, 8080) == "api"
        address = box.address
    lone.delete(box.name)


def test_daemon_started_again(lone: Cluster, api: Container, ledger: Ledger) -> None:
    """What runs is not touched: the same key, and packet numbers that only grow."""
    box = bare(lone, "running", "web")
    _attach(lone, box)
    ledger.fresh(box)
    with box.dial(api.address, 8080) as stream:
        assert stream.recv(100) == b"api\n"
        for _ in range(2):
            before = [transmission(one) for one in (box, api)]
            lone.kill("n1")
            _echo(stream)
            lone.start("n1")
            until(lambda: lone.status("n1")["ready"], "the daemon to be ready")
            assert lone.differences("n1") == []
            _echo(stream)
            for one, was in zip((box, api), before, strict=True):
                now = transmission(one)
                assert (now.sci, now.key, now.an) == (was.sci, was.key, was.an)
                assert now.pn > was.pn
    lone.delete(box.name)


def test_node_started_again(lone: Cluster, api: Container, ledger: Ledger) -> None:
    """As after a reboot: no state, no devices, no containers; the same names and addresses."""
    address, old = api.address, transmission(api)
    lone.kill("n1")
    lone.containers.pop(api.name).kill()
    shutil.rmtree(lone.base / "n1" / "run")
    for link in json.loads(run("ip", "-n", "n1", "-j", "link").stdout):
        if link["ifname"] not in ("lo", "eth1"):
            # The other end of a veth pair may be gone with the first.
            run("ip", "-n", "n1", "link", "del", link["ifname"], check=False)
    inside("/run/netns/n1", "nft", "flush", "ruleset")
    lone.start("n1")
    assert lone.status("n1")["policy"], "the policy must survive a reboot"

    container = lone.launch("api", "n1", "api", 8080)
    _attach(lone, container, address)
    box = bare(lone, "web", "web")
    _attach(lone, box)
    assert ledger.fresh(container).sci == old.sci
    ledger.fresh(box)
    assert box.greet(lone.vip("api"), 80) == "api"
