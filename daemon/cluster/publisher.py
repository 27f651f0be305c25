"""Makes, signs and publishes the records in which this node describes itself.

1. All versions come from one counter that only grows. It grows across restarts (`resume`), because
   the store keeps the records; and across a reboot with a clock that went back, because peers
   remember the highest version (`overtake`). The peer that we hear first may not know the very
   last one, so we go on a random step beyond what it knows. Then no two records of one key have
   the same version, and manifests tell apart the records that this node has forgotten.
2. Own records are first offered to this node's own store, where they pass the same checks as
   everybody's. If one does not pass, the log has an error.
3. After a change of certificate or key all records are signed anew (`renew`), because peers check
   each record against the certificate in the newest info.
4. The manifest is published every `MANIFEST_EVERY` seconds with a new version, even if it lists
   nothing new: release 0.1.0 looks for missing records only if a manifest's version is new to it.
   For an answer to a question a new manifest is signed only if the last one is no longer true, so
   that questions cost no signatures.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Container, Iterable

from daemon.journal import Journal
from daemon.model import records
from daemon.model.identity import Identity
from daemon.model.records import NodeInfo, Replica, Withdrawn
from daemon.model.store import Store
from netconf.attach.attachment import Attachment

MANIFEST_EVERY = 10.0
"""Seconds between manifests: the longest time for which a lost record stays unnoticed."""
SLICE = 16
"""Records signed before the event loop may do something else; each takes 0.2 ms."""
FUTURE = 2**62
"""The highest version (the year 2116) that `overtake` accepts from a peer. A peer that lies about
what it remembers can then use up half of all versions, and not all of them."""


class Publisher:
    """Publishes the records of one node."""

    def __init__(
        self,
        identity: Identity,
        store: Store,
        publish: Callable[[str, bytes], None],
        journal: Journal,
        clock: Callable[[], float] = time.time,
        step: Callable[[], int] = lambda: secrets.randbits(40),
    ) -> None:
        """`publish` gives a record to the fabric under its key. `clock` returns the seconds since
        the epoch, from which versions are made and at which the own certificate must be in force.
        `step` returns how far to go beyond the version that a peer remembers: at most some
        minutes, in nanoseconds."""
        self._identity = identity
        self._store = store
        self._publish = publish
        self._journal = journal
        self._clock = clock
        self._step = step
        self._node = identity.name
        self._version = 0

    @property
    def certificate(self) -> str:
        """This node's certificate, PEM, with intermediates if there are any."""
        return self._identity.pem

    # --- attachments come and go (daemon.attachments.registry.Subscriber)

    def added(self, attachment: Attachment, *, fresh: bool) -> None:
        """Do nothing: `daemon.attachments.opening` publishes the record when it is time."""

    def removed(self, attachment: Attachment) -> None:
        """Publish that `attachment` is gone."""
        self.withdraw(attachment.id)

    async def released(self, attachment_id: str) -> None:
        """Do nothing: the record was withdrawn when the attachment was removed."""

    def align(self, present: Iterable[Attachment], unknown: Container[str]) -> None:
        """Publish what differs between the attachments that are `present` and the last records.

        `unknown` are the ids of attachments whose state files cannot be read: their last records
        are left as they are.
        """
        here = {attachment.id: attachment for attachment in present}
        for attachment in here.values():
            if not self.said(attachment):
                self.replica(attachment)
        for gone in self.replicas() - here.keys():
            if gone not in unknown:
                self.withdraw(gone)

    async def keep_telling(self) -> None:
        """Publish the manifest every `MANIFEST_EVERY` seconds; runs until cancelled."""
        while True:
            await asyncio.sleep(MANIFEST_EVERY)
            self.manifest()

    # --- what is said

    def resume(self) -> None:
        """Continue after the highest version of this node's records in the store."""
        self._version = self._store.highest(self._node)

    def is_behind(self, version: int) -> bool:
        """Tell whether a peer that remembers this `version` must be overtaken."""
        return self._version < version <= FUTURE

    async def overtake(self, version: int) -> None:
        """Publish all records anew if a peer remembers a higher `version` than was used here.

        The records are signed in slices, so that a thousand of them do not block the event loop.
        """
        if not self.is_behind(version):
            return
        self._version = version + self._step()
        bodies = self._store.bodies(self._node)
        before = {key: self._store.envelope(key) for key in bodies}
        for number, (key, body) in enumerate(bodies.items()):
            # What changed or was withdrawn meanwhile has a higher version already.
            if self._store.envelope(key) == before[key]:
                self._say(key, body)
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        self.manifest()

    def renew(self, identity: Identity, info: NodeInfo, present: Iterable[Attachment]) -> None:
        """Sign and publish all records anew with `identity`, whose certificate is in `info`.

        This includes records of `present` attachments that the store had refused because the
        former certificate had ended.
        """
        self._identity = identity
        bodies = self._store.bodies(self._node)
        gone = [self._store.keys.parse(key) for key in self._store.withdrawn()]
        self.info(info)
        here = {attachment.id: attachment for attachment in present}
        for attachment in here.values():
            self.replica(attachment)
        for key, body in bodies.items():
            if isinstance(body, Replica) and body.attachment not in here:
                self._say(key, body)
        for key_gone in gone:
            if key_gone and key_gone.node == self._node and key_gone.attachment not in here:
                self.withdraw(key_gone.attachment)
        self.manifest()

    def info(self, info: NodeInfo) -> None:
        """Publish this node's info."""
        self._say(self._store.keys.info(self._node), info)

    def replica(self, attachment: Attachment) -> bytes:
        """Publish the record of `attachment`; return it."""
        return self._say(self._key(attachment.id), self._body(attachment))

    def prepare(self, attachment: Attachment) -> bytes:
        """Put the record of `attachment` into the store without publishing it; return it.

        So this node's own kernel sets can be ready before another node hears of the replica. Pass
        the record to `publish` afterwards.
        """
        return self._hold(self._key(attachment.id), self._body(attachment))

    def publish(self, sealed: bytes) -> None:
        """Publish a record that `prepare` returned."""
        self._publish(records.decode(sealed).key, sealed)

    def said(self, attachment: Attachment) -> bool:
        """Tell whether the last record of `attachment` still describes it."""
        return self._store.replica(self._node, attachment.id) == self._body(attachment)

    def withdraw(self, attachment: str) -> None:
        """Publish that the attachment with this id is gone."""
        self._say(self._key(attachment), Withdrawn(attachment=attachment))

    def manifest(self) -> None:
        """Publish the list of this node's live records."""
        self._say(self._store.keys.manifest(self._node), self._store.manifest(self._node))

    def replicas(self) -> set[str]:
        """Return the ids of the attachments for which this node has live records."""
        return {r.attachment for r in self._store.held_replicas() if r.node == self._node}

    def everything(self, keys: Iterable[str] = ()) -> list[bytes]:
        """Return the answer to a Sync: this node's records with a manifest that is true now, the
        policy in force, and the infos of other nodes. If there are `keys` (below the cluster's
        root), only the records under those, and the manifest."""
        if not self._listed():
            self._hold(self._store.keys.manifest(self._node), self._store.manifest(self._node))
        return self._store.answer(self._node, keys)

    def _listed(self) -> bool:
        """Tell whether the last manifest is true, and newer than all records that it must list."""
        sealed = self._store.envelope(self._store.keys.manifest(self._node))
        return (
            sealed is not None
            and records.decode(sealed).version == self._store.highest(self._node)
            and self._store.manifest_of(self._node) == self._store.manifest(self._node)
        )

    def again(self) -> None:
        """Publish everything once more, because the fabric has just been opened."""
        for sealed in self.everything():
            self._publish(records.decode(sealed).key, sealed)

    def _body(self, attachment: Attachment) -> Replica:
        return Replica(
            attachment=attachment.id,
            node=self._node,
            network=attachment.network,
            service=attachment.service,
            address=attachment.address,
            salts={attachment.an: bytes.fromhex(attachment.salt)},
        )

    def _key(self, attachment: str) -> str:
        return self._store.keys.replica(self._node, attachment)

    def _say(self, key: str, body: records.Body) -> bytes:
        sealed = self._hold(key, body)
        self._publish(key, sealed)
        return sealed

    def _hold(self, key: str, body: records.Body) -> bytes:
        self._version = records.next_version(self._version, int(self._clock() * 1e9))
        sealed = records.seal(self._store.keys, key, self._version, body, self._identity)
        verdict = self._store.offer(sealed, self._clock())
        if not verdict.changed:
            self._journal.error(
                "own record refused", key=key, outcome=verdict.outcome, reason=verdict.reason
            )
        return sealed
