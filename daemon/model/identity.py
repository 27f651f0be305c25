"""Who signs, and whom to believe: certificates in, yes or no out.

1. A node is whoever holds the key of a certificate that chains to the cluster's CA, with
   CN = node id, an OU of `NODE_UNITS` and an EC P-256 key, within its dates. The OU keeps
   other certificates of the same CA (the authority's, a person's) from passing for a node.
2. The chain may pass through intermediate CAs that stand in the same PEM (Swarm sends one
   while it rotates its root); every issuer is a CA, within its dates and its path length.
3. The policy authority is the certificate in the pinned file, whoever issued it: the file is
   what counts, so neither its chain nor its dates do. Replace the file to replace it.
4. Without a pinned authority (``policy: swarm``), a node whose OU is `MANAGER_UNIT` may sign.
5. Signatures are ECDSA P-256 with SHA-256, made without randomness (RFC 6979).
6. `read` is the only function here that touches a file; times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from netconf.errors import InvalidConfig, IOFailure

MANAGER_UNIT = "swarm-manager"
NODE_UNIT = "noctule-node"
NODE_UNITS = frozenset({NODE_UNIT, "swarm-worker", MANAGER_UNIT})
MAX_CHAIN = 4
"""Certificates below the root: Swarm needs two."""


class Untrusted(InvalidConfig):
    """A certificate does not prove what it must; the message says why."""


class SigningKey:
    """A private key, and the name that goes under what it signs."""

    def __init__(self, name: str, key: ec.EllipticCurvePrivateKey) -> None:
        self.name = name
        self._key = key

    @classmethod
    def of(cls, name: str, path: Path, field: str) -> SigningKey:
        """Load a PEM file; IOFailure or InvalidConfig names `field`."""
        return cls(name, _private(read(path, field), field))

    def sign(self, data: bytes) -> bytes:
        """Return the signature (DER) of `data`."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


class Identity(SigningKey):
    """A certificate and its private key: a node's, or the policy authority's."""

    def __init__(self, pem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey):
        """`pem` is `certificate` as its file has it, with intermediates if there are any."""
        super().__init__(_name(certificate, NameOID.COMMON_NAME), key)
        self.pem = pem
        self.certificate = certificate

    @classmethod
    def load(cls, certificate: Path, key: Path, field: str = "fabric.identity") -> Identity:
        """Load both PEM files.

        Errors name `field`.certificate or `field`.key: IOFailure for a file that cannot be
        read, InvalidConfig for one that does not hold what it should.
        """
        return cls.parse(
            read(certificate, f"{field}.certificate"), read(key, f"{field}.key"), field
        )

    @classmethod
    def parse(cls, certificate: bytes, key: bytes, field: str = "fabric.identity") -> Identity:
        """Make an identity of two PEM texts; InvalidConfig as for `load`."""
        leaf = parse_certificates(certificate, f"{field}.certificate")[0]
        private = _private(key, f"{field}.key")
        public = _p256(leaf)
        if public is None:
            raise InvalidConfig(f"{field}.certificate: not for an ECDSA P-256 key; use P-256")
        if private.public_key() != public:
            raise InvalidConfig(
                f"{field}.key: does not belong to {field}.certificate; use the pair issued together"
            )
        return cls(certificate.decode(), leaf, private)

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half of the key."""
        return self._key.public_key()

    def certify(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Return the certificate that `builder` describes, signed as a CA does."""
        return builder.sign(self._key, hashes.SHA256())


class Signer:
    """A verified certificate's name and public key."""

    def __init__(self, name: str, unit: str, key: ec.EllipticCurvePublicKey) -> None:
        self.name = name
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
    """What this node believes in: the cluster's CA, and the policy authority."""

    def __init__(
        self, roots: Sequence[x509.Certificate], authority: x509.Certificate | None
    ) -> None:
        """`authority` None means that Swarm's managers are it."""
        self._roots = tuple(roots)
        self.authority: Signer | None = None
        if authority is not None:
            key = _p256(authority)
            if key is None:
                raise InvalidConfig("policy.authority: not for an ECDSA P-256 key; use P-256")
            self.authority = Signer(_name(authority, NameOID.COMMON_NAME), "", key)

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

    def verify_node(self, pem: str, node: str, now: float, field: str = "certificate") -> Signer:
        """Return the signer that `pem` proves `node` to be at `now`.

        Raises Untrusted, with `field` in front, when it does not prove it.
        """
        try:
            chain = parse_certificates(pem.encode(), field)
        except InvalidConfig as error:
            raise Untrusted(error.message, details=error.details) from error
        leaf, moment = chain[0], datetime.fromtimestamp(now, UTC)
        name, unit = _name(leaf, NameOID.COMMON_NAME), _unit(leaf)
        key = _p256(leaf)
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
        if not _within_dates(leaf, moment):
            raise Untrusted(
                f"{field}: valid from {leaf.not_valid_before_utc:%F %T} to "
                f"{leaf.not_valid_after_utc:%F %T} UTC, and now is {moment:%F %T}; "
                "renew it, or set the clock"
            )
        if not self._chains(leaf, chain[1:MAX_CHAIN], moment, 0):
            raise Untrusted(f"{field}: not issued by this cluster's CA; check fabric.identity.ca")
        return Signer(name, unit, key)

    def _chains(
        self, leaf: x509.Certificate, between: Sequence[x509.Certificate], now: datetime, depth: int
    ) -> bool:
        """Tell whether `leaf` leads to a root, with `depth` CA certificates below its issuer."""
        if any(_issued(leaf, root, now, depth) for root in self._roots):
            return True
        return any(
            _issued(leaf, issuer, now, depth)
            and self._chains(issuer, [*between[:i], *between[i + 1 :]], now, depth + 1)
            for i, issuer in enumerate(between)
        )


def read(path: Path, field: str) -> bytes:
    """Return the bytes of a PEM file; IOFailure names `field`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise IOFailure(
            f"{field}: cannot read {path}: {error.strerror}; correct the path or its mode"
        ) from error


def _private(pem: bytes, field: str) -> ec.EllipticCurvePrivateKey:
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidConfig(
            f"{field}: not an unencrypted private key in PEM; issue one with `noctulectl pki`",
            details=str(error),
        ) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise InvalidConfig(f"{field}: not an EC key; use ECDSA P-256")
    return private


def parse_certificates(pem: bytes, field: str) -> list[x509.Certificate]:
    """Return the certificates in a `pem` text, at least one; InvalidConfig names `field`."""
    try:
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:
            # cryptography parses these when first read, and raises only then.
            _ = certificate.subject, certificate.issuer
            _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return found
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise InvalidConfig(
            f"{field}: holds no certificate in PEM; give a file that begins with "
            "-----BEGIN CERTIFICATE-----",
            details=str(error),
        ) from error


def _name(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    """Return a part of the subject that occurs exactly once, else an empty string."""
    values = certificate.subject.get_attributes_for_oid(oid)
    return str(values[0].value) if len(values) == 1 else ""


def _unit(certificate: x509.Certificate) -> str:
    unit = _name(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME)
    return unit if unit in NODE_UNITS else ""


def _p256(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey | None:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    return None


def _within_dates(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


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


def _issued(
    certificate: x509.Certificate, issuer: x509.Certificate, now: datetime, depth: int
) -> bool:
    if not _is_ca(issuer, depth) or not _within_dates(issuer, now):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
