"""The three PEM files a node shows itself with, checked before anything depends on them.

1. They belong together: the key is the certificate's, the certificate is this node's, and it
   leads to one of the CAs. Files that are being replaced one by one fail this until all are there.
2. A certificate that is not in force yet is refused: peers would refuse it. One that has ended
   is not: peers refuse it too, and a daemon that runs can say so and follow its renewal.
3. zenoh reads the files itself, but only as it opens a session, when the old one is already gone.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509

from daemon.fabric.interface import Settings
from daemon.model.identity import Identity, parse_certificates
from daemon.model.trust import Dates, Trust, moment
from netconf.errors import InvalidConfig

FIELD = "fabric.identity"


class Contents(msgspec.Struct, frozen=True):
    """What is in the files."""

    ca: bytes
    certificate: bytes
    key: bytes

    @classmethod
    def read(cls, ca: str, certificate: str, key: str) -> Contents:
        """Read the files at these paths; InvalidConfig names the field."""
        return cls(_read("ca", ca), _read("certificate", certificate), _read("key", key))

    @property
    def digest(self) -> bytes:
        """The same for the same contents only."""
        digest = hashlib.sha256()
        for content in (self.ca, self.certificate, self.key):
            digest.update(len(content).to_bytes(8, "big") + content)
        return digest.digest()


@dataclass(frozen=True)
class Credential:
    """An identity that fits, whom it believes, and from when until when others believe it."""

    identity: Identity
    roots: tuple[x509.Certificate, ...]
    dates: Dates


def judge(contents: Contents, node: str) -> Credential:
    """Return what `contents` say about `node`, whatever the time is; InvalidConfig (rule 1)."""
    identity = Identity.parse(contents.certificate, contents.key, FIELD)
    if identity.name != node:
        raise InvalidConfig(
            f'{FIELD}.certificate: it is of "{identity.name}", and this node is "{node}"; '
            "issue one for this node"
        )
    roots = parse_certificates(contents.ca, f"{FIELD}.ca")
    signer = Trust(roots, None).verify_node(identity.pem, node, None, f"{FIELD}.certificate")
    return Credential(identity, tuple(roots), signer.dates)


def fingerprint(settings: Settings, known: bytes = b"") -> bytes:
    """Return a digest of the files' contents; InvalidConfig if a session cannot be opened on them.

    Contents whose digest is `known` are not checked again: it is asked after every record, and
    OpenSSL takes a hundred times as long as reading.
    """
    contents = Contents.read(settings.ca, settings.certificate, settings.key)
    found = contents.digest
    if found == known:
        return found
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(settings.ca)
    except ssl.SSLError as error:
        raise InvalidConfig(
            f"{FIELD}.ca: {settings.ca} holds no PEM certificate", details=str(error)
        ) from error
    try:
        context.load_cert_chain(settings.certificate, settings.key, password="")
    except ssl.SSLError as error:
        raise InvalidConfig(
            f"{FIELD}.key: {settings.key} is not the unencrypted PEM key of {settings.certificate}",
            details=str(error),
        ) from error
    since = judge(contents, settings.node).dates.since
    if time.time() < since:
        raise InvalidConfig(
            f"{FIELD}.certificate: in force from {moment(since)} only; set the clock, or wait"
        )
    return found


def _read(field: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidConfig(
            f"{FIELD}.{field}: cannot read {path}: {error.strerror}", details=str(error)
        ) from error
