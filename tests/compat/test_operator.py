"""What an operator wrote and issued for the release before goes on serving after an upgrade."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cni import config as conflist
from daemon import config
from daemon.model import policy_file
from daemon.model.policy import compile
from daemon.model.store import Store
from daemon.model.trust import Trust
from daemon.model.verdict import Outcome
from tests.compat.released import Released, tree
from tests.unit.model_kit import KEYS, NOW, SLICES, VIPS

EXAMPLES = tree() / "packaging" / "examples"


def test_its_configuration_and_policy_are_read() -> None:
    node = config.parse((EXAMPLES / "node.yaml").read_text())
    text = (EXAMPLES / "policy.yaml").read_text()
    made = compile(policy_file.parse(text), None, VIPS, 1)
    assert made.nodes is not None
    assert made.nodes[node.node] == node.addresses.slice


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.conflist")), ids=lambda path: path.name)
def test_its_network_configuration_is_read(path: Path) -> None:
    whole = json.loads(path.read_text())
    ours = whole["plugins"][0]
    data = json.dumps({"cniVersion": whole["cniVersion"], "name": whole["name"], **ours})
    for verb in ("ADD", "DEL", "CHECK", "STATUS", "GC"):
        asked = json.dumps(json.loads(data) | {"prevResult": {}, "cniVersion": "1.1.0"})
        assert conflist.read(asked.encode(), verb).name == whole["name"]


def test_its_certificates_are_trusted(old: Released, tmp_path: Path) -> None:
    """And what nodes sign with them is believed."""
    old("issue", str(tmp_path), "lab", list(SLICES), NOW)
    trust = Trust.load(tmp_path / "ca.crt", tmp_path / "authority.crt")
    known = Store("lab", trust)
    for node, slice in SLICES.items():
        sealed = old("seal", str(tmp_path), node, KEYS.info(node), 1, "NodeInfo", {
            "node": node, "certificate": (tmp_path / f"{node}.crt").read_text(),
            "endpoints": ("tls/192.0.2.1:7447",), "slice": slice, "mtu": 1468,
        })  # fmt: skip
        assert known.offer(sealed, NOW).outcome is Outcome.ACCEPTED
    text = (EXAMPLES / "policy.yaml").read_text()
    sealed = old("seal_policy", str(tmp_path), text, 1, str(VIPS))
    assert known.offer(sealed, NOW).outcome is Outcome.ACCEPTED
