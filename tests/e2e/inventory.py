"""All that an attachment could leave behind, as a bag of lines.

1. One line for each thing that exists, so a difference of two bags names what is new.
2. Read with the kernel's and iproute2's own eyes, never with the code under test.
3. Sockets and other nameless files are counted by kind: their numbers differ each time.
4. Not counted: batman-adv's table of clients, which forgets by itself after ten minutes, and
   what the bridge learned of other nodes' containers, which it forgets after five.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import vanishing
from tests.e2e.bare import namespaces
from tests.e2e.cluster import Cluster
from tests.e2e.container import Container
from tests.e2e.machine import inside, until

Bag = Counter[str]

PASSING = ("link ", "element ", "file ", "neighbour ", "forwards ")
"""What must also not be missing afterwards: a DEL that takes away too much is no better."""


def inventory(cluster: Cluster, node: str, *containers: Container, daemon: bool = True) -> Bag:
    """Return what exists on `node` and in `containers`; with `daemon`, also what it
    and the resolver hold open."""
    bag: Bag = Counter()
    bag.update(_namespace(f"/run/netns/{node}", node))
    for container in containers:
        bag.update(_namespace(container.netns, container.name))
        bag.update(_channels(container))
    bag.update(_files(cluster.base / node / "run"))
    bag["network namespaces"] = namespaces()
    if daemon:
        pid = cluster.daemons[node].pid
        bag.update(_open_files(pid))
        bag.update(_open_files(cluster.resolvers[node].pid))
        bag.update(_processes(f"/run/netns/{node}"))
    return bag


def settle(take: Callable[[], Bag], before: Bag, limit: float = 20.0) -> None:
    """Wait until `take` finds nothing that is not in `before`, nor misses anything of it.

    The kernel ends namespaces in its own time, hence the waiting.
    """
    found: list[Bag] = []

    def clean() -> bool:
        found[:] = [take()]
        return not differences(found[0], before)

    try:
        until(clean, "everything to be as before", limit)
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *differences(found[0], before)])) from None


def differences(now: Bag, before: Bag) -> list[str]:
    """Return one line for each kind of thing left behind, or taken away too much."""
    more = [f"left behind: {line} × {count}" for line, count in sorted((now - before).items())]
    less = (before - now).items()
    return more + [f"lost: {line}" for line, _ in sorted(less) if line.startswith(PASSING)]


def _namespace(path: str, name: str) -> Iterator[str]:
    """Links, permanent neighbours, forwarding entries and all elements of nftables sets."""
    for link in _shown(path, "ip", "-j", "link"):
        yield f"link {name} {link['ifname']}"
    for entry in _shown(path, "ip", "-j", "neigh", "show", "nud", "permanent"):
        yield f"neighbour {name} {entry['dst']} {entry['dev']}"
    for entry in _shown(path, "bridge", "-j", "fdb"):
        if entry["state"] or "self" in entry["flags"]:  # else learned
            yield f"forwards {name} {entry['mac']} {entry.get('ifname')} {entry.get('vlan', '')}"
    for item in _shown(path, "nft", "-j", "list", "ruleset").get("nftables", []):
        for kind in ("table", "set", "map"):
            if kind in item:
                held = item[kind]
                yield f"{kind} {name} {held['name']}"
                for element in _plain(held.get("elem", [])):
                    yield f"element {name} {held['name']} {json.dumps(element)}"


def _plain(elements: list[Any]) -> Iterator[Any]:
    """Leave out counters and time-outs; dynamic sets of refusals come and go by themselves."""
    for element in elements:
        if not (isinstance(element, dict) and "elem" in element):
            yield element


def _channels(container: Container) -> Iterator[str]:
    """The receive channels of MACsec: one for each peer."""
    shown = inside(container.netns, "ip", "macsec", "show").stdout
    for sci in re.findall(r"RXSC: ([0-9a-f]+)", shown):
        yield f"channel {container.name} {sci}"


def _shown(path: str, *command: str) -> Any:
    return json.loads(inside(path, *command).stdout or "[]")


def _files(folder: Path) -> Iterator[str]:
    for path in vanishing.below(folder):
        yield f"file {path.relative_to(folder)}"


def _open_files(pid: int) -> Iterator[str]:
    """Descriptors; threads are not counted, for pools grow to their bound when first needed."""
    for target in vanishing.descriptors(pid):
        yield "open " + re.sub(r"\d+", "N", target)


def _processes(path: str) -> Iterator[str]:
    """Processes in the node's namespace, zombies and all."""
    home = vanishing.inode(Path(path))
    for pid in vanishing.processes():
        if home is not None and vanishing.inode(Path(f"/proc/{pid}/ns/net")) == home:
            yield f"process {vanishing.name(pid)}"
