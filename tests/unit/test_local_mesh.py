"""What a node makes of its mesh and of what the others were told; the kernel's part is played."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from daemon import config
from daemon.attachments.registry import Registry
from daemon.journal import Journal
from daemon.mesh.local_mesh import LocalMesh
from daemon.model.records import NodeInfo
from daemon.process.workers import Pool
from netconf import frames, names
from netconf.attach import inspection
from netconf.attach.attachment import Attachment
from netconf.attach.state import State
from netconf.errors import InvalidConfig, KernelFailure
from netconf.mesh import devices
from netconf.mesh.config import MTU_MIN, MeshConfig
from netconf.mesh.devices import MeshFacts
from tests.unit.test_config import GOOD, VIPS

ULA = "fd4e:6f63:7475::/96"
FACTS = MeshFacts(
    mtu=1468, limit=1468, hard={"eth1": "06:00:00:00:00:01"}, mesh_index=1, bridge_index=2
)


def info(node: str, mtu: int = 1468, ula: str = "") -> NodeInfo:
    return NodeInfo(node=node, certificate="", endpoints=(), slice="", mtu=mtu, ula=ula)


def attachment(number: int) -> Attachment:
    return Attachment(
        id=f"{number:012x}",
        network="mesh",
        container="c",
        ifname="eth0",
        netns="/run/netns/c",
        netns_id=(1, 1),
        service="web",
        key_file="",
        address=f"10.64.16.{number}",
        salt="0" * 64,
        an=0,
        mtu=1468,
        phase="ready",
    )


class Kernel:
    """What the next bring-up finds, and what each was asked for."""

    def __init__(self, limit: int = 1468) -> None:
        self.facts = msgspec.structs.replace(FACTS, mtu=limit, limit=limit)
        self.failure: Exception | None = None
        self.adopted: list[bool] = []
        self.floors: list[int] = []
        self.mended: list[str] = []
        self.announced: list[str] = []

    def bring_up(
        self,
        _: MeshConfig,
        *,
        mesh_mtu: int | None,
        floor: int = 0,
        before: MeshFacts | None = None,
        adopt: bool = False,
    ) -> MeshFacts:
        self.adopted.append(adopt)
        self.floors.append(floor)
        if self.failure is not None:
            raise self.failure
        limit = self.facts.limit
        return msgspec.structs.replace(self.facts, mtu=min(limit, mesh_mtu or limit))

    def mend(self, _node: object, _state: object, attachment_id: str) -> list[str]:
        self.mended.append(attachment_id)
        return [f"vh{attachment_id} is not a port of noctule0; set right"]


class Scene:
    """The mesh of n2 beside other nodes, on a kernel that is played."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
        self.folder = folder
        self.kernel = kernel
        self.infos: list[NodeInfo] = []
        self.registry = Registry()
        self.changes: list[str] = []
        monkeypatch.setattr(devices, "bring_up", kernel.bring_up)
        monkeypatch.setattr(inspection, "mend", kernel.mend)
        monkeypatch.setattr(frames, "announce", kernel.announced.append)

    def play(
        self, scene: Callable[[LocalMesh], Awaitable[None]] | None = None, ula: str = ""
    ) -> LocalMesh:
        """Start the mesh, and go on with `scene`."""
        text = GOOD.replace(VIPS, f'{VIPS}, ula: "{ula}"')

        async def run() -> LocalMesh:
            made = LocalMesh(
                config.parse(text),
                State(self.folder),
                pool,
                Journal(),
                self.registry,
                infos=lambda: self.infos,
                changed=lambda: self.changes.append("paths"),
                announce=lambda: self.changes.append("announce"),
            )
            await made.start()
            if scene is not None:
                await scene(made)
            return made

        with contextlib.closing(Pool("test", 1)) as pool:
            return asyncio.run(run())


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> Scene:
    return Scene(tmp_path, monkeypatch, kernel)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("ula", "poor", "mtu"),
    [("", 576, 576), ("", 575, 1468), (ULA, 1304, 1304), (ULA, 1303, 1468)],
)
def test_no_node_lowers_the_mtu_below_what_ip_needs(
    scene: Scene, ula: str, poor: int, mtu: int
) -> None:
    scene.infos = [info("n1"), info("n3", poor)]
    made = scene.play(ula=ula)
    assert (made.facts.mtu, made.facts.ula) == (mtu, ula)


def test_a_mesh_that_cannot_carry_ipv6_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = Scene(tmp_path, monkeypatch, Kernel(limit=1303))
    poor.play()
    with pytest.raises(InvalidConfig, match=r"addresses\.ula: .* 1304 bytes, and .* 1303"):
        poor.play(ula=ULA)


def test_a_mesh_is_ours_once_this_node_has_run(scene: Scene, kernel: Kernel) -> None:
    """Release 0.1.0 left node.json, and no mark on bat0."""
    scene.play()
    scene.play()
    assert kernel.adopted == [False, True]


def test_what_is_missing_is_waited_for_and_said_once(
    scene: Scene, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    why = "mesh.links[0].interface: no interface eth1"
    complete = kernel.facts
    kernel.facts = msgspec.structs.replace(complete, hard={}, waiting={"mesh.links[0]": why})

    async def go(made: LocalMesh) -> None:
        assert made.trouble == (why,)
        for _ in range(3):
            assert await made.verify() == [why]
        kernel.facts = complete
        assert await made.verify() == []

    caplog.set_level(logging.INFO)
    scene.play(go)
    assert said(caplog) == ["mesh link not in use", "mesh link in use"]
    assert scene.changes == ["announce"], "others hear of the interface that came"


def test_what_was_set_right_is_said_once(
    scene: Scene, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody undoes it each second: one line, not one a second."""

    async def go(made: LocalMesh) -> None:
        kernel.facts = msgspec.structs.replace(kernel.facts, mended=("eth1 was down",))
        for _ in range(3):
            assert await made.verify() == ["mesh: eth1 was down; set right"]

    scene.play(go)
    assert said(caplog) == ["mesh repaired"]


def test_a_refusal_of_the_kernel_is_trouble_until_it_ends(scene: Scene, kernel: Kernel) -> None:
    async def go(made: LocalMesh) -> None:
        kernel.failure = KernelFailure("the kernel refused to make bat0")
        assert await made.verify() == ["the kernel refused to make bat0"]
        assert made.trouble == ("the kernel refused to make bat0",)
        kernel.failure = None
        assert await made.verify() == []

    scene.play(go)


@pytest.mark.parametrize("device", ["mesh_index", "bridge_index"])
def test_a_device_made_anew_hears_of_the_containers(
    scene: Scene, kernel: Kernel, device: str
) -> None:
    one = attachment(5)
    scene.registry.add(one, fresh=False)

    async def go(made: LocalMesh) -> None:
        await made.verify()
        assert (kernel.mended, kernel.announced) == ([], [])
        kernel.facts = msgspec.structs.replace(kernel.facts, **{device: 77})
        assert await made.verify() == [
            f"{one.id} (web): vh{one.id} is not a port of noctule0; set right"
        ]
        assert (kernel.mended, kernel.announced) == ([one.id], [one.mac])
        await made.verify()
        assert kernel.announced == [one.mac], "once is enough"

    scene.play(go)


def test_an_announcement_that_failed_is_made_again(
    scene: Scene, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = attachment(5)
    scene.registry.add(one, fresh=False)

    def refuse(_: str) -> None:
        raise OSError(100, "Network is down")

    async def go(made: LocalMesh) -> None:
        kernel.facts = msgspec.structs.replace(kernel.facts, mesh_index=77)
        with monkeypatch.context() as patch:
            patch.setattr(frames, "announce", refuse)
            assert any("Network is down" in said for said in await made.verify())
        await made.verify()
        assert kernel.announced == [one.mac]

    scene.play(go)


def test_a_poorer_link_lowers_the_mtu_and_a_better_one_does_not_raise_it(
    scene: Scene, kernel: Kernel
) -> None:
    async def go(made: LocalMesh) -> None:
        kernel.facts = msgspec.structs.replace(kernel.facts, limit=1400)
        await made.verify()
        assert (made.facts.mtu, made.announced) == (1400, 1400)
        assert State(scene.folder).read_node().mtu == 1400
        kernel.facts = msgspec.structs.replace(kernel.facts, limit=1468)
        await made.verify()
        assert (made.facts.mtu, made.announced) == (1400, 1468)

    scene.play(go)
    assert scene.changes == ["announce", "announce"]


@pytest.mark.parametrize(("ula", "least"), [("", MTU_MIN), (ULA, names.MTU_MIN6)])
def test_looks_know_the_least_that_a_mesh_must_carry(
    scene: Scene, kernel: Kernel, ula: str, least: int
) -> None:
    async def go(made: LocalMesh) -> None:
        await made.verify()

    scene.play(go, ula)
    assert kernel.floors[-1] == least
