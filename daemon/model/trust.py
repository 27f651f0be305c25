"""Verifies certificates: which key belongs to which node, and who may sign policy.

1. A node is identified by a certificate that chains to the cluster's CA, with CN = node id, an OU
   of `NODE_UNITS` and an EC P-256 key, within its dates. The OU keeps other certificates of the
   same CA (the authority's, a person's) from being used as a node's.
2. The chain may pass through intermediate CAs in the same PEM text (Swarm sends one while it
   rotates its root). Every issuer must be a CA, within its dates and its path length.
3. The policy authority is the certificate in the pinned file. Its issuer and its dates are not
   checked, because the operator chose the file. Replace the file to replace the authority.
4. Without a pinned authority (``policy: swarm``), a node whose OU is `MANAGER_UNIT` may sign.
5. The dates of a certificate limit when a new record is accepted, not how long the record is held
   afterwards (``daemon.model.store``, rule 6). So a `Signer` carries the dates of its chain.
6. Times are seconds since the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from daemon.model.identity import name_of, p256, parse_certificates, read
from netconf.errors import InvalidConfig

MANAGER_UNIT = "swarm-manager"
NODE_UNIT = "noctule-node"
NODE_UNITS = frozenset({NODE_UNIT, "swarm-worker", MANAGER_UNIT})
DAY = 86_400.0
WARN_BEFORE = 30 * DAY
"""Seconds before the end of a certificate from which on operators are warned of it."""
MAX_CHAIN = 4
"""Certificates below the root: Swarm needs two."""


class Untrusted(InvalidConfig):
    """A certificate does not prove what it must; the message says why."""


class Dates(msgspec.Struct, frozen=True):
    """When a certificate, or all of a chain, is in force; seconds since the epoch."""

    since: float = -math.inf
    until: float = math.inf

    def hold(self, now: float) -> bool:
        """Tell whether the certificate is in force at the time `now`."""
        return self.since <= now <= self.until

    def and_those(self, other: Dates) -> Dates:
        """Return the dates during which both certificates are in force."""
        return Dates(max(self.since, other.since), min(self.until, other.until))


ALWAYS = Dates()


def moment(seconds: float) -> str:
    """Return a time in seconds since the epoch as people and programs read it (ISO 8601, UTC)."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Signer:
    """A verified certificate's name and public key."""

    def __init__(
        self, name: str, unit: str, key: ec.EllipticCurvePublicKey, dates: Dates = ALWAYS
    ) -> None:
        """`dates` are those of the whole chain; for the policy authority they never end."""
        self.name = name
        self.dates = dates
        self.manager = unit == MANAGER_UNIT
        """Whether Swarm certified it as a manager."""
        self._key = key

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Tell whether `signature` is this signer's for `data`."""
        try:
            self._key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class Trust:
    """The certificates that this node trusts: the cluster's CAs, and the policy authority's."""

    def __init__(
        self, roots: Sequence[x509.Certificate], authority: x509.Certificate | None
    ) -> None:
        """With `authority` None, Swarm's managers sign policy. InvalidConfig if it is not P-256."""
        self.roots = tuple(roots)
        self.authority: Signer | None = None
        if authority is not None:
            key = p256(authority)
            if key is None:
                raise InvalidConfig("policy.authority: not for an ECDSA P-256 key; use P-256")
            self.authority = Signer(name_of(authority, NameOID.COMMON_NAME), "", key)

    @classmethod
    def load(cls, ca: Path, authority: Path | None) -> Trust:
        """Load ``fabric.identity.ca`` (one or more roots) and ``policy.authority``.

        Raises IOFailure and InvalidConfig that name the field.
        """
        pinned = None
        if authority is not None:
            field = "policy.authority"
            pinned = parse_certificates(read(authority, field), field)[0]
        field = "fabric.identity.ca"
        return cls(parse_certificates(read(ca, field), field), pinned)

    def verify_node(
        self, pem: str, node: str, now: float | None, field: str = "certificate"
    ) -> Signer:
        """Return the signer for the certificate in `pem`, if it identifies `node`.

        It must be in force at `now`, in seconds since the epoch; with None, dates are not checked.
        Raises Untrusted, with `field` in front of its message, if it does not identify `node`.
        """
        try:
            chain = parse_certificates(pem.encode(), field)
        except InvalidConfig as error:
            raise Untrusted(error.message, details=error.details) from error
        leaf = chain[0]
        name, unit = name_of(leaf, NameOID.COMMON_NAME), _unit(leaf)
        key = p256(leaf)
        if name != node:
            raise Untrusted(f'{field}: its CN is "{name}", not "{node}"; use that node\'s own')
        if key is None:
            raise Untrusted(f"{field}: not for an ECDSA P-256 key; use P-256")
        if not unit:
            raise Untrusted(
                f"{field}: its OU is none of {', '.join(sorted(NODE_UNITS))}, so it is not a "
                "node's; issue one with `noctulectl pki issue`"
            )
        if _is_ca(leaf, 0):
            raise Untrusted(f"{field}: is a CA's; issue one for the node")
        if now is not None and not _dates(leaf).hold(now):
            raise Untrusted(
                f"{field}: valid from {leaf.not_valid_before_utc:%F %T} to "
                f"{leaf.not_valid_after_utc:%F %T} UTC, and now is "
                f"{datetime.fromtimestamp(now, UTC):%F %T}; renew it, or set the clock"
            )
        ways = [
            dates
            for dates in self._ways(leaf, chain[1:MAX_CHAIN], 0)
            if now is None or dates.hold(now)
        ]
        if not ways:
            raise Untrusted(f"{field}: not issued by this cluster's CA; check fabric.identity.ca")
        return Signer(name, unit, key, max(ways, key=lambda dates: dates.until))

    def with_roots(self, roots: Sequence[x509.Certificate]) -> Trust:
        """Return the same trust in the authority, with other `roots`."""
        made = Trust(roots, None)
        made.authority = self.authority
        return made

    def _ways(
        self, leaf: x509.Certificate, between: Sequence[x509.Certificate], depth: int
    ) -> Iterator[Dates]:
        """Yield the dates of each chain from `leaf` to a root, whether in force now or not.

        `between` are the intermediate CAs that may be used; `depth` is the number of CA
        certificates below the issuer of `leaf`.
        """
        for root in self.roots:
            if _issued(leaf, root, depth):
                yield _dates(leaf).and_those(_dates(root))
        for i, issuer in enumerate(between):
            if _issued(leaf, issuer, depth):
                for dates in self._ways(issuer, [*between[:i], *between[i + 1 :]], depth + 1):
                    yield _dates(leaf).and_those(dates)


def _unit(certificate: x509.Certificate) -> str:
    unit = name_of(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME)
    return unit if unit in NODE_UNITS else ""


def _dates(certificate: x509.Certificate) -> Dates:
    return Dates(
        certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    )


def _is_ca(certificate: x509.Certificate, depth: int) -> bool:
    """Tell whether it may issue, with `depth` CA certificates below it (RFC 5280, 4.2.1.9)."""
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        ValueError,
    ):
        return False
    return basic.ca and (basic.path_length is None or basic.path_length >= depth)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate, depth: int) -> bool:
    if not _is_ca(issuer, depth):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
