"""node.yaml: what is wrong in it is said by name."""

from __future__ import annotations

import pytest

from daemon import config
from netconf.errors import DecodeFailure, InvalidConfig, NoctuleError

GOOD = """\
cluster: lab
node: n2
mesh:
  links:
    - interface: eth1
    - geneve: {remote: 198.51.100.3, id: 7}
addresses: {pool: 10.64.0.0/12, slice: 10.64.32.0/20, vips: 10.80.0.0/16}
fabric:
  listen: [tls/192.0.2.2:7447]
  confirm_ms: 100
  identity: {ca: /pki/ca.crt, certificate: /pki/n2.crt, key: /pki/n2.key}
policy: {authority: /pki/authority.crt}
"""


VIPS = "vips: 10.80.0.0/16"


def test_good() -> None:
    read = config.parse(GOOD)
    assert (read.cluster, read.node, read.addresses.slice) == ("lab", "n2", "10.64.32.0/20")
    assert read.paths.socket == "/run/noctule/noctuled.sock"


@pytest.mark.parametrize(
    ("old", "new", "kind", "words"),
    [
        ("cluster: lab", "cluster: lab\ncolour: red", InvalidConfig, ["colour", "unknown key"]),
        ("confirm_ms", "confirm_mss", InvalidConfig, ["fabric", "confirm_mss", "confirm_ms"]),
        ("confirm_ms: 100", "confirm_ms: 99999", InvalidConfig, ["fabric.confirm_ms", "10000"]),
        ("cluster: lab", "cluster: lab\ncluster: lab", DecodeFailure, ["cluster", "twice"]),
        ("cluster: lab", "cluster: 7", InvalidConfig, ["cluster:"]),
        ("cluster: lab", "cluster: [lab", DecodeFailure, ["line 2", "column"]),
        ("cluster: lab\n", "", InvalidConfig, ["cluster"]),
        ("node: n2", "node: n/2", InvalidConfig, ["node", "n/2"]),
        ("10.64.32.0/20", "10.99.0.0/20", InvalidConfig, ["addresses.slice", "10.64.0.0/12"]),
        ("10.64.32.0/20", "10.64.32.0/31", InvalidConfig, ["addresses.slice", "/30"]),
        ("10.64.32.0/20", "10.64.32.1/20", InvalidConfig, ["addresses.slice", "host bits"]),
        ("10.80.0.0/16", "10.65.0.0/16", InvalidConfig, ["addresses.vips", "10.64.0.0/12"]),
        ("[tls/192.0.2.2:7447]", "[udp/x:1]", InvalidConfig, ["fabric.listen[0]", "udp/x:1"]),
        ("[tls/192.0.2.2:7447]", "[]", InvalidConfig, ["fabric.listen"]),
        (VIPS, f"{VIPS}, ula: fd4e::/33g", InvalidConfig, ["addresses.ula", "/96"]),
        (VIPS, f"{VIPS}, ula: 10.0.0.0/8", InvalidConfig, ["addresses.ula", "fd4e:6f63:"]),
        (VIPS, f"{VIPS}, ula: fd4e::1/96", InvalidConfig, ["addresses.ula", "host bits"]),
        (VIPS, f"{VIPS}, ula: fd4e::/97", InvalidConfig, ["addresses.ula", "longer than /96"]),
        (VIPS, f"{VIPS}, ula: 2001:db8::/96", InvalidConfig, ["addresses.ula", "unique local"]),
        (VIPS, f"{VIPS}, ula: fe80::/96", InvalidConfig, ["addresses.ula", "unique local"]),
        (VIPS, f"{VIPS}, ula: fc00::/6", InvalidConfig, ["addresses.ula", "unique local"]),
        (GOOD, "", InvalidConfig, ["mapping", "nothing"]),
    ],
)
def test_bad(old: str, new: str, kind: type[NoctuleError], words: list[str]) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(kind) as caught:
        config.parse(text)
    for word in ["node.yaml", *words]:
        assert word in caught.value.message


@pytest.mark.parametrize("ula", ["fd4e:6f63:7475::/96", "FD4E:6F63:7475:0::/96", "fc00::/7"])
def test_an_ipv6_network_is_read_in_one_spelling(ula: str) -> None:
    read = config.parse(GOOD.replace(VIPS, f"{VIPS}, ula: '{ula}'"))
    assert read.addresses.ula == ula.lower().replace(":0::", "::")
    assert config.parse(GOOD).addresses.ula == ""


def test_an_ipv6_network_needs_a_mesh_that_can_carry_it() -> None:
    text = GOOD.replace(VIPS, f"{VIPS}, ula: fd4e:6f63:7475::/96")
    config.parse(text.replace("mesh:", "mesh:\n  mtu: 1304"))
    with pytest.raises(InvalidConfig, match=r"mesh\.mtu: 1303 .* 1304 or more"):
        config.parse(text.replace("mesh:", "mesh:\n  mtu: 1303"))
