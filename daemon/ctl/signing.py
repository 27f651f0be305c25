"""Signs the next policy, starting from the one that this key signed last, not from a daemon's word.

1. A daemon may lie, be behind, or have lost its state. So the previous policy, with its ids, VIPs,
   resting services and version, is taken only from a record that the authority's own key signed.
2. The record that the key signed last is kept beside it (``authority.key`` →
   ``authority.policy``, mode 0600). It is written before the record leaves this machine, so that no
   version is signed twice here. ``pki init`` makes the file empty: nothing was signed yet.
   Two commands that sign with one key at once take turns: the key's file is locked (flock(2)) from
   reading that record to writing the next. It is the key's, because the record's file is replaced.
3. The previous policy is that record or the one that the daemon holds, whichever wins in every
   store (`Envelope.order`). So a daemon that offers an older genuine record, because it is behind
   or to bring an old policy back, changes nothing.
4. The next version is the previous policy's plus 1, whatever version a daemon claims.
5. The pool of VIPs is the previous policy's. Only the operator can change it (``--vips``), after
   ``addresses.vips`` was changed for every daemon.
6. If neither this machine nor the daemon has a previous policy, the operator must say that this is
   the first one (``--first``).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from daemon.api.messages import PolicyState
from daemon.ctl.pki import AUTHORITY, last_signed_beside
from daemon.model import policy, records
from daemon.model.identity import SigningKey
from daemon.model.keys import Keys
from daemon.model.policy import Policy
from daemon.model.policy_file import Document
from daemon.model.records import Envelope
from daemon.model.trust import Signer
from netconf import files
from netconf.errors import DecodeFailure, InvalidConfig, IOFailure

HELD = "the policy that this daemon holds"


class Signed(msgspec.Struct, frozen=True):
    """A signed policy, ready to be sent to a daemon."""

    record: bytes
    version: int
    notices: tuple[str, ...]
    """Sentences for the operator, about which policy it follows from."""


class Signing:
    """The authority's key, and the policy that it signed last."""

    def __init__(self, key: Path) -> None:
        """`key` is the authority's private key (PEM); IOFailure or InvalidConfig names it."""
        self._authority = SigningKey.of(AUTHORITY, key, "--key")
        self._signer = Signer(AUTHORITY, "", self._authority.public_key)
        self._key = key
        self._last = last_signed_beside(key)

    def next(
        self, document: Document, state: PolicyState, *, first: bool = False, vips: str = ""
    ) -> Signed:
        """Sign the policy in `document` as the next version, and keep it beside the key.

        `state` is from a daemon; `first` and `vips` (CIDR, or empty) are the operator's options.
        Raises InvalidConfig or DecodeFailure if the daemon's record is not signed by this key, or
        does not fit the previous policy; IOFailure for the file beside the key.
        """
        with self._locked():
            return self._next(document, state, first, vips)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the key's file; waits for whoever signs with that key now."""
        try:
            descriptor = os.open(self._key, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise IOFailure(f"--key: cannot read {self._key}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _next(self, document: Document, state: PolicyState, first: bool, vips: str) -> Signed:
        keys = Keys(state.cluster)
        missing = not self._last.exists()
        here, held = self._remembered(keys), self._held(state, keys)
        known = [envelope for envelope in (here, held) if envelope is not None]
        before = max(known, key=lambda envelope: envelope.order, default=None)
        self._check_first(before, first, missing)
        previous = records.policy_of(before) if before else None
        version = before.version + 1 if before else 1
        if version > records.MAX_VERSION:
            raise InvalidConfig("policy: its versions are used up; make another authority")
        pool = _pool(state.vips, previous, vips)
        made = policy.compile(document, previous, pool, version)
        record = records.seal(keys, keys.policy, version, made, self._authority)
        files.replace(self._last, record)
        notices = _differences(here, held, missing)
        if previous is None:
            first_of = f'first policy of cluster "{keys.cluster}", with VIPs of {pool}'
            notices = (f"{first_of}, as this daemon was told",)
        return Signed(record, version, notices)

    def _remembered(self, keys: Keys) -> Envelope | None:
        """Return the record that was signed last; None if the file is empty or missing."""
        try:
            content = self._last.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IOFailure(f"cannot read {self._last}: {error.strerror}") from error
        if not content:
            return None
        return self._proved(
            content, keys, str(self._last), "move that file away if it is another key's"
        )

    def _held(self, state: PolicyState, keys: Keys) -> Envelope | None:
        """Return the policy record that the daemon holds; None if it says that it has none."""
        try:
            content = base64.b64decode(state.envelope, validate=True)
        except ValueError as error:
            raise DecodeFailure(f"{HELD} is not base64; ask another daemon") from error
        found = None
        if content:
            advice = "use the key of its policy.authority, or ask another daemon"
            found = self._proved(content, keys, HELD, advice)
        if state.version != (found.version if found else 0):
            raise InvalidConfig(
                f"this daemon says that it holds policy {state.version}, and shows "
                f"{f'policy {found.version}' if found else 'none'}; ask another daemon"
            )
        return found

    def _proved(self, content: bytes, keys: Keys, what: str, advice: str) -> Envelope:
        """Return the record in `content` if this key signed it as this cluster's policy."""
        try:
            envelope = records.decode(content)
            records.policy_of(envelope)
        except DecodeFailure as error:
            raise DecodeFailure(f"{what} is none: {error.message}; {advice}") from error
        if envelope.key != keys.policy:
            raise InvalidConfig(
                f'{what} is of {envelope.key}, and this daemon is of cluster "{keys.cluster}"; '
                "give each cluster an authority of its own"
            )
        signed = records.to_sign(
            keys.cluster, envelope.key, envelope.version, envelope.signer, envelope.body
        )
        if envelope.signer != AUTHORITY or not self._signer.verify(envelope.signature, signed):
            raise InvalidConfig(f"{what} is not signed with this key; {advice}")
        return envelope

    def _check_first(self, before: Envelope | None, first: bool, missing: bool) -> None:
        """Refuse ``--first`` if there is a previous policy, and require it if nothing is known."""
        if before is not None and first:
            raise InvalidConfig(f"--first: policy {before.version} exists; leave --first out")
        if before is None and missing and not first:
            raise InvalidConfig(
                f"{self._last} is missing and this daemon holds no policy, so nothing tells which "
                "ids and VIPs were given out before; ask a daemon that holds one, or, for the "
                "first policy of a cluster, add --first"
            )


def _differences(here: Envelope | None, held: Envelope | None, missing: bool) -> tuple[str, ...]:
    """Return sentences for the operator if this machine and the daemon hold different policies."""
    if here == held:
        return ()
    if held is None or (here is not None and here.order > held.order):
        assert here is not None
        holds = f"policy {held.version}" if held else "no policy"
        return (f"this daemon holds {holds}; went on from policy {here.version}, signed here last",)
    if missing:
        return (
            f"nothing here says what this key signed last; went on from policy {held.version}, "
            "which this daemon holds",
        )
    return (f"went on from policy {held.version}, which was signed on another machine",)


def _pool(claimed: str, previous: Policy | None, given: str) -> IPv4Network:
    """Return the pool of VIPs (rule 5); InvalidConfig if the daemon is configured with another."""
    told = _network(claimed, "this daemon's addresses.vips")
    if given and _network(given, "--vips") != told:
        raise InvalidConfig(
            f"--vips: {given}, and this daemon was told {told}; set addresses.vips in every "
            "node.yaml first"
        )
    if previous is not None and not given and IPv4Network(previous.vips) != told:
        raise InvalidConfig(
            f"this daemon's addresses.vips is {told}, and the policy before has {previous.vips}; "
            f"correct its node.yaml, or, if every node.yaml has it, add --vips {told}"
        )
    return told


def _network(text: str, what: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise InvalidConfig(
            f'{what}: "{text}" is not an IPv4 network; write it as 10.80.0.0/16'
        ) from error
