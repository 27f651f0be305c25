"""The house rules that a machine can check: who imports whom, and how large rooms are.

1. No import circle, also none that a type checker alone sees: whoever reads one module of a
   circle has to read them all.
2. ``netconf`` imports neither of the others; ``daemon`` never ``cni``; ``cni`` imports ``netconf``
   in ``fallback`` alone. In ``daemon``, ``model`` imports no other room.
3. A folder has at most a dozen modules, and says in its ``__init__`` what may live there.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cni", "netconf", "daemon")
SHARED = {"daemon.model", "daemon.naming", "daemon.yamlfile"}
"""What ``daemon.model`` may import of ``daemon``."""
ROOM = 12
"""Modules, ``__init__`` not counted."""
CROWDED = {"cni": 19}
"""The verbs of the specification and what each needs: a reader looks for them side by side."""


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """Return the modules of ours that the module `name` imports anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= submodules & MODULES.keys()
            if submodules - MODULES.keys():
                found.add(node.module)
    return found & MODULES.keys() - {name}


GRAPH = {name: imports(name) for name in MODULES}


def test_no_imports_go_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from None


def rooms(name: str) -> set[str]:
    """Return the packages, or rooms of ``daemon``, that the module `name` imports."""
    return {".".join(other.split(".")[:2]) for other in GRAPH[name]}


def test_imports_point_one_way() -> None:
    wrong = []
    for name in MODULES:
        package, others = name.split(".")[0], {other.split(".")[0] for other in GRAPH[name]}
        forbidden = {"netconf": {"cni", "daemon"}, "daemon": {"cni"}, "cni": {"daemon"}}[package]
        if package == "cni" and name != "cni.fallback":
            forbidden = forbidden | {"netconf"}
        wrong += [f"{name} imports {other}" for other in others & forbidden]
        if name.startswith("daemon.model"):
            outside = {room for room in rooms(name) if room.startswith("daemon.")} - SHARED
            wrong += [f"{name} imports {one}" for one in outside]
    assert wrong == []


def test_no_room_is_crowded_and_each_says_what_it_is_for() -> None:
    for init in (path for path in MODULES.values() if path.name == "__init__.py"):
        folder = init.parent.relative_to(ROOT)
        here = [path for path in init.parent.glob("*.py") if path != init]
        assert len(here) <= CROWDED.get(str(folder), ROOM), f"{folder} has {len(here)} modules"
        assert ast.get_docstring(ast.parse(init.read_text())), f"{folder} does not say"


def test_node_is_wiring() -> None:
    (node,) = (
        one
        for one in ast.parse((ROOT / "daemon/node.py").read_text()).body
        if isinstance(one, ast.ClassDef)
    )
    assert node.end_lineno is not None
    assert node.end_lineno - node.lineno < 150, "let a part do it"
