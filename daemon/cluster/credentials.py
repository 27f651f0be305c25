"""The certificate of this node and those of its peers: following renewals, warning of their end.

1. A certificate's dates limit when something new may be signed; they do not end what was accepted
   before (``daemon.model.store``, rule 6). So a daemon whose certificate has ended goes on running
   with what it has, and says so. A daemon whose certificate is not in force yet waits for its
   clock (`in_force`).
2. The files are read every `LOOK` seconds. If they changed and fit together, they are used without
   a restart: `watch` calls `renewed`, which signs all records anew. If they do not fit together,
   that is logged only when two looks in a row found the same files, because the files of a pair
   are rarely replaced in the same moment. Until they fit and are in force, the former identity
   stays in use.
3. From `WARN_BEFORE` seconds before its end on, the log warns of a certificate once a day: one line
   for this node's own, one for all of its peers'. `ends` has the dates, for status and metrics.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping

from daemon.cluster.publisher import Publisher
from daemon.fabric.identity_files import Contents, Credential, judge
from daemon.journal import Journal
from daemon.model.identity import Identity
from daemon.model.records import NodeInfo
from daemon.model.store import Store
from daemon.model.trust import DAY, WARN_BEFORE, Dates, moment
from daemon.process import systemd
from netconf.attach.attachment import Attachment
from netconf.errors import NoctuleError

LOOK = 10.0
"""Seconds between looks at the files; a look reads three small files."""
WARN_EVERY = DAY
CLOCK_LOOK = 5.0
"""Seconds between looks at a clock that is before the certificate's date."""
CLOCK_TOLD = 60.0
"""Seconds between log lines about such a clock."""
PATIENCE_US = 30_000_000
"""Microseconds by which each look asks the service manager to wait longer (sd_notify(3))."""

Pause = Callable[[float], Awaitable[None]]


class Credentials:
    """This node's identity in use, which may be replaced while the daemon runs."""

    def __init__(
        self,
        paths: tuple[str, str, str],
        node: str,
        journal: Journal,
        *,
        peers: Callable[[], Mapping[str, Dates]] = dict,
        clock: Callable[[], float] = time.time,
        pause: Pause = asyncio.sleep,
    ) -> None:
        """Load the files at `paths` (CA, certificate, key); InvalidConfig if they do not fit.

        `peers` returns when each node's certificate is in force, this one's included; `clock`
        returns the seconds since the epoch; `pause` waits for a number of seconds.
        """
        self._paths = paths
        self._node = node
        self._journal = journal
        self.peers = peers
        self._clock = clock
        self._pause = pause
        self._used = Contents.read(*paths)
        self._credential = judge(self._used, node)
        self._seen: Contents | None = self._used
        """What the last look found; None for files that could not be read."""
        self._told_of: bytes | None = None
        """The digest of files about which the log has a line already."""
        self._warned: dict[str, tuple[float, frozenset[str]]] = {}
        """For ``own`` and ``peers``: when a line about this node's or its peers' certificates was
        last written, and which of them had ended by then."""

    @property
    def identity(self) -> Identity:
        """This node's certificate and key."""
        return self._credential.identity

    @property
    def credential(self) -> Credential:
        """The identity, its CAs, and its dates."""
        return self._credential

    def ends(self) -> dict[str, float]:
        """Return when each node's certificate ends, in seconds since the epoch, by node."""
        ends = {node: dates.until for node, dates in self.peers().items()}
        return ends | {self._node: self._credential.dates.until}

    async def in_force(self) -> None:
        """Wait until the clock has reached the certificate's first date.

        The clock of a machine without a battery is in the past until an NTP server has answered.
        """
        since = self._credential.dates.since
        told: float | None = None
        waited = 0.0
        while (now := self._clock()) < since:
            if told is None or waited - told >= CLOCK_TOLD:
                told = waited
                self._journal.warning(
                    "waiting for the clock: the certificate is not in force yet",
                    since=moment(since),
                    now=moment(now),
                )
            systemd.tell(f"EXTEND_TIMEOUT_USEC={PATIENCE_US}\nSTATUS=waiting for the clock")
            await self._pause(CLOCK_LOOK)
            waited += CLOCK_LOOK

    async def watch(self, renewed: Callable[[Credential], None]) -> None:
        """Call `renewed` with each new credential, and warn of certificates that end.

        Runs until cancelled.
        """
        while True:
            self.warn()
            await self._pause(LOOK)
            if (found := await asyncio.to_thread(self.look)) is not None:
                self._credential = found
                self._warned.pop("own", None)
                self._journal.info(
                    "certificate renewed",
                    since=moment(found.dates.since),
                    until=moment(found.dates.until),
                )
                renewed(found)

    def look(self) -> Credential | None:
        """Return the credential in the files if it can be used and is not in use yet; blocks."""
        try:
            contents = Contents.read(*self._paths)
        except NoctuleError as error:
            settled, self._seen = self._seen is None, None
            if settled:
                self._cannot_use(b"", error)
            return None
        settled, self._seen = contents == self._seen, contents
        if contents == self._used:
            return None
        try:
            found = judge(contents, self._node)
        except NoctuleError as error:
            if settled:
                self._cannot_use(contents.digest, error)
            return None
        if self._clock() < found.dates.since:
            if self._told_of != contents.digest:
                self._told_of = contents.digest
                self._journal.info("new certificate waits", since=moment(found.dates.since))
            return None
        self._used, self._told_of = contents, None
        return found

    def warn(self) -> None:
        """Log every certificate that ends soon or has ended, once in `WARN_EVERY` seconds.

        When one has ended meanwhile, that is logged at once.
        """
        now = self._clock()
        near = {
            node: until for node, until in sorted(self.ends().items()) if until - now < WARN_BEFORE
        }
        own = near.pop(self._node, None)
        if own is not None and self._due("own", {self._node: own}, now):
            if own < now:
                self._journal.error(
                    "this node's certificate has ended: peers do not connect, and new containers "
                    "stay closed; put a renewed one in place",
                    until=moment(own),
                )
            else:
                self._journal.warning(
                    "this node's certificate ends soon; renew it", until=moment(own)
                )
        if near and self._due("peers", near, now):
            self._journal.warning(
                "certificates of other nodes end soon or have ended",
                until={node: moment(until) for node, until in near.items()},
            )

    def _due(self, whose: str, ends: Mapping[str, float], now: float) -> bool:
        """Tell whether a log line about `ends` is due; if so, remember that it is written now."""
        last, ended_then = self._warned.get(whose, (-math.inf, frozenset()))
        ended = frozenset(node for node, until in ends.items() if until < now)
        # A clock that was set back must not suppress the warning for longer than one period.
        if 0 <= now - last < WARN_EVERY and ended <= ended_then:
            return False
        self._warned[whose] = now, ended
        return True

    def _cannot_use(self, digest: bytes, error: NoctuleError) -> None:
        """Log once that the files cannot be used; the former identity stays in use."""
        if self._told_of != digest:
            self._told_of = digest
            self._journal.error(
                "new identity files cannot be used; the former stay in use",
                error=error.message,
                details=error.details,
            )


class Renewal:
    """Called with a new credential: signs with its key, publishes its certificate, trusts its CAs.

    The new info is news in the store, of which the saver is told; it has the fabric reopen its
    session with the new files.
    """

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        info: Callable[[str], NodeInfo],
        present: Mapping[str, Attachment],
    ) -> None:
        """`info` returns this node's info with the certificate (PEM) that it is given; `present`
        are the node's attachments, by id."""
        self._store = store
        self._publisher = publisher
        self._info = info
        self._present = present

    def __call__(self, credential: Credential) -> None:
        """Verify all held records against the new CAs, then sign this node's own anew."""
        self._store.rely_on(credential.roots)
        info = self._info(credential.identity.pem)
        self._publisher.renew(credential.identity, info, list(self._present.values()))
