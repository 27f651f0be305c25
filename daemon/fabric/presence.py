"""Who is there: liveliness tokens in, changes out, each exactly once. Pure; time is given.

1. A token that appears makes its node alive at once.
2. A token that vanishes makes its node dead only when it has not come back within a grace:
   `LOSS_GRACE` as a rule, `RETURN_GRACE` when the node had said that it will be back.
3. When our own session reopens, all we knew is in doubt for `RETURN_GRACE`: a node that has
   not shown its token by then is dead.
4. A node that was in doubt and shows its token has returned: what it said meanwhile is lost.
"""

from __future__ import annotations

from enum import Enum

LOSS_GRACE = 0.05
"""Seconds. Two nodes that dial each other at the same moment may close one link for the
other; a token comes back within milliseconds then. Short against the lease of 0.5 s."""

RETURN_GRACE = 1.5
"""Seconds. A session reopens in 10 ms, but a dial that fails is repeated after 0.1 to 0.5 s;
two such repeats and a TLS handshake on a busy machine fit in."""

PROMISE = 5.0
"""Seconds for which a node's word that it will be back is believed."""


class Appearance(Enum):
    """What a token says that was just seen."""

    NEWS = "news"
    """The node was not there before."""
    RETURNED = "returned"
    """It was there, and then in doubt."""
    KNOWN = "known"
    """Nothing, or it is our own."""


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
        """A token was seen; return what that says."""
        if node == self._own:
            return Appearance.KNOWN
        doubted = self._doubts.pop(node, None) is not None
        if node in self._alive:
            return Appearance.RETURNED if doubted else Appearance.KNOWN
        self._alive.add(node)
        return Appearance.NEWS

    def promised(self, node: str, now: float) -> None:
        """`node` said that its token will vanish and come back at once."""
        if node in self._alive:
            self._promises[node] = now + PROMISE
            if node in self._doubts:
                self._doubts[node] = now + RETURN_GRACE

    def vanished(self, node: str, now: float) -> None:
        """A token went; `due` will tell whether the node did."""
        if node in self._alive:
            promised = self._promises.pop(node, 0.0) >= now
            self._doubts.setdefault(node, now + (RETURN_GRACE if promised else LOSS_GRACE))

    def reopened(self, now: float) -> None:
        """Our own session was replaced: everyone has to show up again."""
        self._promises.clear()
        self._doubts = dict.fromkeys(self._alive, now + RETURN_GRACE)

    def expel(self, nodes: frozenset[str]) -> list[str]:
        """Forget all alive nodes but `nodes`; return those forgotten."""
        gone = sorted(self._alive - nodes)
        for node in gone:
            self._forget(node)
        return gone

    def due(self, now: float) -> list[str]:
        """Return the nodes that are now known to be dead."""
        gone = sorted(node for node, when in self._doubts.items() if when <= now)
        for node in gone:
            self._forget(node)
        return gone

    def next(self) -> float | None:
        """When `due` has to be asked next."""
        return min(self._doubts.values(), default=None)

    def _forget(self, node: str) -> None:
        self._alive.discard(node)
        self._doubts.pop(node, None)
        self._promises.pop(node, None)
