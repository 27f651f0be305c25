"""Whatever is wrong with what people and runtimes say: told by name, and nothing changes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bare import Bare, bare
from tests.e2e.cluster import POLICY, Cluster, Failed
from tests.e2e.inventory import Bag, inventory, settle
from tests.e2e.machine import run


@pytest.fixture(scope="module")
def box(lone: Cluster) -> Bare:
    """A container that never gets attached for long."""
    made = bare(lone, "box", "web")
    made.result = lone.cni("ADD", made)
    lone.cni("DEL", made)
    return made


@pytest.fixture(scope="module")
def before(lone: Cluster, box: Bare) -> Bag:
    return inventory(lone, "n1", box)


def _file(name: str, content: bytes) -> Callable[[Cluster], dict[str, Any]]:
    """A configuration whose secret is a file that was written for it."""

    def fields(cluster: Cluster) -> dict[str, Any]:
        path = cluster.base / name
        path.write_bytes(content)
        return {"key": {"file": str(path)}}

    return fields


# What is wrong; fields of the configuration; variables, None for missing; code; words.
CASES: list[tuple[str, Any, dict[str, str | None], int, list[str]]] = [
    ("version unknown", {"cniVersion": "9.9.9"}, {}, 1, ["cniVersion", "9.9.9", "1.1.0"]),
    ("version malformed", {"cniVersion": "one"}, {}, 6, ["cniVersion", "one"]),
    ("unknown field", {"servise": "web"}, {}, 7, ["servise"]),
    ("IPAM not there", {"ipam": {"type": "tulip"}}, {}, 7, ["ipam.type", "tulip", "CNI_PATH"]),
    ("no service", {"service": None}, {}, 7, ["service"]),
    ("key missing", {"key": None}, {}, 7, ["key", "file"]),
    ("key file missing", {"key": {"file": "/nowhere"}}, {}, 7, ["key.file", "/nowhere"]),
    ("secret of 5 bytes", _file("short", b"12345"), {}, 7, ["key.file", "5 bytes", "16"]),
    ("key file endless", {"key": {"file": "/dev/zero"}}, {}, 7, ["key.file", "large"]),
    ("namespace gone", {}, {"CNI_NETNS": "/run/netns/gone"}, 3, ["CNI_NETNS", "/run/netns/gone"]),
    ("no namespace", {}, {"CNI_NETNS": "/proc/self/ns/uts"}, 3, ["CNI_NETNS", "uts"]),
    ("the node's own", {}, {"CNI_NETNS": "/run/netns/n1"}, 8, ["CNI_NETNS"]),
    (
        "variables missing", {}, {"CNI_CONTAINERID": None, "CNI_IFNAME": None}, 4,
        ["CNI_CONTAINERID", "CNI_IFNAME"],
    ),
    ("interface name", {}, {"CNI_IFNAME": "much-too-long-a-name"}, 4, ["CNI_IFNAME", "15"]),
    ("unknown verb", {}, {"CNI_COMMAND": "ADDD"}, 4, ["CNI_COMMAND", "ADDD"]),
    ("unknown argument", {}, {"CNI_ARGS": "COLOUR=red"}, 4, ["CNI_ARGS", "COLOUR"]),
    ("address malformed", {}, {"CNI_ARGS": "IP=10.64.16.999"}, 4, ["CNI_ARGS: IP"]),
    ("address not ours", {}, {"CNI_ARGS": "IP=10.64.32.9"}, 7, ["address", "10.64.16.0/20"]),
    ("address of the net", {}, {"CNI_ARGS": "IP=10.64.16.0"}, 7, ["address", "10.64.16.0"]),
    ("MAC not ours", {}, {"CNI_ARGS": "MAC=02:00:00:00:00:01"}, 7, ["mac"]),
    ("socket relative", {"socket": "run/noctuled.sock"}, {}, 7, ["socket"]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_add(lone: Cluster, box: Bare, before: Bag, case: Any) -> None:
    _, fields, variables, code, words = case
    if callable(fields):
        fields = fields(lone)
    environment = lone.environment("ADD", box)
    for name, value in variables.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    _refused(lone, environment, json.dumps(lone.config(box, **fields)), code, words)
    settle(lambda: inventory(lone, "n1", box), before)


@pytest.mark.parametrize(
    ("stdin", "words"),
    [("{broken", ["not JSON"]), ("", ["not JSON"]), ("[]", ["object"]), ('{"a":NaN}', ["JSON"])],
)
def test_broken_json(lone: Cluster, box: Bare, before: Bag, stdin: str, words: list[str]) -> None:
    _refused(lone, lone.environment("ADD", box), stdin, 6, ["stdin", *words])
    settle(lambda: inventory(lone, "n1", box), before)


def test_address_taken(lone: Cluster, box: Bare, before: Bag) -> None:
    other = bare(lone, "other", "web")
    try:
        other.result = lone.cni("ADD", other)
        environment = lone.environment("ADD", box, CNI_ARGS=f"IP={other.address}")
        config = json.dumps(lone.config(box))
        _refused(lone, environment, config, 7, ["address", other.address, "another"])
    finally:
        lone.delete("other")
    settle(lambda: inventory(lone, "n1", box), before)


def _refused(
    cluster: Cluster, environment: dict[str, str], stdin: str, code: int, words: list[str]
) -> None:
    """Assert that the executable exits with 1 and this code, and that its message has `words`."""
    with pytest.raises(Failed) as caught:
        cluster.execute("n1", environment, stdin)
    assert caught.value.code == code, caught.value
    assert set(caught.value.error) == {"cniVersion", "code", "msg", "details"}
    for word in words:
        assert word in caught.value.error["msg"] + caught.value.error["details"], caught.value


# --- node.yaml

CONFIGS = [
    ("an unknown key", ("cluster: lab", "cluster: lab\ncolour: red"), ["colour", "unknown key"]),
    ("a slice outside the pool", ("slice: 10.64.32.0/20", "slice: 10.99.0.0/20"),
     ["addresses.slice", "10.99.0.0/20", "10.64.0.0/12"]),
    ("a link twice", ("id: 7}", "id: 7}\n    - interface: eth1"), ["mesh.links[2]", "eth1"]),
    ("no certificate", ("n2.crt", "nowhere.crt"), ["nowhere.crt"]),
    ("another's certificate", ("n2.crt", "n1.crt"), ["fabric.identity"]),
]  # fmt: skip


def test_node_yaml(lone: Cluster) -> None:
    """All at once: each daemon spends seconds on imports before it reads a word.

    What else can be wrong in the file is tests/unit/test_config.py's.
    """
    usual = lone.node_yaml("n2")
    before = _kernel(lone)
    started: list[tuple[Any, subprocess.Popen[str]]] = []
    for number, case in enumerate(CONFIGS):
        what, replace, _ = case
        text = usual.replace(*replace)
        assert text != usual, what
        path = lone.base / f"node-{number}.yaml"
        path.write_text(text)
        command = ["nsenter", "--net=/run/netns/n2", "noctuled", "--config", str(path)]
        started.append((case, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
    for (what, _, words), process in started:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 1, f"{what}: {process.returncode} {stderr}"
        lines = [json.loads(line) for line in stderr.splitlines()]
        (line,) = [line for line in lines if line["event"] == "cannot run"]
        for word in words:
            assert word in line["error"] + line["details"], f"{what}: {line}"
    settle(lambda: _kernel(lone), before)


def _kernel(cluster: Cluster) -> Bag:
    """What n2 has but for files: a daemon that gets as far as the mesh has made its own."""
    found = inventory(cluster, "n2", daemon=False)
    return Bag({line: count for line, count in found.items() if not line.startswith("file ")})


# --- policy.yaml

POLICIES = [
    ("an unknown key", ("allow:", "colour: red\nallow:"), ["colour", "unknown key"]),
    ("an unknown key deep down", ("protocol: tcp, port: 80", "protocl: tcp, port: 80"),
     ["services", "protocl"]),
    ("a service that does not exist", ("to: api", "to: apu"), ["allow[0].to", "apu", "api"]),
    ("a port that is none", ("tcp/5432, icmp", "tcp/543210, icmp"), ["allow[1].ports"]),
    ("a VIP elsewhere", ("web: {}", "web: {vip: 10.99.0.1}"), ["services.web.vip"]),
    ("broken YAML", ("services:", "services: ["), ["line"]),
]  # fmt: skip


def test_policy_yaml(lone: Cluster, box: Bare, before: Bag) -> None:
    version = lone.status("n1")["policy"]["version"]
    path = lone.base / "bad.yaml"
    for what, replace, words in POLICIES:
        text = POLICY.replace(*replace)
        assert text != POLICY, what
        path.write_text(text)
        done = run(
            *("noctulectl", "--socket", str(lone.socket("n1")), "policy", "apply", str(path)),
            *("--key", str(lone.base / "pki" / "authority.key")),
            check=False,
        )
        assert done.returncode == 1, f"{what}: {done.stdout}{done.stderr}"
        for word in words:
            assert word in done.stderr, f"{what}: {done.stderr}"
    assert lone.status("n1")["policy"]["version"] == version
    settle(lambda: inventory(lone, "n1", box), before)


def test_the_socket_takes_no_nonsense(lone: Cluster, box: Bare, before: Bag) -> None:
    for body, code in ((b"{", 6), (b"[]", 7), (b'{"container": 1}', 7), (b'{"colour": "red"}', 7)):
        for verb in ("attach", "detach", "check", "gc"):
            assert lone.api("n1", "POST", f"/v1/{verb}", body)["code"] == code, (verb, body)
    assert not re.search(r'"level":"ERROR"', Path(lone.base / "n1" / "log").read_text())
    settle(lambda: inventory(lone, "n1", box), before)
