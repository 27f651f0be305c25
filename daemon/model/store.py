"""The records that this node holds, whoever relayed them.

What is accepted:
1. Each key has one entitled signer: a node for its own keys, the authority for the policy.
   A record of another signer, of another cluster, malformed, larger than `LIMIT`, or with a
   wrong signature is refused and counted; who relayed it does not matter.
2. The highest version of a record wins. Of two different records of one version the one with the
   greater body (then signature) bytes wins: an arbitrary choice, but the same on every node.
3. A node's info is verified with the certificate that it contains. Other records of the node can
   be verified only once its info is held. Until then their outcome is UNKNOWN_SIGNER, and the
   caller should send somebody a `Sync`.
4. A new certificate is accepted if it chains to the CA and its info has a higher version. Records
   that were accepted under the former one stay; the node signs all of them anew.
5. A manifest of version v lists all live records of its node with versions below v. So a replica
   of a lower version that it does not list is gone, whether it is held already or arrives later.
   Withdrawn records are kept until a manifest no longer lists them. So the result does not depend
   on the order in which records arrive, and a relayed answer to a `Sync` is safe to merge.
   If a record's version lies between the one that the manifest lists under its key and the
   manifest's own, the node has forgotten that record, because its state was lost and its clock
   went back. Such a record loses against the listed one, and is held only until that arrives.
6. A certificate's dates limit when a record is accepted, not how long it is held afterwards. A
   connection that policy allows must not end because a date has passed (fail static), neither on
   this daemon nor after its restart. A node whose certificate has ended may only take records away
   (`Withdrawn`, `Manifest`): its infos and replicas are refused, and so is a policy signed by a
   Swarm manager. `load` does not look at dates, because the records that it reads were accepted
   when the dates were checked.
7. Subscribers are told of each accepted record that is news, in the order of acceptance. A
   manifest is news only if a live replica is dropped because of it. One that confirms what is
   held, or lists what is still missing, changes nothing by itself.
8. A node can fill its own share of the store and no more (``daemon.model.shelf``). Refused records
   are counted by the node whose records they claim to be, if that node's info is held.

Which of the held replicas are eligible is decided by ``daemon.model.eligibility``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from cryptography import x509

from daemon.model.eligibility import Eligibility, Refusal
from daemon.model.keys import Key, Keys
from daemon.model.policy import Policy
from daemon.model.records import (
    LIMIT,
    Body,
    Copy,
    Envelope,
    Manifest,
    NodeInfo,
    Replica,
    Withdrawn,
    decode,
    digest,
    encode,
    open_body,
    to_sign,
)
from daemon.model.shelf import Held, Shelf
from daemon.model.trust import Dates, Signer, Trust, Untrusted, moment
from daemon.model.verdict import HARMLESS, Outcome, Verdict
from netconf.errors import DecodeFailure


class Contents(msgspec.Struct, frozen=True, tag="snapshot 1"):
    """All records of a store at one moment; immutable, so that another thread may encode it."""

    cluster: str
    envelopes: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return the snapshot that `Store.load` reads. May take long: call it in a worker."""
        return msgspec.msgpack.encode(Contents(self.cluster, tuple(sorted(self.envelopes))))


class Store:
    """The records of one cluster, as one node knows them."""

    def __init__(self, cluster: str, trust: Trust) -> None:
        """Raises InvalidConfig for a `cluster` that is not a name."""
        self.keys = Keys(cluster)
        self.counts: Counter[Outcome] = Counter()
        """The number of offered records by outcome, for the metrics."""
        self.refused: dict[str, Counter[Outcome]] = {}
        """The number of refused records, by node whose info is held, then by outcome. Where the
        fabric does not pin names, others may have sent them in its name."""
        self.revision = 0
        """Grows with each record that is news: contents saved at this revision are up to date."""
        self._trust = trust
        self._held: dict[str, Held] = {}
        self._shelves: dict[str, Shelf] = {}
        self._signers: dict[str, Signer] = {}
        self._infos: dict[str, NodeInfo] = {}
        self._eligibility = Eligibility(self.keys)
        self._listeners: list[Callable[[Verdict], None]] = []

    def subscribe(self, listener: Callable[[Verdict], None]) -> None:
        """Have `listener` called with the verdict after each record that is news (rule 7)."""
        self._listeners.append(listener)

    # --- records in

    def offer(self, data: bytes, now: float | None) -> Verdict:
        """Accept an encoded record, or refuse it; `now` is in seconds since the epoch.

        With None the dates of certificates are not checked, for records that were accepted before
        (rule 6).
        """
        verdict = self._judge(data, now)
        self.counts[verdict.outcome] += 1
        if verdict.outcome not in HARMLESS and verdict.node in self._infos:
            self.refused.setdefault(verdict.node, Counter())[verdict.outcome] += 1
        if verdict.news:
            self.revision += 1
            for listener in self._listeners:
                listener(verdict)
        return verdict

    def sync(self, envelopes: Iterable[bytes], now: float | None) -> list[Verdict]:
        """Offer all `envelopes` of an answer to a `Sync`, infos first."""
        return [self.offer(data, now) for data in ranked(envelopes)]

    def load(self, snapshot: bytes) -> list[Verdict]:
        """Offer the records of a snapshot that `dump` returned, verifying all of them again.

        Records that no longer verify are refused like any other; dates are not checked (rule 6).
        DecodeFailure if the snapshot cannot be read.
        """
        try:
            content = msgspec.msgpack.decode(snapshot, type=Contents)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise DecodeFailure(f"snapshot: {error}; delete it, the peers have a copy") from error
        return self.sync(content.envelopes, None)

    def rely_on(self, roots: Sequence[x509.Certificate]) -> None:
        """Trust other `roots` from now on, and verify all held records again, as a restart does.

        A node whose certificate no longer chains to a root is forgotten with all its records.
        """
        if tuple(roots) == self._trust.roots:
            return
        envelopes = self.records()
        self._trust = self._trust.with_roots(roots)
        self._held.clear()
        self._shelves.clear()
        self._signers.clear()
        self._infos.clear()
        self._eligibility = Eligibility(self.keys)
        self.sync(envelopes, None)

    def _judge(self, data: bytes, now: float | None) -> Verdict:
        if len(data) > LIMIT:
            return Verdict(Outcome.OVERSIZED, reason=f"{len(data)} bytes, {LIMIT} is the limit")
        try:
            envelope = decode(data)
            key = self.keys.parse(envelope.key)
        except DecodeFailure as error:
            return Verdict(Outcome.MALFORMED, reason=error.message)
        if key is None:
            return Verdict(Outcome.FOREIGN_CLUSTER, envelope.key)
        if key.kind == "other":
            return Verdict(Outcome.UNKNOWN_KIND, envelope.key, key.node, "of a later release")

        def verdict(outcome: Outcome, reason: str = "") -> Verdict:
            return Verdict(outcome, envelope.key, key.node, reason)

        if not self._entitled(key, envelope.signer):
            return verdict(Outcome.NOT_ENTITLED, f"signed by {envelope.signer}")
        if (outdated := self._outdated(key, envelope)) is not None:
            return verdict(outdated)
        try:
            body = open_body(key, envelope)
            signer = self._signer(body, envelope.signer, now)
        except Untrusted as error:
            return verdict(Outcome.BAD_CERTIFICATE, error.message)
        except DecodeFailure as error:
            return verdict(Outcome.MALFORMED, error.message)
        if signer is None:
            return verdict(Outcome.UNKNOWN_SIGNER, f"no info of {envelope.signer} yet")
        if key.kind == "policy" and signer is not self._trust.authority and not signer.manager:
            return verdict(Outcome.NOT_ENTITLED, f"{signer.name} is not a Swarm manager")
        held = Held(key, envelope, body, encode(envelope))
        if objection := self._shelf(key.node).objection(held):
            return verdict(Outcome.OVER_QUOTA, objection)
        if not signer.verify(envelope.signature, self._to_sign(envelope)):
            return verdict(Outcome.BAD_SIGNATURE, f"not signed by {envelope.signer}")
        gives = isinstance(body, Replica | Policy)
        if gives and now is not None and not signer.dates.hold(now):
            return verdict(
                Outcome.BAD_CERTIFICATE,
                f"the certificate of {signer.name} is in force from {moment(signer.dates.since)} "
                f"to {moment(signer.dates.until)} only; renew it there",
            )
        news = self._accept(held, signer)
        return Verdict(Outcome.ACCEPTED, envelope.key, key.node, news=news)

    def _entitled(self, key: Key, signer: str) -> bool:
        if key.kind != "policy":
            return signer == key.node
        return self._trust.authority is None or signer == self._trust.authority.name

    def _outdated(self, key: Key, envelope: Envelope) -> Outcome | None:
        """Compare with the records that are held (rules 2 and 5); None if `envelope` would win."""
        held = self._held.get(envelope.key)
        if held is not None:
            if held.envelope == envelope:
                return Outcome.KNOWN
            older = envelope.order < held.envelope.order
            if older and not self._forgotten(key, held.envelope.version):
                return Outcome.STALE
        gone = self._unlisted(key, envelope) or self._forgotten(key, envelope.version)
        return Outcome.STALE if gone else None

    def _unlisted(self, key: Key, envelope: Envelope) -> bool:
        held = self._held.get(self.keys.manifest(key.node))
        if key.kind != "replica" or held is None or not isinstance(held.body, Manifest):
            return False
        return envelope.version < held.envelope.version and key.within not in held.body.versions

    def _forgotten(self, key: Key, version: int) -> bool:
        """Tell whether `version` lies between the listed one and the manifest's own (rule 5)."""
        held = self._held.get(self.keys.manifest(key.node))
        if held is None or not isinstance(held.body, Manifest):
            return False
        listed = held.body.versions.get(key.within, version)
        return listed < version < held.envelope.version

    def _signer(self, body: Body, name: str, now: float | None) -> Signer | None:
        if isinstance(body, NodeInfo):
            return self._trust.verify_node(body.certificate, body.node, now)
        if isinstance(body, Policy) and self._trust.authority is not None:
            return self._trust.authority
        return self._signers.get(name)

    def _to_sign(self, envelope: Envelope) -> bytes:
        return to_sign(
            self.keys.cluster, envelope.key, envelope.version, envelope.signer, envelope.body
        )

    def _accept(self, held: Held, signer: Signer) -> bool:
        """Hold an accepted record; tell whether that is news (rule 7)."""
        key, body = held.envelope.key, held.body
        self._held[key] = held
        self._shelf(held.key.node).put(held)
        match body:
            case Replica():
                self._eligibility.put(key, held.envelope.version, body)
            case Withdrawn():
                self._eligibility.drop(key)
            case NodeInfo():
                self._signers[body.node] = signer
                self._infos[body.node] = body
                self._eligibility.govern(self.policy(), self._infos)
            case Policy():
                self._eligibility.govern(body, self._infos)
            case Manifest():
                return self._forget_unlisted(held.key.node)
        return True

    def _forget_unlisted(self, node: str) -> bool:
        """Drop the records that the manifest of `node` does not list; tell if one was live."""
        gone = [held for held in self._of(node) if self._unlisted(held.key, held.envelope)]
        for held in gone:
            key = held.envelope.key
            del self._held[key]
            self._shelf(node).drop(key)
            self._eligibility.drop(key)
        return any(isinstance(held.body, Replica) for held in gone)

    def _shelf(self, node: str) -> Shelf:
        return self._shelves.setdefault(node, Shelf())

    # --- records out

    def records(self) -> list[bytes]:
        """Return all records, encoded, in the order of their keys."""
        return [self._held[key].data for key in sorted(self._held)]

    def answer(self, node: str, keys: Iterable[str] = ()) -> list[bytes]:
        """Return the answer of `node` to a `Sync`: its records, the policy, and the other infos.

        If there are `keys` (as `behind` returns them), only the records under those, and the
        manifest: a record that was asked for may be gone or replaced by now, and the manifest
        tells the asker.
        """
        wanted = {f"{self.keys.root}/{key}" for key in keys}
        if wanted:
            wanted.add(self.keys.manifest(node))
        return [
            held.data for key, held in sorted(self._sayable(node)) if not wanted or key in wanted
        ]

    def _sayable(self, node: str) -> Iterator[tuple[str, Held]]:
        yield from self._shelf(node).held.items()
        if (policy := self._held.get(self.keys.policy)) is not None:
            yield self.keys.policy, policy
        for other in self._infos.keys() - {node}:
            yield self.keys.info(other), self._held[self.keys.info(other)]

    def envelope(self, key: str) -> bytes | None:
        """Return the record under `key`, encoded."""
        held = self._held.get(key)
        return held.data if held is not None else None

    def contents(self) -> Contents:
        """Return all records at this moment, to be encoded in a worker."""
        return Contents(self.keys.cluster, tuple(held.data for held in self._held.values()))

    def dump(self) -> bytes:
        """Return a snapshot; two stores that hold the same records give the same bytes."""
        return self.contents().encode()

    def manifest(self, node: str) -> Manifest:
        """Return a manifest of `node`, from its live records and the policy that are held here."""
        policy = self._held.get(self.keys.policy)
        return Manifest(
            versions={
                held.key.within: held.envelope.version
                for held in self._of(node)
                if isinstance(held.body, NodeInfo | Replica)
            },
            shared={"policy": Copy(policy.envelope.version, digest(policy.data))}
            if policy is not None
            else {},
        )

    def highest(self, node: str) -> int:
        """Return the highest version of `node`'s records, 0 for none: see `next_version`."""
        return max((held.envelope.version for held in self._of(node)), default=0)

    def behind(self, node: str) -> list[str]:
        """Return the keys, below the cluster's root, for which `node` should be asked.

        According to its manifest it has newer records under them than this store. Kinds that only
        later releases know are left out.
        """
        held = self._held.get(self.keys.manifest(node))
        if held is None or not isinstance(held.body, Manifest):
            return []
        manifest, manifest_version = held.body, held.envelope.version
        here = {other.key.within: other.envelope.version for other in self._of(node)}
        own = self.keys.below(self.keys.record(node))
        missing = [
            f"{own}/{within}"
            for within, version in manifest.versions.items()
            if (within == "info" or within.startswith("replica/"))  # of kinds known here
            and (version > here.get(within, 0) or version < here[within] < manifest_version)
        ]
        if (copy := manifest.shared.get("policy")) is not None and self._may_win(copy):
            missing.append("policy")
        return sorted(missing)

    def _may_win(self, theirs: Copy) -> bool:
        """Tell whether another node's copy of the policy may win against ours (rule 2)."""
        ours = self._held.get(self.keys.policy)
        if ours is None or theirs.version != ours.envelope.version:
            return ours is None or theirs.version > ours.envelope.version
        return theirs.digest != digest(ours.data)

    def manifest_of(self, node: str) -> Manifest | None:
        """Return the last manifest of `node`."""
        held = self._held.get(self.keys.manifest(node))
        return held.body if held is not None and isinstance(held.body, Manifest) else None

    def _of(self, node: str) -> list[Held]:
        shelf = self._shelves.get(node)
        return list(shelf.held.values()) if shelf is not None else []

    # --- what the records say

    def policy(self) -> Policy | None:
        """Return the policy in force."""
        held = self._held.get(self.keys.policy)
        return held.body if held is not None and isinstance(held.body, Policy) else None

    def infos(self) -> dict[str, NodeInfo]:
        """Return the accepted info of each node, by node id."""
        return dict(sorted(self._infos.items()))

    def certificates(self) -> dict[str, Dates]:
        """Return the dates of the certificate of each node whose info was accepted, by node id."""
        return {node: signer.dates for node, signer in sorted(self._signers.items())}

    def replica(self, node: str, attachment: str) -> Replica | None:
        """Return the live record of `node` about one attachment, eligible or not."""
        held = self._held.get(self.keys.replica(node, attachment))
        return held.body if held is not None and isinstance(held.body, Replica) else None

    def bodies(self, node: str) -> dict[str, NodeInfo | Replica]:
        """Return the info of `node` and its live replicas, by key, the info first."""
        return {
            held.envelope.key: held.body
            for held in sorted(self._of(node), key=lambda held: held.key.kind)
            if isinstance(held.body, NodeInfo | Replica)
        }

    def held_replicas(self) -> list[Replica]:
        """Return every live replica that is held, eligible or not, in the order of their keys."""
        bodies = (held.body for _, held in sorted(self._held.items()))
        return [body for body in bodies if isinstance(body, Replica)]

    def replicas(self) -> tuple[Replica, ...]:
        """Return the eligible replicas, in the order of their addresses."""
        return self._eligibility.replicas()

    def refusals(self) -> tuple[Refusal, ...]:
        """Return why each other replica, and each other slice, is not eligible."""
        return self._eligibility.refusals()

    def withdrawn(self) -> list[str]:
        """Return the keys of withdrawn replicas that are still remembered (rule 5)."""
        return sorted(k for k, held in self._held.items() if isinstance(held.body, Withdrawn))


def ranked(envelopes: Iterable[bytes]) -> list[bytes]:
    """Return `envelopes` with the infos first, which are needed to verify the others."""
    return sorted(envelopes, key=_rank)


def _rank(data: bytes) -> bool:
    """Return the sort key of a record for `ranked`: False for an info."""
    try:
        return not decode(data).key.endswith("/info")
    except DecodeFailure:
        return True
