"""Environment variables: the cases of the reference library's pkg/skel and pkg/types tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cni_kit import Daemon, configuration, environment, previous, run, serving

REQUIRED = {
    "ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
    "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"},
    "GC": {"CNI_PATH"},
    "STATUS": {"CNI_PATH"},
    "VERSION": set(),
}
VARIABLES = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "d.sock") as daemon:
        yield daemon


@pytest.mark.parametrize("how", [None, ""])
@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("verb", REQUIRED)
def test_a_variable_is_required_or_not(
    daemon: Daemon, verb: str, name: str, how: str | None
) -> None:
    changes = {name: how}
    if verb == "CHECK" and name == "CNI_NETNS":
        changes = {name: how}
    outcome = run(environment(verb, **changes), configuration(daemon.socket, prevResult=previous()))
    if name in REQUIRED[verb]:
        outcome.failed(4, name)
        assert daemon.requests == []
    else:
        assert outcome.status == 0, outcome


def test_all_missing_variables_are_named_at_once() -> None:
    outcome = run(environment("ADD", CNI_NETNS=None, CNI_IFNAME=None, CNI_PATH=""))
    outcome.failed(4, "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")
    assert "CNI_CONTAINERID" not in outcome.json["msg"]


@pytest.mark.parametrize("variables", [{}, {"CNI_COMMAND": ""}])
def test_without_a_command_it_says_what_it_is(variables: dict[str, str]) -> None:
    outcome = run(variables)
    outcome.succeeded()
    assert "noctule" in outcome.stderr
    assert "CNI protocol versions supported: 0.3.1, 0.4.0, 1.0.0, 1.1.0" in outcome.stderr


@pytest.mark.parametrize("verb", ["NOPE", "add", " ADD", "ÄDD"])
def test_an_unknown_command(verb: str) -> None:
    run(environment(verb), configuration()).failed(4, "CNI_COMMAND", verb)


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CNI_CONTAINERID", "some-%%container-id"),
        ("CNI_CONTAINERID", "-x"),
        ("CNI_CONTAINERID", ".x"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_CONTAINERID", "a\n"),
        ("CNI_CONTAINERID", "ä"),
        ("CNI_CONTAINERID", "\udcff"),
        ("CNI_IFNAME", "1234567890123456"),
        ("CNI_IFNAME", "ääääääää"),  # 8 characters, 16 bytes
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "test/test"),
        ("CNI_IFNAME", "test:test"),
        ("CNI_IFNAME", "test test"),
        ("CNI_IFNAME", "test\ttest"),
        ("CNI_IFNAME", "eth%d"),
        ("CNI_IFNAME", "\udcff"),
    ],
)
def test_malformed_names(verb: str, name: str, value: str) -> None:
    run(environment(verb, **{name: value}), configuration()).failed(4, name)


def test_all_malformed_names_are_named_at_once() -> None:
    outcome = run(environment("DEL", CNI_CONTAINERID="-", CNI_IFNAME=".."), configuration())
    outcome.failed(4, "CNI_CONTAINERID", "CNI_IFNAME")


@pytest.mark.parametrize("verb", ["GC", "STATUS", "VERSION"])
def test_names_do_not_matter_to_verbs_without_a_container(daemon: Daemon, verb: str) -> None:
    variables = environment(verb, CNI_CONTAINERID="%", CNI_IFNAME="..")
    assert run(variables, configuration(daemon.socket)).status == 0


def test_longest_names(daemon: Daemon) -> None:
    variables = environment("ADD", CNI_CONTAINERID="a" * 128, CNI_IFNAME="a" * 15)
    assert run(variables, configuration(daemon.socket)).status == 0


@pytest.mark.parametrize(
    ("args", "address", "mac", "services"),
    [
        ("", None, None, []),
        ("IgnoreUnknown=1", None, None, []),
        ("IP=10.64.16.9", "10.64.16.9", None, []),
        ("IP=10.64.16.9/12;MAC=02:4E:0a:40:10:09", "10.64.16.9", "02:4e:0a:40:10:09", []),
        ("IP=", None, None, []),
        ("NOCTULE_SERVICE=api", None, None, ["api"]),
        ("K8S_POD_NAME=p;K8S_POD_NAMESPACE=n;K8S_POD_UID=u", None, None, []),
        ("FOO=1;IgnoreUnknown=1;BAR=2", None, None, []),
        ("FOO=1;IgnoreUnknown=true", None, None, []),
        ("FOO=1;IgnoreUnknown=TRUE", None, None, []),
        ("IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.64.16.9", "10.64.16.9", None, []),  # Podman
    ],
)
def test_cni_args(
    daemon: Daemon, args: str, address: str | None, mac: str | None, services: list[str]
) -> None:
    outcome = run(environment("ADD", CNI_ARGS=args), configuration(daemon.socket))
    assert outcome.status == 0, outcome
    assert daemon.body["address"] == address
    assert daemon.body["mac"] == mac
    assert [one["name"] for one in daemon.body["services"]] == [*services, "web"]


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
@pytest.mark.parametrize(
    ("args", "word"),
    [
        ("some;extra;args", "some"),
        ("FOO=1", "FOO"),
        ("FOO=1;IgnoreUnknown=0", "FOO"),
        ("FOO=1;IgnoreUnknown=false", "FOO"),
        ("IgnoreUnknown=yes", "IgnoreUnknown"),
        ("IgnoreUnknown=1;", "KEY=VALUE"),
        ("IP=1=2", "KEY=VALUE"),
        ("IP=10.64.16", "IP"),
        ("IP=10.64.16.256", "IP"),
        ("IP=10.64.16.9/33", "IP"),
        ("IP=fd00::1/129", "IP"),
        ("IP=10.64.16.9,", "IP"),
        ("MAC=02:4e", "MAC"),
        ("MAC=02-4e-0a-40-10-09", "MAC"),
    ],
)
def test_malformed_cni_args(verb: str, args: str, word: str) -> None:
    run(environment(verb, CNI_ARGS=args), configuration(prevResult=previous())).failed(
        4, "CNI_ARGS", word
    )


def test_del_does_not_care_about_cni_args(daemon: Daemon) -> None:
    run(environment("DEL", CNI_ARGS="some;extra"), configuration(daemon.socket)).succeeded()


def test_the_plugins_own_namespace_is_refused(daemon: Daemon) -> None:
    variables = environment("ADD", CNI_NETNS="/proc/self/ns/net")
    run(variables, configuration(daemon.socket)).failed(8, "CNI_NETNS")
    assert daemon.requests == []
    variables["CNI_NETNS_OVERRIDE"] = "true"
    assert run(variables, configuration(daemon.socket)).status == 0
