"""Whatever point a process is killed at, a second call finishes attach or detach."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from netconf import frames
from netconf.attach.state import State
from netconf.netlink.socket import Netlink
from netconf.nft import host, ruleset
from tests.kernel.conftest import MeshNode
from tests.kernel.test_attach import MakeContainer, sketch


def dying_child(node: MeshNode, act: Callable[[], object], step: int) -> int:
    """Run `act` in a child that kills itself at its step-th doing; return how it ended."""
    host.close()
    frames.close()
    child = os.fork()
    if child != 0:
        return os.waitpid(child, 0)[1]
    try:
        left = step

        def counted(function: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal left
                for moment in (None, function):
                    result = moment(*args, **kwargs) if moment else None
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                return result

            return call

        for target, name in (
            (Netlink, "_send"),
            (State, "_write"),
            (host, "add_port"),
            (host, "del_port"),
            (ruleset, "load_container"),
            (ruleset, "delete_container"),
            (frames, "announce"),
        ):
            setattr(target, name, counted(getattr(target, name)))
        act()
        os._exit(0)
    except BaseException:
        os._exit(1)


def test_killed_at_any_point_of_attach(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    node, box = mesh_nodes[0], container()
    before = sketch(node, box)
    request = box.request()
    step = 0
    while (status := dying_child(node, lambda: node.attach(request), step)) != 0:
        assert os.WTERMSIG(status) == signal.SIGKILL
        found = node.state.get(request.id)
        if step % 2 and (found is None or found.phase != "ready"):
            # Half of the time the next ADD finds the remains, and finishes them itself.
            assert node.attach(request).phase == "ready"
        node.detach(request.id)
        assert sketch(node, box) == before, f"killed at step {step} of attach"
        step += 1
    assert step > 20, "the kernel was spoken to more often than that"
    node.detach(request.id)


def test_killed_at_any_point_of_detach(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    node, box = mesh_nodes[0], container()
    before = sketch(node, box)
    step, status = 0, -1
    while status != 0:
        made = node.attach(box.request())
        status = dying_child(node, lambda made=made: node.detach(made.id), step)
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
        node.detach(made.id)
        assert sketch(node, box) == before, f"killed at step {step} of detach"
        step += 1
    assert step > 5
