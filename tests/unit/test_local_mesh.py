"""What a node makes of its mesh and of what the others were told; the kernel's part is played."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from daemon import config
from daemon.journal import Journal
from daemon.mesh.local_mesh import LocalMesh
from daemon.model.records import NodeInfo
from daemon.workers import Pool
from netconf import mesh
from netconf.attach.state import State
from netconf.errors import InvalidConfig
from tests.unit.test_config import GOOD, VIPS

ULA = "fd4e:6f63:7475::/96"


def info(node: str, mtu: int = 1468, ula: str = "") -> NodeInfo:
    return NodeInfo(node=node, certificate="", endpoints=(), slice="", mtu=mtu, ula=ula)


def started(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *infos: NodeInfo,
    ula: str = "",
    limit: int = 1468,
) -> LocalMesh:
    """Return the links of n2 after their start, on interfaces that carry `limit` bytes."""

    def bring_up(_: mesh.MeshConfig, *, mesh_mtu: int | None) -> mesh.MeshFacts:
        return mesh.MeshFacts(
            mtu=min(limit, mesh_mtu or limit), limit=limit, hard={}, mesh_index=1, bridge_index=2
        )

    monkeypatch.setattr(mesh, "bring_up", bring_up)
    text = GOOD.replace(VIPS, f'{VIPS}, ula: "{ula}"')
    with contextlib.closing(Pool("test", 1)) as pool:
        made = LocalMesh(
            config.parse(text),
            State(folder),
            pool,
            Journal(),
            infos=lambda: infos,
            attachments=lambda: (),
            changed=lambda: None,
        )
        asyncio.run(made.start())
    return made


@pytest.mark.parametrize(
    ("ula", "poor", "mtu"),
    [("", 576, 576), ("", 575, 1468), (ULA, 1304, 1304), (ULA, 1303, 1468)],
)
def test_no_node_lowers_the_mtu_below_what_ip_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ula: str, poor: int, mtu: int
) -> None:
    made = started(tmp_path, monkeypatch, info("n1"), info("n3", poor), ula=ula)
    assert (made.facts.mtu, made.facts.ula) == (mtu, ula)


def test_a_mesh_that_cannot_carry_ipv6_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(tmp_path, monkeypatch, limit=1303)
    with pytest.raises(InvalidConfig, match=r"addresses\.ula: .* 1304 bytes, and .* 1303"):
        started(tmp_path, monkeypatch, ula=ULA, limit=1303)
