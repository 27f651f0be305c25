"""Where packages come from: this machine's own apt configuration.

No mirror is named in this repository.  Whatever the administrator chose, a
local mirror, a proxy, a snapshot, builds the image too.

Rules
1. A Debian mirror carries every current release.  What this machine's apt knows of
   its own release therefore says where each other one lies: the codename is
   replaced, and nothing else.
2. Updates and security updates belong to a stable release; sid has neither, and
   nothing here uses backports.
3. Archives of other origins are never used, whatever release they claim to be for.
"""

from __future__ import annotations

import re
import subprocess

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# How to reach a mirror and how to trust its dates; the rest of the host's apt
# settings are about the host.
_INHERITED = re.compile(r"^Acquire::(https?|ftp|Check-|Retries|Max-)", re.IGNORECASE)
_FORMAT = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)"
_UNSTABLE = "sid"
_POCKETS = ("updates", "security")


class NoSourcesError(Exception):
    """This machine's apt knows no Debian archive."""


def debian_lines(index_targets: str, suite: str) -> list[str]:
    """sources.list lines for the release `suite`, from apt's index targets.

    Of several releases that apt knows, each archive is taken once.
    """
    lines = []
    for row in index_targets.splitlines():
        origin, codename, component, uri = row.split("|")
        pocket = codename.partition("-")[2]
        if origin != "Debian" or component != "main" or pocket not in ("", *_POCKETS):
            continue
        if pocket and suite == _UNSTABLE:
            continue
        wanted = f"{suite}-{pocket}" if pocket else suite
        line = f"deb [signed-by={KEYRING}] {uri} {wanted} main"
        if line not in lines:
            lines.append(line)
    if not any(line.endswith(f" {suite} main") for line in lines):
        raise NoSourcesError(
            "apt on this machine knows no Debian archive; "
            "add one to its sources and run 'apt-get update'"
        )
    return lines


def inherited_options(config_dump: str) -> list[str]:
    """The apt options an image build needs from the host's 'apt-config dump'."""
    return [
        line for line in config_dump.splitlines() if _INHERITED.match(line) and '"";' not in line
    ]


def read(suite: str) -> tuple[list[str], list[str]]:
    """(sources.list lines, apt options) for a Debian release, by codename."""
    targets = ["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"]
    lines = debian_lines(_output(targets), suite)
    return lines, inherited_options(_output(["apt-config", "dump", "Acquire"]))


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
