"""What each verb asks of the daemon, and what the runtime gets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_kit import (
    ATTACHED,
    LAUNCHER,
    NETNS,
    PACKAGES,
    ROOT,
    RUNTIME,
    Daemon,
    command,
    configuration,
    environment,
    previous,
    run,
    serving,
)

VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
BRIDGE = {
    "interfaces": [{"name": "cni0", "mac": "0a:00:00:00:00:01"}, {"name": "x", "sandbox": NETNS}],
    "ips": [{"address": "192.0.2.7/24", "interface": 1, "gateway": "192.0.2.1"}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}],
    "dns": {"nameservers": ["192.0.2.53"]},
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "d.sock") as daemon:
        yield daemon


def test_add_asks_the_daemon(daemon: Daemon) -> None:
    outcome = run(environment("ADD"), configuration(daemon.socket))
    assert (outcome.status, outcome.stderr) == (0, "")
    assert daemon.requests == [
        (
            "POST",
            "/v1/attach",
            {
                "container": "c0ffee",
                "ifname": "eth0",
                "netns": NETNS,
                "network": "mesh",
                "services": [{"name": "web", "from": "service"}],
                "key_file": "/run/noctule/keys/mesh.key",
                "address": None,
                "mac": None,
                "address6": None,
                "runtime": RUNTIME,
                "bandwidth": None,
            },
        )
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_result_has_its_versions_shape(daemon: Daemon, version: str) -> None:
    interface: dict[str, Any] = {"name": "eth0", "mac": "02:4e:0a:40:10:05", "sandbox": NETNS}
    ip: dict[str, Any] = {"address": "10.64.16.5/12", "interface": 0}
    host = ATTACHED["host"]
    if version == "1.1.0":
        interface["mtu"] = 1394
    else:
        host = [{"name": one["name"], "mac": one["mac"]} for one in host]
    if version in ("0.3.1", "0.4.0"):
        ip["version"] = "4"
    assert run(environment("ADD"), configuration(daemon.socket, cniVersion=version)).json == {
        "cniVersion": version,
        "interfaces": [interface, *host],
        "ips": [ip],
        "routes": [{"dst": "10.80.0.0/16"}],
        "dns": {"nameservers": ["127.0.0.78"]},
    }


def test_an_earlier_plugins_result_is_passed_on(daemon: Daemon) -> None:
    result = run(environment("ADD"), configuration(daemon.socket, prevResult=BRIDGE)).json
    assert result["interfaces"][:2] == BRIDGE["interfaces"]
    assert result["interfaces"][2]["name"] == "eth0"
    assert result["ips"][0] == BRIDGE["ips"][0]  # type: ignore[index]
    assert result["ips"][1] == {"address": "10.64.16.5/12", "interface": 2}
    assert result["routes"] == [*BRIDGE["routes"], {"dst": "10.80.0.0/16"}]
    assert result["dns"] == {"nameservers": ["127.0.0.78", "192.0.2.53"]}


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(422, 101, ["key.file", "sixteen"]), (500, 100, ["macsec"]), (503, 11, []), (422, 51, [])],
)
def test_the_daemons_errors_are_relayed(
    daemon: Daemon, verb: str, status: int, code: int, words: list[str]
) -> None:
    problem = {"code": code, "msg": f"problem: {words[:1]}", "details": f"cause: {words[1:]}"}
    targets = ("/v1/attach", "/v1/detach", "/v1/check", "/v1/gc", "/v1/ready")
    daemon.replies = dict.fromkeys(targets, (status, problem))
    config = configuration(
        daemon.socket, prevResult=previous(), **{"cni.dev/valid-attachments": []}
    )
    run(environment(verb), config).failed(code, *words)
    assert len(daemon.requests) == 1


@pytest.mark.parametrize("code", [2, 6, 7])
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_a_daemon_of_another_release_does_not_know_the_request(
    daemon: Daemon, verb: str, code: int
) -> None:
    """What can be undone without it is."""
    targets = ("/v1/attach", "/v1/detach", "/v1/check", "/v1/gc", "/v1/ready")
    problem = {"code": code, "msg": "request: Object contains unknown field `zone`"}
    daemon.replies = dict.fromkeys(targets, (422, problem))
    config = configuration(
        daemon.socket, prevResult=previous(), **{"cni.dev/valid-attachments": []}
    )
    outcome = run(environment(verb), config)
    if verb in ("DEL", "GC"):
        outcome.succeeded()
    else:
        outcome.failed(code, "zone")
    assert len(daemon.requests) == 1


@pytest.mark.parametrize("netns", [None, "", "/gone/for/good", NETNS])
@pytest.mark.parametrize("prev", [None, {}, previous()])
def test_del(daemon: Daemon, netns: str | None, prev: Any) -> None:
    config = configuration(daemon.socket, prevResult=prev)
    variables = environment("DEL", CNI_NETNS=netns)
    run(variables, config).succeeded()
    run(variables, config).succeeded()
    first, second = daemon.requests
    assert first == second
    assert first[:2] == ("POST", "/v1/detach")
    assert first[2]["netns"] == (netns or "")
    assert (first[2]["container"], first[2]["ifname"], first[2]["network"]) == (
        "c0ffee", "eth0", "mesh",
    )  # fmt: skip


def test_check_sends_what_prevresult_expects(daemon: Daemon) -> None:
    run(environment("CHECK"), configuration(daemon.socket, prevResult=previous())).succeeded()
    ((_, target, body),) = daemon.requests
    assert target == "/v1/check"
    assert (body["address"], body["mac"]) == ("10.64.16.5", "02:4e:0a:40:10:05")


def test_check_tolerates_what_other_plugins_added(daemon: Daemon) -> None:
    ours = previous()
    result = previous(
        interfaces=[*BRIDGE["interfaces"], *ours["interfaces"], {"name": "later"}],
        ips=[
            *BRIDGE["ips"],
            {"address": "fd00::5/64", "interface": 2},
            {"address": "10.64.16.5/12", "interface": 2},
        ],
        routes=[],
        dns={},
    )
    run(environment("CHECK"), configuration(daemon.socket, prevResult=result)).succeeded()
    assert daemon.body["address"] == "10.64.16.5"


@pytest.mark.parametrize(
    ("result", "word"),
    [
        (None, "prevResult"),
        ({}, "prevResult.interfaces"),
        (previous(interfaces=[]), "prevResult.interfaces"),
        (previous(interfaces=[{"name": "eth1", "sandbox": NETNS}]), "prevResult.interfaces"),
        (previous(interfaces=[{"name": "eth0", "sandbox": "/other"}]), "prevResult.interfaces"),
        (previous(interfaces=[{"name": "eth0", "sandbox": NETNS}]), "mac"),
        (previous(ips=[]), "prevResult.ips"),
        (previous(ips=[{"address": "10.64.16.6/12", "interface": 0}]), "prevResult.ips"),
        (previous(ips=[{"address": "10.64.16.5/12", "interface": 1}]), "prevResult.ips"),
        (previous(ips=[{"address": "10.64.16/12", "interface": 0}]), "prevResult.ips"),
        (previous(ips=[{"address": 5, "interface": 0}]), "prevResult.ips"),
    ],
)
def test_check_needs_our_part_of_the_result(daemon: Daemon, result: Any, word: str) -> None:
    config = configuration(daemon.socket, prevResult=result)
    run(environment("CHECK"), config).failed(7, word)
    assert daemon.requests == []


VALID = "cni.dev/valid-attachments"
OLDER = "cni.dev/attachments"
PAIR = {"containerID": "c0ffee", "ifname": "eth0"}


@pytest.mark.parametrize(
    ("lists", "sent"),
    [
        ({}, None),
        ({VALID: None, OLDER: None}, None),
        ({VALID: []}, []),
        ({OLDER: []}, []),
        ({VALID: [PAIR], OLDER: []}, [PAIR]),
        ({OLDER: [PAIR]}, [PAIR]),
    ],
)
def test_gc(daemon: Daemon, lists: dict[str, Any], sent: Any) -> None:
    config = {**configuration(daemon.socket), **lists}
    run(environment("GC"), config).succeeded()
    if sent is None:
        assert daemon.requests == []
    else:
        body = {"network": "mesh", "valid": sent, "runtime": RUNTIME}
        assert daemon.requests == [("POST", "/v1/gc", body)]


@pytest.mark.parametrize(
    "entries",
    [{}, "x", ["c0ffee"], [{}], [{"containerID": "c"}], [{"containerID": 1, "ifname": ""}]],
)
def test_gc_does_not_guess(daemon: Daemon, entries: Any) -> None:
    run(environment("GC"), configuration(daemon.socket, **{VALID: entries})).failed(7, VALID)
    assert daemon.requests == []


def test_status(daemon: Daemon) -> None:
    run(environment("STATUS"), configuration(daemon.socket)).succeeded()
    body = {"key_file": "/run/noctule/keys/mesh.key"}
    assert daemon.requests == [("POST", "/v1/ready", body)]


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b"", "1.1.0"),
        (b"junk", "1.1.0"),
        (b"[]", "1.1.0"),
        (b'{"cniVersion": 1}', "1.1.0"),
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b'{"cniVersion": "9.9.9"}', "9.9.9"),
    ],
)
def test_version(stdin: bytes, version: str) -> None:
    outcome = run({"CNI_COMMAND": "VERSION"}, stdin)
    assert outcome.status == 0
    assert outcome.json == {"cniVersion": version, "supportedVersions": VERSIONS}


def test_version_answers_podmans_dummy_call() -> None:
    variables = {
        "CNI_COMMAND": "VERSION",
        "CNI_IFNAME": "dummy",
        "CNI_NETNS": "dummy",
        "CNI_PATH": "dummy",
    }
    assert run(variables, b'{"cniVersion":"1.0.0"}').json["supportedVersions"] == VERSIONS


def test_version_does_not_wait_for_a_stdin_that_nobody_closes() -> None:
    reader, writer = os.pipe()
    try:
        outcome = run({"CNI_COMMAND": "VERSION"}, reader)
        assert outcome.json == {"cniVersion": "1.1.0", "supportedVersions": VERSIONS}
    finally:
        os.close(reader)
        os.close(writer)


def test_stdin_that_cannot_be_read() -> None:
    unreadable = os.open("/dev/null", os.O_WRONLY)
    try:
        run(environment("ADD"), unreadable).failed(5, "stdin")
        assert run({"CNI_COMMAND": "VERSION"}, unreadable).status == 0
    finally:
        os.close(unreadable)


def test_a_runtime_that_no_longer_listens() -> None:
    code = LAUNCHER.format(root=str(ROOT), packages=PACKAGES, settings="")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*command(), code],
        env={"CNI_COMMAND": "VERSION"},
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_parallel_calls(daemon: Daemon) -> None:
    code = LAUNCHER.format(root=str(ROOT), packages=PACKAGES, settings="")
    stdin = str(configuration(daemon.socket)).replace("'", '"').encode()
    calls = [
        subprocess.Popen(
            [*command(), code],
            env=environment("ADD", CNI_CONTAINERID=f"c{number}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for number in range(8)
    ]
    for call in calls:
        call.communicate(stdin, timeout=60)
    assert [call.returncode for call in calls] == [0] * 8
    assert {body["container"] for _, _, body in daemon.requests} == {f"c{n}" for n in range(8)}


def test_attached_is_what_the_result_says(daemon: Daemon) -> None:
    daemon.replies["/v1/attach"] = (200, {**ATTACHED, "addresses": ["10.64.99.1/20"]})
    result = run(environment("ADD"), configuration(daemon.socket)).json
    assert result["ips"][0]["address"] == "10.64.99.1/20"
