"""Signing: a private key and, where there is one, the certificate that names its holder.

1. Keys are ECDSA P-256; a certificate and a key that do not belong together are refused.
2. Signatures are ECDSA P-256 with SHA-256, deterministic (RFC 6979).
3. `read` is the only function here that touches a file.

Which certificates are trusted is decided in ``daemon.model.trust``.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from netconf.errors import InvalidConfig, IOFailure


class SigningKey:
    """A private key, and the name of the signer in what it signs."""

    def __init__(self, name: str, key: ec.EllipticCurvePrivateKey) -> None:
        self.name = name
        self._key = key

    @classmethod
    def of(cls, name: str, path: Path, field: str) -> SigningKey:
        """Load a PEM file; IOFailure or InvalidConfig names `field`."""
        return cls(name, _private(read(path, field), field))

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half of the key."""
        return self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        """Return the signature (DER) of `data`."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


class Identity(SigningKey):
    """A certificate and its private key: a node's, or the policy authority's."""

    def __init__(self, pem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey):
        """`pem` is `certificate` as its file has it, with intermediates if there are any."""
        super().__init__(name_of(certificate, NameOID.COMMON_NAME), key)
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
        public = p256(leaf)
        if public is None:
            raise InvalidConfig(f"{field}.certificate: not for an ECDSA P-256 key; use P-256")
        if private.public_key() != public:
            raise InvalidConfig(
                f"{field}.key: does not belong to {field}.certificate; use the pair issued together"
            )
        return cls(certificate.decode(), leaf, private)

    def certify(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Return the certificate that `builder` describes, signed as a CA does."""
        return builder.sign(self._key, hashes.SHA256())


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


def name_of(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    """Return a part of a subject that occurs exactly once, else an empty string."""
    values = certificate.subject.get_attributes_for_oid(oid)
    return str(values[0].value) if len(values) == 1 else ""


def p256(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey | None:
    """Return the public key of a `certificate`, None if it is not an ECDSA P-256 one."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    return None
