"""The mesh section's own rules: what is wrong whatever the kernel has."""

from __future__ import annotations

import msgspec
import pytest

from netconf.errors import InvalidConfig
from netconf.mesh.config import Geneve, Link, MeshConfig, validate

GOOD = Link(interface="eth1")


def test_what_the_design_shows_is_valid() -> None:
    validate(MeshConfig(links=[GOOD, Link(geneve=Geneve(remote="192.0.2.3", id=7))]))
    validate(MeshConfig(links=[Link(geneve=Geneve(remote="2001:db8::3", id=0))], mtu=1400))
    validate(MeshConfig(links=[Link(geneve=Geneve(remote="192.0.2.3", id=1, local="192.0.2.1"))]))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (MeshConfig(links=[]), r"mesh\.links: there is none"),
        (MeshConfig(links=[GOOD, Link()]), r"mesh\.links\[1\]: give either"),
        (
            MeshConfig(links=[Link(interface="eth1", geneve=Geneve(remote="192.0.2.3", id=7))]),
            r"mesh\.links\[0\]: give either",
        ),
        (MeshConfig(links=[GOOD, GOOD]), r"mesh\.links\[1\]: eth1 is link 0 already"),
        (
            MeshConfig(links=[Link(geneve=Geneve(remote="peer", id=7))]),
            r"mesh\.links\[0\]\.geneve\.remote: 'peer'",
        ),
        (
            MeshConfig(links=[Link(geneve=Geneve(remote="192.0.2.3", id=1 << 24))]),
            r"mesh\.links\[0\]\.geneve\.id: 16777216",
        ),
        (
            MeshConfig(links=[Link(geneve=Geneve(remote="192.0.2.3", id=7, local="eth0"))]),
            r"mesh\.links\[0\]\.geneve\.local: 'eth0' .* give this node's address",
        ),
        (
            MeshConfig(links=[Link(geneve=Geneve(remote="192.0.2.3", id=7, local="2001:db8::1"))]),
            r"mesh\.links\[0\]\.geneve\.local: .* of two IP versions",
        ),
        (
            MeshConfig(
                links=[
                    Link(geneve=Geneve(remote="192.0.2.3", id=7, local="192.0.2.1")),
                    Link(geneve=Geneve(remote="192.0.2.3", id=8, local="192.0.2.2")),
                ]
            ),
            r"mesh\.links\[1\]\.geneve\.local: link 0 goes to 192.0.2.3 as well",
        ),
        # The same peer in two spellings.
        (
            MeshConfig(
                links=[
                    Link(geneve=Geneve(remote="2001:DB8:0::3", id=7, local="2001:db8::1")),
                    Link(geneve=Geneve(remote="2001:db8::3", id=8, local="2001:db8::2")),
                ]
            ),
            r"mesh\.links\[1\]\.geneve\.local: link 0 goes to 2001:db8::3 as well",
        ),
        (MeshConfig(links=[Link(interface="e", throughput=5)]), r"links\[0\]\.throughput"),
        (MeshConfig(links=[GOOD], mtu=1501), r"mesh\.mtu: 1501"),
        (MeshConfig(links=[GOOD], mtu=100), r"mesh\.mtu: 100"),
    ],
)
def test_what_is_wrong_is_named(config: MeshConfig, text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        validate(config)


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        ("2001:DB8:0:0::0003", "2001:db8::3"),
        ("::ffff:c000:201", "::ffff:192.0.2.1"),
        ("192.0.2.3", "192.0.2.3"),
    ],
)
def test_addresses_are_spelled_as_the_kernel_spells_them(written: str, spelled: str) -> None:
    """Compared with the kernel's spelling at each look, another would be set right for ever."""
    file = {"links": [{"geneve": {"remote": written, "id": 7, "local": written}}]}
    read = msgspec.convert(file, MeshConfig).links[0].geneve
    assert read == Geneve(remote=spelled, id=7, local=spelled)
    assert (read.remote, read.local) == (spelled, spelled)
    validate(msgspec.convert(file, MeshConfig))
