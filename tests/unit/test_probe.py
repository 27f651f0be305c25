"""A probe tells a daemon that is gone from a node that is gone; names are looked up ahead."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from daemon.liveness.probe import LOOK_UP_AGAIN, Addresses, Probe, look_up, probe
from tests.unit.fabric_kit import free_ports


def test_a_listener_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert asyncio.run(probe("127.0.0.1", server.getsockname()[1], 5)) is Probe.ANSWERS


def test_a_closed_port_refuses() -> None:
    assert asyncio.run(probe("127.0.0.1", free_ports(1)[0], 5)) is Probe.REFUSED


def test_a_node_that_takes_no_connection_is_silent() -> None:
    """A full accept queue drops what arrives, as a dead machine does."""
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        assert asyncio.run(probe("127.0.0.1", server.getsockname()[1], 0.05)) is Probe.SILENT


def test_no_way_there_is_silent() -> None:
    # 255.255.255.255 is no address to connect to: the kernel says so at once.
    assert asyncio.run(probe("255.255.255.255", 7447, 5)) is Probe.SILENT


@pytest.mark.parametrize(
    "endpoint", ["tcp/127.0.0.1:1", "tls/127.0.0.1", "tls/:1", "tls/::1:7447", "tls/a:0", ""]
)
def test_other_forms_lead_nowhere(endpoint: str) -> None:
    addresses = Addresses(_unused)
    asyncio.run(addresses.learn([endpoint], 0.0))
    assert addresses.of(endpoint) == []


def _unused(name: str) -> tuple[str, ...]:
    raise AssertionError(f"{name} was looked up")


def test_an_address_is_never_looked_up() -> None:
    addresses = Addresses(_unused)
    asyncio.run(addresses.learn(["tls/192.0.2.1:7447"], 0.0))
    assert addresses.of("tls/192.0.2.1:7447") == [("192.0.2.1", 7447)]


class Names:
    """A name server that can be lost."""

    def __init__(self) -> None:
        self.known = {"n2.example": ("192.0.2.2",), "n3.example": ("192.0.2.3", "2001:db8::3")}
        self.asked: list[str] = []

    def look_up(self, name: str) -> tuple[str, ...]:
        self.asked.append(name)
        if name not in self.known:
            raise OSError(name)
        return self.known[name]


TWO = "tls/n2.example:7447"
THREE = "tls/n3.example:1"


def test_a_name_stands_for_what_it_was_last() -> None:
    names = Names()
    addresses = Addresses(names.look_up)
    assert addresses.of(TWO) == []
    asyncio.run(addresses.learn([TWO, THREE], 0.0))
    assert addresses.of(TWO) == [("192.0.2.2", 7447)]
    assert addresses.of(THREE) == [("192.0.2.3", 1), ("2001:db8::3", 1)]
    asyncio.run(addresses.learn([TWO, THREE], LOOK_UP_AGAIN - 1))
    assert names.asked == ["n2.example", "n3.example"]
    names.known["n2.example"] = ("192.0.2.22",)
    asyncio.run(addresses.learn([TWO, THREE], LOOK_UP_AGAIN))
    assert addresses.of(TWO) == [("192.0.2.22", 7447)]


def test_a_lost_name_server_changes_nothing() -> None:
    names = Names()
    addresses = Addresses(names.look_up)
    asyncio.run(addresses.learn([TWO], 0.0))
    names.known.clear()
    for later in (100.0, 200.0):
        asyncio.run(addresses.learn([TWO, THREE], later))
    assert addresses.of(TWO) == [("192.0.2.2", 7447)]
    assert addresses.of(THREE) == []
    names.known["n3.example"] = ("192.0.2.3",)
    asyncio.run(addresses.learn([TWO, THREE], 200.1))
    assert addresses.of(THREE) == [("192.0.2.3", 1)]


def test_what_nobody_listens_at_any_more_is_forgotten() -> None:
    addresses = Addresses(Names().look_up)
    asyncio.run(addresses.learn([TWO], 0.0))
    asyncio.run(addresses.learn([], 1.0))
    assert addresses.of(TWO) == []


def test_a_look_up_without_end_delays_neither_the_loop_nor_its_end() -> None:
    release = threading.Event()
    addresses = Addresses(lambda _: (str(release.wait(60)),))

    async def main() -> None:
        learning = asyncio.ensure_future(addresses.learn([TWO], 0.0))
        assert await probe("127.0.0.1", free_ports(1)[0], 5) is Probe.REFUSED
        learning.cancel()

    asyncio.run(main())
    assert not release.is_set()
    release.set()


def test_the_machines_own_names_are_found() -> None:
    assert "127.0.0.1" in look_up("localhost")


def test_what_cannot_be_a_name_is_no_harm() -> None:
    with pytest.raises(ValueError, match="label"):
        look_up("a..b")
    addresses = Addresses()
    asyncio.run(addresses.learn(["tls/a..b:1"], 0.0))
    assert addresses.of("tls/a..b:1") == []
