"""Environment variables, beyond what test_cni_skel.py has: odd names, and CNI_ARGS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cni_kit import Daemon, configuration, environment, previous, run, serving


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "d.sock") as daemon:
        yield daemon


@pytest.mark.parametrize("verb", ["add", " ADD", "ÄDD"])
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
