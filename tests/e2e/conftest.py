"""What the end-to-end tests stand on: a kernel that can, and a node that runs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import NODES, PLUGIN, POLICY, Cluster


@pytest.fixture(scope="session", autouse=True)
def _machine() -> None:
    """Skip where there is no root, no Noctule installed, or no kernel for it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not Path(PLUGIN).exists():
        pytest.skip(f"{PLUGIN} is not installed")
    for module in ("batman_adv", "macsec", "geneve"):
        if subprocess.run(["modprobe", module], capture_output=True, check=False).returncode:
            pytest.skip(f"this kernel has no {module}")


@contextlib.contextmanager
def telling(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Show what the daemons wrote if a test of the module fails."""
    failed = request.session.testsfailed
    with cluster:
        yield cluster
        if request.session.testsfailed > failed:
            for node in NODES:
                print(f"--- log of {node}\n{cluster.log(node)[-6000:]}", file=sys.stderr)


@pytest.fixture(scope="module")
def lone(_machine: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of which only n1 runs, with a policy in force."""
    with telling(Cluster(), request) as cluster:
        cluster.start("n1")
        cluster.apply(POLICY)
        yield cluster
