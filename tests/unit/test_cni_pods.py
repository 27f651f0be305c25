"""One network configuration serves many services: the pod says which it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_kit import Daemon, configuration, environment, run, serving

from cni.pods import named

ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
SETS = ["{service}-{replicaset}-{random}", "{service}-{ordinal}"]
POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME={};K8S_POD_UID=u"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "d.sock") as daemon:
        yield daemon


def annotated(**annotations: Any) -> dict[str, Any]:
    """Return the fields of a configuration that containerd completed for a pod."""
    return {
        "capabilities": {ANNOTATIONS: True},
        "runtimeConfig": {ANNOTATIONS: annotations},
    }


@pytest.mark.parametrize(
    ("patterns", "pod", "service"),
    [
        (SETS, "web-5d4f8c7b9d-x2b4c", "web"),
        (SETS, "web-front-5d4f8c7b9d-x2b4c", "web-front"),
        (SETS, "db-0", "db"),
        (SETS, "db-12", "db"),
        (SETS, "db", ""),
        (SETS, "db-", ""),
        (SETS, "-0", ""),
        (SETS, "", ""),
        (SETS, "web-5d4f8c7b9d-x2b4", ""),  # four characters
        (SETS, "web-5d4f8c7b9d4-x2b4c", ""),  # eleven
        (SETS, "web-54f8c-x2b4c", ""),  # five
        (SETS, "web-5d4f8c7b9x-x2b4c", ""),  # no digit of a hash is written as x
        # What a DaemonSet of a longer name makes of the same letters is no ReplicaSet's.
        (SETS, "web-db-x2b4c", ""),
        (SETS, "log-fwd-x2b4c", ""),
        ([*SETS, "{service}-{random}"], "web-db-x2b4c", "web-db"),
        (SETS, "db-٣", ""),
        ([*SETS, "{service}"], "db", "db"),
        ([*SETS, "{service}"], "web-x2b4c", "web-x2b4c"),
        (["{service}", *SETS], "db-0", "db-0"),
        (["{service}-{random}"], "agent-x2b4c", "agent"),
        (["{service}-{ordinal}-{random}"], "report-28391234-x2b4c", "report"),
        (["prod-{service}-{ordinal}"], "prod-db-0", "db"),
        (["prod-{service}-{ordinal}"], "test-db-0", ""),
        (["prod-{service}-{ordinal}"], "prod--0", ""),
        (["{service}-blue-{ordinal}"], "db-blue-0", "db"),
        (["{service}-blue-{ordinal}"], "db-green-0", ""),
        ([], "db-0", ""),
    ],
)
def test_patterns(patterns: list[str], pod: str, service: str) -> None:
    assert named(patterns, pod) == service


@pytest.mark.parametrize("number", [10**5, 0x10000000, 1234567890, 2**32 - 1])
def test_hashes_of_replica_sets(number: int) -> None:
    """As apimachinery's rand.SafeEncodeString writes the digits of a number."""
    alphabet = "bcdfghjklmnpqrstvwxz2456789"
    written = "".join(alphabet[ord(digit) % len(alphabet)] for digit in str(number))
    assert named(SETS, f"web-{written}-x2b4c") == "web"


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ("{service}", ["podNames", "list"]),
        ([1], ["podNames"]),
        ([""], ["podNames"]),
        (["web"], ["podNames", "{service}"]),
        (["{service}-{service}"], ["podNames", "once"]),
        (["{service}{ordinal}"], ["podNames", "-"]),
        (["{service}-{hash}"], ["podNames", "{hash}", "{replicaset}"]),
        (["{ordinal}-{service}"], ["podNames", "{ordinal}"]),
        (["{service}-{Ordinal}"], ["podNames", "{Ordinal}"]),
        ([*SETS, "{service}-x{"], ["podNames", "x{"]),
    ],
)
def test_what_is_no_pattern(daemon: Daemon, patterns: Any, words: list[str]) -> None:
    """Also behind one that fits: whoever wrote it means something by it."""
    config = configuration(daemon.socket, podNames=patterns)
    run(environment("ADD", CNI_ARGS=POD.format("db-0")), config).failed(7, *words)
    assert daemon.requests == []


def test_the_service_follows_from_the_pod(daemon: Daemon) -> None:
    config = configuration(daemon.socket, service=None, podNames=SETS)
    assert run(environment("ADD", CNI_ARGS=POD.format("db-0")), config).status == 0
    assert daemon.body["services"] == [{"name": "db", "from": "pod name"}]


def test_an_annotation_wins(daemon: Daemon) -> None:
    config = configuration(
        daemon.socket, service="five", podNames=SETS, **annotated(**{"noctule.io/service": "api"})
    )
    config["runtimeConfig"]["aliases"] = ["three"]
    args = f"{POD.format('db-0')};NOCTULE_SERVICE=two"
    assert run(environment("ADD", CNI_ARGS=args), config).status == 0
    assert [(one["name"], one["from"]) for one in daemon.body["services"]] == [
        ("two", "CNI_ARGS NOCTULE_SERVICE"),
        ("api", "annotation"),
        ("three", "alias"),
        ("db", "pod name"),
        ("five", "service"),
    ]


def test_a_pod_that_names_nothing_is_what_the_configuration_says(daemon: Daemon) -> None:
    config = configuration(daemon.socket, podNames=SETS, **annotated(unrelated="x"))
    assert run(environment("ADD", CNI_ARGS=POD.format("lonely")), config).status == 0
    assert daemon.body["services"] == [{"name": "web", "from": "service"}]


@pytest.mark.parametrize("annotations", [None, {}])
def test_no_annotations(daemon: Daemon, annotations: Any) -> None:
    config = configuration(daemon.socket, runtimeConfig={ANNOTATIONS: annotations})
    assert run(environment("ADD"), config).status == 0


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"noctule.io/service": ""}, ["noctule.io/service", "not empty"]),
        ({"noctule.io/service": 7}, ["noctule.io/service"]),
        ({"noctule.io/servise": "web"}, ["noctule.io/servise", "noctule.io/service"]),
        ({"noctule.io/Service": "web"}, ["noctule.io/Service", "noctule.io/service"]),
        ({"Noctule.io/service": "web"}, ["Noctule.io/service"]),
        ({"noctule.io/service": "web", "noctule.io/mac": "x"}, ["noctule.io/mac"]),
        (["web"], [ANNOTATIONS, "object"]),
    ],
)
def test_refused_annotations(daemon: Daemon, annotations: Any, words: list[str]) -> None:
    config = configuration(daemon.socket, runtimeConfig={ANNOTATIONS: annotations})
    run(environment("ADD"), config).failed(7, *words)
    assert daemon.requests == []


def test_a_pod_without_a_service_is_told_how_to_get_one(daemon: Daemon) -> None:
    config = configuration(daemon.socket, service=None, podNames=SETS)
    run(environment("ADD", CNI_ARGS=POD.format("lonely")), config).failed(
        7, "service", "lonely", "noctule.io/service", ANNOTATIONS, "podNames"
    )
    assert daemon.requests == []


def test_without_a_pod_no_pattern_counts(daemon: Daemon) -> None:
    config = configuration(daemon.socket, service=None, podNames=["{service}"])
    run(environment("ADD"), config).failed(7, "service", "NOCTULE_SERVICE")
