"""Delegated IPAM: when the plugin is called, with what, and what becomes of its answers.

The plugin is a shell script that records each call and answers what the test says; the real
ones are in tests/clients/test_chains.py.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_kit import (
    Daemon,
    Outcome,
    configuration,
    dying,
    environment,
    previous,
    run,
    serving,
)

SCRIPT = """#!/bin/sh
n=$(ls {folder} | grep -c stdin)
cat > {folder}/$n.stdin
env > {folder}/$n.env
[ -e {folder}/$CNI_COMMAND.sh ] && . {folder}/$CNI_COMMAND.sh
exit 0
"""


class Plugin:
    """A recording IPAM plugin in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.records = folder / "records"
        self.records.mkdir()
        self.path = self.bin / "recorder"
        self.path.write_text(SCRIPT.format(folder=self.records))
        self.path.chmod(0o755)
        self.says({"ips": [{"address": "10.64.16.5/20", "gateway": "10.64.16.1"}]})

    def does(self, verb: str, shell: str) -> None:
        """Run `shell` when called with `verb`."""
        (self.records / f"{verb}.sh").write_text(shell)

    def says(self, result: Any, verb: str = "ADD") -> None:
        """Answer `verb` with `result`."""
        self.does(verb, f"printf %s '{json.dumps(result)}'\n")

    def fails(self, verb: str, code: int = 105, message: str = "no more tulips") -> None:
        """Answer `verb` with an error."""
        error = json.dumps({"code": code, "msg": message, "details": "sold out"})
        self.does(verb, f"printf %s '{error}'; exit 1\n")

    @property
    def calls(self) -> list[tuple[dict[str, str], Any]]:
        """(environment, stdin) of each call so far, in order."""
        found = []
        for number in range(len(list(self.records.glob("*.stdin")))):
            lines = (self.records / f"{number}.env").read_text().splitlines()
            variables = dict(line.split("=", 1) for line in lines if line.startswith("CNI_"))
            found.append((variables, json.loads((self.records / f"{number}.stdin").read_text())))
        return found

    @property
    def verbs(self) -> list[str]:
        return [variables["CNI_COMMAND"] for variables, _ in self.calls]


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "d.sock") as daemon:
        yield daemon


def call(verb: str, plugin: Plugin, socket: Path, **changes: Any) -> Outcome:
    fields: dict[str, Any] = {"ipam": {"type": "recorder", "subnet": "10.64.16.0/20"}, **changes}
    if verb in ("CHECK", "DEL"):
        fields.setdefault("prevResult", previous())
    variables = environment(
        verb, CNI_PATH=f"/nowhere::{plugin.bin}", PATH=os.environ["PATH"], CNI_ARGS="K8S_POD_NAME=p"
    )
    return run(variables, configuration(socket, **fields))


def test_the_plugin_says_the_address(plugin: Plugin, daemon: Daemon) -> None:
    outcome = call("ADD", plugin, daemon.socket)
    assert outcome.status == 0, outcome
    assert daemon.body["address"] == "10.64.16.5"
    assert daemon.body["address6"] is None
    # The network's prefix, not the plugin's; and no gateway, for there is none.
    assert outcome.json["ips"] == [{"address": "10.64.16.5/12", "interface": 0}]
    ((variables, stdin),) = plugin.calls
    assert stdin == {**configuration(daemon.socket), "ipam": stdin["ipam"]}
    assert stdin["ipam"] == {"type": "recorder", "subnet": "10.64.16.0/20"}
    expected = environment("ADD", CNI_PATH=f"/nowhere::{plugin.bin}", CNI_ARGS="K8S_POD_NAME=p")
    assert variables == expected


def test_both_families_and_name_servers(plugin: Plugin, daemon: Daemon) -> None:
    plugin.says(
        {
            "cniVersion": "1.1.0",
            "ips": [{"address": "fd4e::a40:1005/108"}, {"address": "10.64.16.5/20"}],
            "dns": {"nameservers": ["192.0.2.53"]},
            "routes": None,
        }
    )
    outcome = call("ADD", plugin, daemon.socket, dns={"nameservers": ["192.0.2.52"]})
    assert (daemon.body["address"], daemon.body["address6"]) == ("10.64.16.5", "fd4e::a40:1005")
    servers = ["127.0.0.78", "192.0.2.52", "192.0.2.53"]
    assert outcome.json["dns"] == {"nameservers": servers}


def test_what_the_runtime_asks_for_is_the_plugins_business(plugin: Plugin, daemon: Daemon) -> None:
    asked = {"ips": ["10.64.16.9", "anything"], "ipRanges": [[{"subnet": "10.64.16.0/24"}]]}
    outcome = call(
        "ADD", plugin, daemon.socket, runtimeConfig=asked, capabilities={"ipRanges": True}
    )
    assert outcome.status == 0, outcome
    assert daemon.body["address"] == "10.64.16.5"
    assert plugin.calls[0][1]["runtimeConfig"] == asked


def test_a_configuration_larger_than_a_pipe_and_a_plugin_that_does_not_read_it(
    plugin: Plugin, daemon: Daemon
) -> None:
    labels = {"cni": {"labels": "x" * 300_000}}
    assert call("ADD", plugin, daemon.socket, args=labels).status == 0
    assert plugin.calls[0][1]["args"] == labels
    plugin.path.write_text('#!/bin/sh\nprintf \'{"ips": [{"address": "10.64.16.6/20"}]}\'\n')
    assert call("ADD", plugin, daemon.socket, args=labels).status == 0
    assert daemon.requests[-1][2]["address"] == "10.64.16.6"


@pytest.mark.parametrize(
    ("said", "code", "word"),
    [
        ({}, 7, "no IPv4 address"),
        ({"ips": []}, 7, "no IPv4 address"),
        ({"ips": [{"address": "fd00::1/64"}]}, 7, "no IPv4 address"),
        ({"ips": [{"address": "10.64.16.5"}, {"address": "10.64.16.6"}]}, 2, "10.64.16.6"),
        ({"ips": [{"address": "here"}]}, 7, "here"),
        ({"ips": [{}]}, 7, "ips.address"),
        ({"ips": {}}, 7, "ips"),
        ([], 7, "result of recorder"),
        (
            {"ips": [{"address": "10.64.16.5/20"}], "routes": [{"dst": "0.0.0.0/0"}]}, 2,
            "remove routes from ipam",
        ),
        ({"ips": [{"address": "10.64.16.5/20"}], "dns": 7}, 7, "dns"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_used_is_given_back(
    plugin: Plugin, daemon: Daemon, said: Any, code: int, word: str
) -> None:
    plugin.says(said)
    call("ADD", plugin, daemon.socket).failed(code, "ipam", "recorder", word)
    assert plugin.verbs == ["ADD", "DEL"]
    assert daemon.requests == []


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("exit 3", ["ended ADD with 3"]),
        ("printf 'not json'; exit 1", ["ended ADD with 1", "not json"]),
        ('printf \'{"code": 0, "msg": ""}\'; exit 1', ["ended ADD with 1"]),
        (f"kill -{signal.SIGKILL} $$", [f"ended ADD with -{signal.SIGKILL}"]),
        ("printf 'not json'", ["not JSON"]),
    ],
)
def test_a_plugin_that_fails_without_an_error(
    plugin: Plugin, daemon: Daemon, shell: str, words: list[str]
) -> None:
    plugin.does("ADD", shell + "\n")
    call("ADD", plugin, daemon.socket).failed(999, "recorder", *words)
    assert plugin.verbs == ["ADD", "DEL"]
    assert daemon.requests == []


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_its_error_is_passed_on(plugin: Plugin, daemon: Daemon, verb: str) -> None:
    plugin.fails(verb)
    call(verb, plugin, daemon.socket).failed(105, "recorder", "no more tulips", "sold out")
    assert plugin.verbs == (["ADD", "DEL"] if verb == "ADD" else [verb])
    targets = {"ADD": [], "CHECK": ["/v1/check"], "DEL": ["/v1/detach"], "STATUS": ["/v1/ready"]}
    assert [target for _, target, _ in daemon.requests] == targets.get(verb, [])


def test_what_it_writes_on_stderr_is_ours(plugin: Plugin, daemon: Daemon) -> None:
    plugin.does("CHECK", "echo looked around >&2\n")
    outcome = call("CHECK", plugin, daemon.socket)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, "", "looked around\n")


@pytest.mark.parametrize("name", ["missing", "folder", "plain"])
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_no_such_plugin(plugin: Plugin, daemon: Daemon, verb: str, name: str) -> None:
    (plugin.bin / "folder").mkdir()
    (plugin.bin / "plain").touch(mode=0o644)
    outcome = call(verb, plugin, daemon.socket, ipam={"type": name})
    outcome.failed(7, "ipam.type", name, str(plugin.bin), "install it")
    # The container is detached all the same: what is left is an entry in somebody's list.
    assert [target for _, target, _ in daemon.requests] == {
        "ADD": [], "CHECK": ["/v1/check"], "DEL": ["/v1/detach"], "GC": [],
        "STATUS": ["/v1/ready"],
    }[verb]  # fmt: skip


def test_a_plugin_that_cannot_be_run(plugin: Plugin, daemon: Daemon) -> None:
    plugin.path.write_text("#!/nowhere/interpreter\n")
    call("ADD", plugin, daemon.socket).failed(5, "ipam.type", str(plugin.path))
    assert daemon.requests == []


def test_an_address_the_daemon_refuses(plugin: Plugin, daemon: Daemon) -> None:
    problem = "address: 10.64.16.5 cannot be had: it is not in this node's slice 10.64.32.0/20"
    daemon.replies["/v1/attach"] = (422, {"code": 7, "msg": problem})
    call("ADD", plugin, daemon.socket).failed(7, "ipam: recorder said 10.64.16.5", "slice", problem)
    assert plugin.verbs == ["ADD", "DEL"]


def test_any_other_refusal(plugin: Plugin, daemon: Daemon) -> None:
    daemon.replies["/v1/attach"] = (422, {"code": 100, "msg": "the kernel refused"})
    plugin.fails("DEL")
    outcome = call("ADD", plugin, daemon.socket)
    outcome.failed(100, "the kernel refused", "giving the address back failed too", "tulips")
    assert plugin.verbs == ["ADD", "DEL"]


def test_an_address_that_may_be_in_use_waits_for_del(plugin: Plugin, daemon: Daemon) -> None:
    daemon.replies["/v1/attach"] = (200, {})  # no answer that makes sense: who knows
    call("ADD", plugin, daemon.socket).failed(11)
    assert plugin.verbs == ["ADD"]
    call("DEL", plugin, daemon.socket).succeeded()
    assert plugin.verbs == ["ADD", "DEL"]


def test_a_daemon_that_cannot_be_reached(plugin: Plugin, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    call("ADD", plugin, loop).failed(5, "socket")
    assert plugin.verbs == ["ADD", "DEL"]


def test_no_daemon_since_boot(plugin: Plugin, tmp_path: Path) -> None:
    call("ADD", plugin, tmp_path / "missing" / "d.sock").failed(11, "noctuled has not run")
    assert plugin.verbs == ["ADD", "DEL"]
    with dying(tmp_path / "dying.sock"):
        call("ADD", plugin, tmp_path / "dying.sock").failed(11, "noctuled has not run")
    assert plugin.verbs == ["ADD", "DEL"] * 2


def test_del_detaches_first(plugin: Plugin, daemon: Daemon) -> None:
    daemon.replies["/v1/detach"] = (422, {"code": 100, "msg": "the link is stuck"})
    call("DEL", plugin, daemon.socket).failed(100, "stuck")
    assert plugin.verbs == []  # something still uses the address
    daemon.replies = {}
    call("DEL", plugin, daemon.socket).succeeded()
    call("DEL", plugin, daemon.socket, prevResult=None).succeeded()
    assert plugin.verbs == ["DEL", "DEL"]


def test_del_without_a_daemon(plugin: Plugin, tmp_path: Path) -> None:
    call("DEL", plugin, tmp_path / "missing" / "d.sock").succeeded()
    assert plugin.verbs == ["DEL"]


def test_check_asks_only_about_what_we_have(plugin: Plugin, daemon: Daemon) -> None:
    call("CHECK", plugin, daemon.socket).succeeded()
    assert plugin.calls[0][1]["prevResult"] == previous()
    daemon.replies["/v1/check"] = (422, {"code": 102, "msg": "it is down"})
    call("CHECK", plugin, daemon.socket).failed(102, "down")
    assert plugin.verbs == ["CHECK"]


VALID = "cni.dev/valid-attachments"


@pytest.mark.parametrize("lists", [{}, {VALID: []}, {VALID: [{"containerID": "a", "ifname": "e"}]}])
def test_gc_is_forwarded_as_it_came(plugin: Plugin, daemon: Daemon, lists: dict[str, Any]) -> None:
    call("GC", plugin, daemon.socket, **lists).succeeded()
    ((variables, stdin),) = plugin.calls
    assert variables["CNI_COMMAND"] == "GC"
    assert stdin.get(VALID) == lists.get(VALID)


def test_gc_goes_on_past_errors_and_reports_all(plugin: Plugin, daemon: Daemon) -> None:
    daemon.replies["/v1/gc"] = (422, {"code": 999, "msg": "GC stuck", "details": "a: link"})
    plugin.fails("GC")
    outcome = call("GC", plugin, daemon.socket, **{VALID: []})
    outcome.failed(999, "GC stuck", "a: link", "recorder: no more tulips", "sold out")
    assert plugin.verbs == ["GC"]


def test_status_asks_both(plugin: Plugin, daemon: Daemon) -> None:
    call("STATUS", plugin, daemon.socket).succeeded()
    assert plugin.verbs == ["STATUS"]
    plugin.fails("STATUS", 50, "the pool is empty")
    call("STATUS", plugin, daemon.socket).failed(50, "recorder", "pool is empty")
    daemon.replies["/v1/ready"] = (422, {"code": 51, "msg": "mesh: bat0 is down"})
    call("STATUS", plugin, daemon.socket).failed(51, "bat0")
