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
