"""Where packages come from: this machine's own apt configuration.

No mirror is named in this repository.  Whatever the administrator chose, a
local mirror, a proxy, a snapshot, builds the image too.
"""

from __future__ import annotations

import re
import subprocess

from tests.lab.recipe import SUITE

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# How to reach a mirror and how to trust its dates; the rest of the host's apt
# settings are about the host.
_INHERITED = re.compile(r"^Acquire::(https?|ftp|Check-|Retries|Max-)", re.IGNORECASE)
_FORMAT = "$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)"


class NoSourcesError(Exception):
    """This machine's apt knows no archive of the release the lab boots."""


def debian_lines(index_targets: str, suite: str = SUITE) -> list[str]:
    """sources.list lines for Debian's own archives among apt's index targets.

    Third-party archives say another Origin, whatever suite they claim.
    """
    lines = []
    for row in index_targets.splitlines():
        origin, release, component, uri = row.split("|")
        ours = origin == "Debian" and release.partition("-")[0] == suite
        if ours and component == "main":
            line = f"deb [signed-by={KEYRING}] {uri} {release} {component}"
            if line not in lines:
                lines.append(line)
    if not any(f" {suite} main" in line for line in lines):
        raise NoSourcesError(
            f"apt on this machine knows no Debian {suite} archive; "
            f"add one to its sources and run 'apt-get update'"
        )
    return lines


def inherited_options(config_dump: str) -> list[str]:
    """The apt options an image build needs from the host's 'apt-config dump'."""
    return [
        line for line in config_dump.splitlines() if _INHERITED.match(line) and '"";' not in line
    ]


def read() -> tuple[list[str], list[str]]:
    """This machine's (sources.list lines, apt options)."""
    targets = ["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"]
    lines = debian_lines(_output(targets))
    return lines, inherited_options(_output(["apt-config", "dump", "Acquire"]))


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
