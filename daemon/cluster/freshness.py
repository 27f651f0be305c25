"""Whether this node may open anything yet: not on an older policy than its peers hold.

1. What a daemon finds at its start may be old: any policy that was ever signed verifies. So it
   opens nothing until each known peer has answered a question with the policy it holds, or has
   no daemon that could answer, and until no peer claims a newer policy than is held here.
2. Silence ends after `HEAR_WITHIN`: a peer that is there and says nothing must not keep a node
   closed for ever. A claim that is not followed by the policy ends `FETCH_WITHIN` later, and
   whoever claims more and more costs a start `HEAR_WITHIN` and `FETCH_WITHIN` at most.
3. Waiting changes nothing in the kernel: containers that run keep the sets they have, new ones
   are attached and stay closed. It ends once and does not come back: a node that was cut off
   while it ran goes on with what it knows, and asks whoever it meets again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Set

HEAR_WITHIN = 10.0
"""Seconds from the start for peers to answer."""
FETCH_WITHIN = 5.0
"""Seconds for a policy that a peer claims to hold to arrive: as long as one question may take."""


class Freshness:
    """What was heard of the peers' policies since the start."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns seconds, from `begin` on; until then nothing may be opened."""
        self._clock = clock
        self._began = math.inf
        self._answered: set[str] = set()
        self._claims: dict[str, tuple[int, float]] = {}
        """By peer: the highest version it claimed, and since when."""

    def begin(self) -> None:
        """The fabric is open: peers can be heard from now on."""
        self._began = self._clock()

    def answered(self, peer: str) -> None:
        """`peer` answered with all that it has, the policy included."""
        self._answered.add(peer)

    def claimed(self, peer: str, version: int) -> None:
        """`peer` says that it holds the policy of this `version`."""
        if version > self._claims.get(peer, (0, 0.0))[0]:
            self._claims[peer] = (version, self._clock())

    def early(self) -> bool:
        """Tell whether it is too early to take silence for an answer."""
        return self._clock() - self._began < HEAR_WITHIN

    def waits_for(
        self, version: int, *, known: Set[str], strangers: int = 0, absent: Set[str]
    ) -> list[str]:
        """Say what has to come before this node may open anything; nothing if it may.

        `version` is that of the policy held here, 0 for none; `known` are the other nodes'
        names; `strangers` tells how many nodes there are to dial where their names are not
        known; `absent` are those found without a daemon (``daemon.liveness.absence``).
        """
        now = self._clock()
        reasons: list[str] = []
        if self.early():
            settled = self._answered | absent
            reasons.extend(f"{peer} has not answered" for peer in sorted(known - settled))
            if not known and len(settled) < strangers:
                reasons.append(f"{len(settled)} of {strangers} peers have answered")
        reasons.extend(
            f"{peer} has policy {claimed}"
            for peer, (claimed, since) in sorted(self._claims.items())
            if claimed > version and min(since, self._began + HEAR_WITHIN) + FETCH_WITHIN > now
        )
        return reasons
