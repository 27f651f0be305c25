"""Decides from liveliness tokens which nodes are alive, and reports each change once.

Pure; time is an argument.

1. A node is alive as soon as its token appears.
2. If its token vanishes, a node is dead only when the token has not come back within a grace:
   `RETURN_GRACE` if the node had announced that it will be back at once, `LOSS_GRACE` otherwise.
3. When our own session is replaced, all nodes are in doubt for `RETURN_GRACE` seconds: a node
   whose token has not appeared by then is dead.
4. A node that was in doubt and whose token appears again has returned: messages that it published
   meanwhile may be lost.
"""

from __future__ import annotations

from enum import Enum

LOSS_GRACE = 0.05
"""Seconds. Two nodes that dial each other at the same moment may close one of the two links; the
token then comes back within milliseconds. Short against the lease of 0.5 s."""

RETURN_GRACE = 1.5
"""Seconds. A session reopens in 10 ms, but a dial that fails is repeated after 0.1 to 0.5 s. This
is enough for two such repeats and a TLS handshake on a busy machine."""

PROMISE = 5.0
"""Seconds for which a node's announcement that it will be back at once is valid."""


class Appearance(Enum):
    """What the appearance of a token means."""

    NEWS = "news"
    """The node was not alive before."""
    RETURNED = "returned"
    """The node was alive, and then in doubt."""
    KNOWN = "known"
    """The node was alive and not in doubt, or it is our own."""


class Presence:
    """The nodes that are alive, and the doubts about them."""

    def __init__(self, own: str) -> None:
        """`own` is this node's id; it is never reported."""
        self._own = own
        self._alive: set[str] = set()
        self._doubts: dict[str, float] = {}
        self._promises: dict[str, float] = {}

    @property
    def alive(self) -> frozenset[str]:
        """The nodes reported alive and not reported dead since."""
        return frozenset(self._alive)

    def appeared(self, node: str) -> Appearance:
        """Note that the token of `node` appeared; return what that means."""
        if node == self._own:
            return Appearance.KNOWN
        doubted = self._doubts.pop(node, None) is not None
        if node in self._alive:
            return Appearance.RETURNED if doubted else Appearance.KNOWN
        self._alive.add(node)
        return Appearance.NEWS

    def promised(self, node: str, now: float) -> None:
        """Note that `node` announced that its token will vanish and come back at once."""
        if node in self._alive:
            self._promises[node] = now + PROMISE
            if node in self._doubts:
                self._doubts[node] = now + RETURN_GRACE

    def vanished(self, node: str, now: float) -> None:
        """Note that a token vanished; `due` tells later whether the node is dead."""
        if node in self._alive:
            promised = self._promises.pop(node, 0.0) >= now
            self._doubts.setdefault(node, now + (RETURN_GRACE if promised else LOSS_GRACE))

    def reopened(self, now: float) -> None:
        """Note that our own session was replaced: all tokens have to appear again (rule 3)."""
        self._promises.clear()
        self._doubts = dict.fromkeys(self._alive, now + RETURN_GRACE)

    def expel(self, nodes: frozenset[str]) -> list[str]:
        """Forget all alive nodes but `nodes`; return those forgotten."""
        gone = sorted(self._alive - nodes)
        for node in gone:
            self._forget(node)
        return gone

    def due(self, now: float) -> list[str]:
        """Return the nodes whose grace is over at `now`; they are dead."""
        gone = sorted(node for node, when in self._doubts.items() if when <= now)
        for node in gone:
            self._forget(node)
        return gone

    def next(self) -> float | None:
        """Return when `due` has to be called next; None if no node is in doubt."""
        return min(self._doubts.values(), default=None)

    def _forget(self, node: str) -> None:
        self._alive.discard(node)
        self._doubts.pop(node, None)
        self._promises.pop(node, None)
