"""A fabric whose endpoints are IPv6 addresses: what zenoh 1.10 takes is not what people write."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import msgspec
import pytest
import zenoh

from daemon import config
from daemon.fabric import Settings
from daemon.fabric.interface import parse_endpoint
from daemon.fabric.zenoh_fabric import ZenohFabric
from netconf.errors import InvalidConfig
from tests.unit import fabric_kit
from tests.unit.fabric_kit import Authority, Recorder
from tests.unit.test_config import GOOD


def free_ports(count: int) -> list[int]:
    """Return TCP ports of ::1 that nobody used a moment ago."""
    sockets = [socket.create_server(("::1", 0), family=socket.AF_INET6) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def settings(authority: Authority, ports: list[int], *, verify: bool, valid: str) -> list[Settings]:
    """Return the settings of n1 and n2, whose certificates are `valid` at one address."""
    made = []
    for number, port in enumerate(ports, 1):
        told = authority.settings(f"n{number}", port, [])
        certificate, key = authority.issue(f"n{number}", valid)
        made.append(
            msgspec.structs.replace(
                told,
                listen=(f"tls/[::1]:{port}",),
                connect=tuple(f"tls/[::1]:{other}" for other in ports if other != port),
                certificate=str(certificate),
                key=str(key),
                verify_names=verify,
            )
        )
    return made


@pytest.mark.parametrize("verify", [True, False])
def test_two_nodes_meet_at_ipv6_addresses(tmp_path: Path, verify: bool) -> None:
    async def run() -> None:
        told = settings(Authority(tmp_path), free_ports(2), verify=verify, valid="::1")
        heard = [Recorder(), Recorder()]
        fabrics = [ZenohFabric(each) for each in told]
        try:
            for fabric, recorder in zip(fabrics, heard, strict=True):
                await fabric.open(recorder)
            await heard[0].until_alive({"n2"})
            await heard[1].until_alive({"n1"})
            assert await fabrics[0].ask("n2", b"question", 5.0) == [b"question"]
        finally:
            for fabric in fabrics:
                await fabric.close()

    asyncio.run(run())


def test_a_certificate_of_another_ipv6_address_is_refused(tmp_path: Path) -> None:
    """Verification is not lost on the way: the dialled address is compared with the names."""
    ports = free_ports(2)
    (told, other) = settings(Authority(tmp_path), ports, verify=True, valid="2001:db8::9")
    with zenoh.open(zenoh.Config.from_json5(fabric_kit.config(told))):
        for verify in (True, False):
            client = json.loads(
                fabric_kit.config(msgspec.structs.replace(other, verify_names=verify))
            ) | {"mode": "client", "listen": {"endpoints": []}}
            client["connect"] |= {"timeout_ms": 500, "exit_on_failure": True}
            text = json.dumps(client)
            if verify:
                with pytest.raises(zenoh.ZError):
                    zenoh.open(zenoh.Config.from_json5(text))
            else:
                zenoh.open(zenoh.Config.from_json5(text)).close()


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert parse_endpoint("tls/[2001:db8:0::1]:7447") == ("2001:db8::1", 7447)
    for endpoint, text in (
        ("tls/2001:db8::1:7447", r"as tls/\[ADDRESS\]:PORT"),
        ("tls/[2001:db8::1:7447", r"as tls/\[ADDRESS\]:PORT"),
        ("tls/[192.0.2.1]:7447", r"write tls/\[2001:db8::1\]:PORT"),
        ("tls/[]:7447", r"write tls/\[2001:db8::1\]:PORT"),
        ("tls/[fe80::1%eth0]:7447", "link-local"),
        ("tls/[fe80::1]:7447", "link-local"),
    ):
        with pytest.raises(InvalidConfig, match=text):
            parse_endpoint(endpoint)


def test_a_node_may_listen_at_an_ipv6_address_but_not_at_all_of_them() -> None:
    ipv4 = "tls/192.0.2.2:7447"
    assert ipv4 in GOOD
    assert config.parse(GOOD.replace(ipv4, '"tls/[2001:db8::1]:7447"')).fabric.listen == [
        "tls/[2001:db8::1]:7447"
    ]
    with pytest.raises(InvalidConfig, match="instead of ::"):
        config.parse(GOOD.replace(ipv4, '"tls/[::]:7447"'))
