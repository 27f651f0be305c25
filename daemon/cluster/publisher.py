"""What this node says about itself: records sealed with its key, held, and published.

1. All versions come from one counter that only grows: also across restarts (`resume`), and
   across a reboot with a clock that went back, for peers remember (`overtake`). Whom we hear
   first may not remember the last of them, so we go on a random step further: two records of
   one key never share a version then, and manifests tell the forgotten ones apart.
2. Own records are first offered to this node's own store and pass the same checks as
   everybody's. One that does not pass is an error in the log.
3. Another certificate or key means that everything is said anew (`renew`): peers check each
   record against the certificate in the newest info.
4. The manifest is published now and then under a new version each time, though it may say
   nothing new: release 0.1.0 compares what it misses only when a manifest's version is new to
   it. In an answer to a question it is made anew only if the last one is no longer true, so
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
"""Seconds between manifests: how long a record that was lost stays unnoticed at most."""
FUTURE = 2**62
"""The highest version a peer is believed to remember (the year 2116): the word of one that lies
then leaves as many versions again, instead of none."""


class Publisher:
    """The records of one node."""

    def __init__(
        self,
        identity: Identity,
        store: Store,
        publish: Callable[[str, bytes], None],
        journal: Journal,
        clock: Callable[[], float] = time.time,
        step: Callable[[], int] = lambda: secrets.randbits(40),
    ) -> None:
        """`publish` gives a record to the fabric under its key; `clock` returns the seconds
        since the epoch, by which the own certificate is judged and versions grow; `step` how far
        to go beyond what a peer remembers, at most some minutes in nanoseconds."""
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
        """Nothing yet: whoever opens the attachment says when it is published."""

    def removed(self, attachment: Attachment) -> None:
        """Say that `attachment` is gone."""
        self.withdraw(attachment.id)

    async def released(self, attachment_id: str) -> None:
        """Nothing: all was said when it was removed."""

    def align(self, present: Iterable[Attachment], unknown: Container[str]) -> None:
        """Say what this node has now, where its last word was another.

        `unknown` are the ids of attachments of which nothing can be said, neither that they are
        there nor that they are gone.
        """
        here = {attachment.id: attachment for attachment in present}
        for attachment in here.values():
            if not self.said(attachment):
                self.replica(attachment)
        for gone in self.replicas() - here.keys():
            if gone not in unknown:
                self.withdraw(gone)

    async def keep_telling(self) -> None:
        """Publish the manifest now and then, so that a record that was lost is missed."""
        while True:
            await asyncio.sleep(MANIFEST_EVERY)
            self.manifest()

    # --- what is said

    def resume(self) -> None:
        """Go on after the highest version that the store remembers."""
        self._version = self._store.highest(self._node)

    def overtake(self, version: int) -> None:
        """Say everything anew if a peer remembers a higher `version` of it."""
        if not self._version < version <= FUTURE:
            return
        self._version = version + self._step()
        bodies = self._store.bodies(self._node)
        for key, body in bodies.items():
            self._say(key, body)
        self.manifest()

    def renew(self, identity: Identity, info: NodeInfo, present: Iterable[Attachment]) -> None:
        """Say everything anew under another `identity`, whose certificate `info` carries.

        What a certificate that had ended could not say of the `present` attachments is said too.
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
        """Say who and where this node is."""
        self._say(self._store.keys.info(self._node), info)

    def replica(self, attachment: Attachment) -> bytes:
        """Say that `attachment` is here; return the record."""
        return self._say(self._key(attachment.id), self._body(attachment))

    def prepare(self, attachment: Attachment) -> bytes:
        """Hold the record of `attachment` without publishing it; return it, for `publish`.

        This node's own sets can then be ready before anybody else hears of the replica.
        """
        return self._hold(self._key(attachment.id), self._body(attachment))

    def publish(self, sealed: bytes) -> None:
        """Publish a record that `prepare` made."""
        self._publish(records.decode(sealed).key, sealed)

    def said(self, attachment: Attachment) -> bool:
        """Tell whether the last word about `attachment` is still true."""
        return self._store.replica(self._node, attachment.id) == self._body(attachment)

    def withdraw(self, attachment: str) -> None:
        """Say that the attachment with this id is gone."""
        self._say(self._key(attachment), Withdrawn(attachment=attachment))

    def manifest(self) -> None:
        """Say which records of this node are live."""
        self._say(self._store.keys.manifest(self._node), self._store.manifest(self._node))

    def replicas(self) -> set[str]:
        """Return the ids of the attachments that this node says it has."""
        return {r.attachment for r in self._store.held_replicas() if r.node == self._node}

    def everything(self, keys: Iterable[str] = ()) -> list[bytes]:
        """Return all of it, with a manifest that is true now, and the policy in force; of that
        only what is under `keys`, below the cluster's root, if there are any."""
        if not self._listed():
            self._hold(self._store.keys.manifest(self._node), self._store.manifest(self._node))
        return self._store.answer(self._node, keys)

    def _listed(self) -> bool:
        """Tell whether the last manifest is true, and younger than all that it must list."""
        sealed = self._store.envelope(self._store.keys.manifest(self._node))
        return (
            sealed is not None
            and records.decode(sealed).version == self._store.highest(self._node)
            and self._store.manifest_of(self._node) == self._store.manifest(self._node)
        )

    def again(self) -> None:
        """Publish everything once more."""
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
