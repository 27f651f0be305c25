"""Decides whether a daemon that has just started may open anything yet.

1. The policy that a daemon finds on disk may be old, and its signature does not tell: every policy
   that was ever signed verifies. So the daemon opens nothing until two things are true: each known
   peer has answered with the policy that it holds, or has no daemon that could answer; and no peer
   claims to hold a newer policy than is held here.
2. `HEAR_WITHIN` seconds after the start, peers that have not answered are no longer waited for: a
   peer that is there but silent must not keep this node closed for ever. A peer that claims a newer
   policy is waited for `FETCH_WITHIN` seconds more. Claims made after `HEAR_WITHIN` do not prolong
   that, so a peer that claims ever newer policies delays a start by the sum of both at most.
3. The time limits begin when the fabric is open, not when the daemon starts: before that no peer
   could have answered. A fabric that never opens, because its address or its port is missing, is
   waited for without a limit if there are other nodes. Then no other node can hear of this node's
   containers either, so opening them would be of use to each other only.
4. While the daemon waits it changes nothing in the kernel: running containers keep their sets, new
   ones are attached and stay closed. The wait ends once and does not begin again: a node that was
   cut off while it ran goes on with the policy it has, and asks each peer that it meets again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Set

HEAR_WITHIN = 10.0
"""Seconds that peers have to answer, from `Freshness.begin` on."""
FETCH_WITHIN = 5.0
"""Seconds for a policy to arrive that a peer claims to hold: as long as one question may take."""


class Freshness:
    """What peers have said about their policies since this daemon started."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns seconds. Nothing may be opened before `begin` was called."""
        self._clock = clock
        self._began = math.inf
        self._answered: set[str] = set()
        self._claims: dict[str, tuple[int, float]] = {}
        """By peer: the highest version that it claimed, and when it first claimed that."""

    def begin(self) -> None:
        """Start the time limits: the fabric is open, so peers can be heard from now on."""
        self._began = self._clock()

    def answered(self, peer: str) -> None:
        """`peer` answered with all that it has, the policy included."""
        self._answered.add(peer)

    def claimed(self, peer: str, version: int) -> None:
        """`peer` says that it holds the policy of this `version`."""
        if version > self._claims.get(peer, (0, 0.0))[0]:
            self._claims[peer] = (version, self._clock())

    @property
    def begun(self) -> bool:
        """Whether the fabric is open, so that the time limits run."""
        return math.isfinite(self._began)

    def early(self) -> bool:
        """Tell whether peers that have not answered must still be waited for (rules 2 and 3)."""
        return self._clock() - self._began < HEAR_WITHIN

    def waits_for(
        self, version: int, *, known: Set[str], strangers: int = 0, absent: Set[str]
    ) -> list[str]:
        """Return sentences about what this node waits for; none if it may open attachments.

        `version` is that of the policy held here, 0 for none. `known` are the names of the other
        nodes. `strangers` is used while no names are known: it is the number of configured
        endpoints at which a daemon may be. `absent` are the nodes that were found to have no
        daemon (``daemon.liveness.absence``).
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
