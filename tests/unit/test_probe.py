"""A probe tells a daemon that is gone from a node that is gone."""

from __future__ import annotations

import asyncio
import socket

import pytest

from daemon.cluster.probe import Probe, probe
from netconf.errors import InvalidConfig
from tests.unit.fabric_kit import free_ports


def test_a_listener_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"tls/127.0.0.1:{server.getsockname()[1]}"
        assert asyncio.run(probe(endpoint, 5)) is Probe.ANSWERS


def test_a_closed_port_refuses() -> None:
    assert asyncio.run(probe(f"tls/127.0.0.1:{free_ports(1)[0]}", 5)) is Probe.REFUSED


def test_a_node_that_takes_no_connection_is_silent() -> None:
    """A full accept queue drops what arrives, as a dead machine does."""
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        endpoint = f"tls/127.0.0.1:{server.getsockname()[1]}"
        assert asyncio.run(probe(endpoint, 0.05)) is Probe.SILENT


def test_no_way_there_is_silent() -> None:
    # 255.255.255.255 is no address to connect to: the kernel says so at once.
    assert asyncio.run(probe("tls/255.255.255.255:7447", 5)) is Probe.SILENT


@pytest.mark.parametrize(
    "endpoint", ["tcp/127.0.0.1:1", "tls/127.0.0.1", "tls/:1", "tls/::1:7447", "tls/a:0", ""]
)
def test_other_forms_are_refused(endpoint: str) -> None:
    with pytest.raises(InvalidConfig, match=r"^endpoint: "):
        asyncio.run(probe(endpoint, 1))
