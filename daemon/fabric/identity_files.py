"""Reads and checks the three PEM files of a node's identity: CA, certificate and key.

1. They must belong together: the key is the certificate's, the certificate is this node's, and it
   chains to one of the CAs. Files that are replaced one by one fail this check until all are there.
2. A session is not opened with a certificate that is not in force yet, because peers would refuse
   it. Peers refuse one that has ended too, but that is not an error here: the daemon can only say
   so and wait for a renewal if it runs.
3. The files are checked before a session is replaced, and a session is opened with the contents
   that were checked. So files that are just being replaced neither end a session nor keep it from
   being opened again for another reason: the contents in use stay in use.
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
    """The contents of the files."""

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
    """Return the credential in `contents`, which must be of `node`; InvalidConfig (rule 1).

    Its dates are not checked.
    """
    identity = Identity.parse(contents.certificate, contents.key, FIELD)
    if identity.name != node:
        raise InvalidConfig(
            f'{FIELD}.certificate: it is of "{identity.name}", and this node is "{node}"; '
            "issue one for this node"
        )
    roots = parse_certificates(contents.ca, f"{FIELD}.ca")
    signer = Trust(roots, None).verify_node(identity.pem, node, None, f"{FIELD}.certificate")
    return Credential(identity, tuple(roots), signer.dates)


def load(settings: Settings, known: Contents | None = None) -> Contents:
    """Return the files' contents; InvalidConfig if a session cannot be opened with them.

    The `known` contents are not checked again: this is called after every change of records, and
    OpenSSL's checks take a hundred times as long as reading the files.
    """
    contents = Contents.read(settings.ca, settings.certificate, settings.key)
    if contents == known:
        return contents
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
    return contents


def _read(field: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidConfig(
            f"{FIELD}.{field}: cannot read {path}: {error.strerror}", details=str(error)
        ) from error
