"""The examples that are installed are what the code that reads them accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cni import config as conflist
from cni.environment import Environment
from daemon import config
from daemon.model import policy_file
from tests.unit.model_kit import VIPS, compile

EXAMPLES = Path(__file__).parents[2] / "packaging" / "examples"


OPERATING = EXAMPLES.parents[1] / "docs" / "operating.md"
CONFLISTS = re.findall(r"```json\n(\{\"cniVersion\".*?)```", OPERATING.read_text(), re.DOTALL)


@pytest.mark.parametrize("text", CONFLISTS, ids=["one service", "pods"])
def test_a_conflist_of_the_documentation_works(text: str) -> None:
    whole = json.loads(text)
    (ours,) = whole["plugins"]
    data = json.dumps({"cniVersion": whole["cniVersion"], "name": whole["name"], **ours})
    call = Environment("ADD", "c", "/n", "eth0", "IgnoreUnknown=1;K8S_POD_NAME=web-0")
    request = conflist.read(data.encode(), "ADD").request(call)
    assert [candidate.name for candidate in request.services] == ["web"]


def test_node_and_policy_belong_together() -> None:
    node = config.parse((EXAMPLES / "node.yaml").read_text())
    policy = policy_file.parse((EXAMPLES / "policy.yaml").read_text())
    assert node.addresses.vips == str(VIPS)
    made = compile(policy, None, VIPS, 1)
    assert made.nodes is not None
    assert made.nodes[node.node] == node.addresses.slice


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.conflist")), ids=lambda path: path.name)
def test_a_conflist_asks_for_an_attachment(path: Path) -> None:
    whole = json.loads(path.read_text())
    ours = [plugin for plugin in whole["plugins"] if plugin["type"] == "noctule"]
    assert ours == whole["plugins"][:1]  # it makes the interface, so it comes first
    data = json.dumps({"cniVersion": whole["cniVersion"], "name": whole["name"], **ours[0]})
    network = conflist.read(data.encode(), "ADD")
    request = network.request(Environment("ADD", container="c", netns="/n", ifname="eth0"))
    assert request.network == "mesh"
    assert [candidate.name for candidate in request.services] == ["web"]
    assert Path(request.key_file).is_relative_to("/etc/noctule")
