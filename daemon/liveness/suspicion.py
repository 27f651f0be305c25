"""The states of another node (alive, headless, suspect, lost) and what leads from one to another.

Pure: time is an argument, in seconds of one monotonic clock. As in memberlist's suspicion.go, a
node that falls silent is suspected first, and other nodes are asked before any connection is cut.

1. Four states, and what each means for the replicas of the node:

   ========  ==========================================  =====  ==================
   state     what is known                               slots  flows and replicas
   ========  ==========================================  =====  ==================
   ALIVE     its daemon's token is there                 yes    stay
   HEADLESS  no token, but its kernel forwards           yes    stay
   SUSPECT   no sign of it, from here                    no     stay
   LOST      silent here, and a second witness agrees    no     go
   ========  ==========================================  =====  ==================

2. `TABLE` holds every transition. An event that a state does not list changes nothing. So a lost
   node comes back only with its token: if only its kernel answers again it may have been rebooted,
   and then its replicas are gone.
3. A sign of life is an answer of the node's kernel to a probe, or an OGM that the mesh received
   from it after the token went. A sign is valid for a limited time; when the last one has expired,
   the event is QUIET. The loss of the token counts as a sign too, valid for `SLOTS_AFTER`.
4. A suspect is CONDEMNED only when all of this holds:

   * it has been suspect for `FLOWS_AFTER`, and `SILENT_ROUNDS` rounds of probes in that time
     found nothing. Rounds are counted as well as seconds, because a daemon that was stopped for
     a while has heard nobody, whether the others live or not;
   * no other node says that it reaches the suspect;
   * a second witness agrees: the mesh has not heard of it for `MESH_SILENT`, or another node
     says that it cannot reach it either. What the mesh says here outweighs what others say: an
     OGM is a sign of life by rule 3.

   So a single witness never makes a node lost. In a cluster of two nodes the mesh is the second
   witness.
5. A reading of the mesh, or another node's word, is used for `SAID_LASTS` seconds. A mesh that
   cannot be read does not count as a witness.
"""

from __future__ import annotations

import enum

SLOTS_AFTER = 0.25
"""Seconds without a sign until no new connection is sent to the node. Together with the fabric's
lease of 0.5 s, its grace and the pass that moves the slots, a dead node has no slot after a second.
A live kernel answers a probe in milliseconds, so slots do not move when only a daemon ends."""

FLOWS_AFTER = 2.0
"""Seconds of suspicion until flows and replicas may be removed. A link that fails for 2 s is back
before that: suspicion begins 0.4 s or more after the silence, and a probe is answered within 0.4 s
of the link's return. A dead node's flows are reset 2.8 s after its death; 0.8 s of these pass
before suspicion begins."""

SILENT_ROUNDS = 4
"""Of the five rounds of probes that fit into `FLOWS_AFTER`, at 0.4 s each."""

PROBE_VOUCHES = 1.5
"""Seconds for which an answer is valid: the next probe is sent 1 s later and has 0.4 s."""

MESH_VOUCHES = 3.5
"""Seconds for which an OGM is valid. One is sent each second and relayed within `RELAYED`, and two
in a row may be lost on a poor link. OGMs keep the slots of a node whose fabric port is filtered."""

MESH_SILENT = 2.5
"""Seconds without an OGM after which the mesh agrees that the node is gone: at least two are
missing then. That alone proves little, so alone it changes nothing."""

RELAYED = 0.2
"""Seconds that an OGM may take through the mesh: batman-adv collects them for up to 0.1 s at each
relay (BATADV_MAX_AGGREGATION_MS). So an OGM that arrives later than this after the token went was
sent after it."""

SAID_LASTS = 1.0
"""Seconds for which a reading of the mesh, or another node's word, counts. While a node is suspect,
several are made in that time."""


class State(enum.StrEnum):
    """The state of another node (rule 1)."""

    ALIVE = "alive"
    HEADLESS = "headless"
    SUSPECT = "suspect"
    LOST = "lost"


class Event(enum.Enum):
    """What moves a node from state to state."""

    TOKEN_BACK = "its daemon is there"
    TOKEN_GONE = "its daemon is gone, or the way to it"
    SIGN = "its kernel or the mesh gave a sign of life"
    QUIET = "the last sign has run out"
    CONDEMNED = "two witnesses agree that it is gone"


TABLE: dict[State, dict[Event, State]] = {
    State.ALIVE: {
        Event.TOKEN_GONE: State.HEADLESS,
    },
    State.HEADLESS: {
        Event.TOKEN_BACK: State.ALIVE,
        Event.QUIET: State.SUSPECT,
    },
    State.SUSPECT: {
        Event.TOKEN_BACK: State.ALIVE,
        Event.SIGN: State.HEADLESS,
        Event.CONDEMNED: State.LOST,
    },
    State.LOST: {
        Event.TOKEN_BACK: State.ALIVE,
    },
}


class Suspicion:
    """The state of one other node, as this node sees it.

    `token_back`, `token_gone`, `answered`, `silent`, `mesh`, `told` and `passes` are events: each
    returns the new state.
    """

    def __init__(self) -> None:
        """Begin with a node whose token is there."""
        self.state = State.ALIVE
        self.signed = False
        """Whether there was a sign of life since the token went."""
        self._gone = 0.0
        """When the token went."""
        self._good_until = 0.0
        """When the last sign runs out."""
        self._suspect_since = 0.0
        self._silent_rounds = 0
        """Since suspicion began."""
        self._mesh_read: float | None = None
        self._mesh_heard: float | None = None
        self._told: dict[str, tuple[float, bool]] = {}
        """By witness: when it last said whether it reaches this node, and what it said."""

    @property
    def reached(self) -> bool | None:
        """Whether the node can be reached from here, for others that ask; None if not known yet."""
        if self.state is State.HEADLESS and not self.signed:
            return None
        return self.state in (State.ALIVE, State.HEADLESS)

    # --- what is heard

    def token_back(self, now: float) -> State:
        """Its daemon's token is there."""
        return self._on(Event.TOKEN_BACK, now)

    def token_gone(self, now: float) -> State:
        """Its token vanished, or was never seen since this daemon started."""
        if self.state is State.ALIVE:
            self.signed = False
            self._gone, self._good_until = now, now + SLOTS_AFTER
            self._mesh_read = self._mesh_heard = None
            self._told.clear()
        return self._on(Event.TOKEN_GONE, now)

    def answered(self, now: float) -> State:
        """Its kernel answered a probe, if only with a reset."""
        return self._sign(now + PROBE_VOUCHES, now)

    def silent(self, now: float) -> State:
        """A whole round of probes found nothing."""
        self._silent_rounds += 1
        return self.passes(now)

    def mesh(self, heard: float | None, now: float) -> State:
        """The mesh was read: it heard of the node last at `heard`; None if it does not know it."""
        self._mesh_read = now
        if heard is not None:
            # An interface that goes down takes its originators out of the table: keep the latest.
            self._mesh_heard = max(heard, self._mesh_heard or heard)
            if heard - self._gone >= RELAYED:
                return self._sign(heard + MESH_VOUCHES, now)
        return self.passes(now)

    def told(self, witness: str, reaches: bool, now: float) -> State:
        """Another node, the `witness`, said whether it reaches this node."""
        self._told[witness] = (now, reaches)
        return self.passes(now)

    def passes(self, now: float) -> State:
        """Time passed."""
        if self.state is State.HEADLESS and now >= self._good_until:
            return self._on(Event.QUIET, now)
        if self.state is State.SUSPECT and self._condemned(now):
            return self._on(Event.CONDEMNED, now)
        return self.state

    def next(self) -> float | None:
        """Return the earliest time at which `passes` may change the state; None for never."""
        if self.state is State.HEADLESS:
            return self._good_until
        if self.state is State.SUSPECT:
            return self._suspect_since + FLOWS_AFTER
        return None

    def witnesses(self, now: float) -> list[str]:
        """Return who agrees that the node is gone: the mesh, and names of other nodes."""
        others = sorted(name for name, reaches in self._said(now).items() if not reaches)
        return [*(["the mesh"] if self._mesh_agrees(now) else []), *others]

    # --- how

    def _sign(self, good_until: float, now: float) -> State:
        self.signed = True
        self._good_until = max(self._good_until, good_until)
        return self._on(Event.SIGN, now) if now < self._good_until else self.passes(now)

    def _on(self, event: Event, now: float) -> State:
        before = self.state
        self.state = TABLE[before].get(event, before)
        if self.state is State.SUSPECT and before is not State.SUSPECT:
            self._suspect_since, self._silent_rounds = now, 0
        return self.state

    def _condemned(self, now: float) -> bool:
        """Tell whether rule 4 holds."""
        return (
            now >= self._suspect_since + FLOWS_AFTER
            and self._silent_rounds >= SILENT_ROUNDS
            and not any(self._said(now).values())
            and bool(self.witnesses(now))
        )

    def _mesh_agrees(self, now: float) -> bool:
        if self._mesh_read is None or now - self._mesh_read > SAID_LASTS:
            return False
        return self._mesh_heard is None or now - self._mesh_heard >= MESH_SILENT

    def _said(self, now: float) -> dict[str, bool]:
        return {who: said for who, (when, said) in self._told.items() if now - when <= SAID_LASTS}
