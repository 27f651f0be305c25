"""The three PEM files a node shows itself with, checked before a session depends on them.

zenoh reads them itself, but only as it opens a session, when the old one is already gone.
"""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

from daemon.fabric.interface import Settings
from netconf.errors import InvalidConfig


def fingerprint(settings: Settings, known: bytes = b"") -> bytes:
    """Return a digest of the files' contents; InvalidConfig if they do not fit together.

    Contents whose digest is `known` are not checked again: it is asked after every record, and
    OpenSSL takes a hundred times as long as reading.
    """
    digest = hashlib.sha256()
    for field in ("ca", "certificate", "key"):
        path = Path(getattr(settings, field))
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidConfig(
                f"fabric.identity.{field}: cannot read {path}: {error.strerror}", details=str(error)
            ) from error
        digest.update(len(content).to_bytes(8, "big") + content)
    found = digest.digest()
    if found == known:
        return found
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(settings.ca)
    except ssl.SSLError as error:
        raise InvalidConfig(
            f"fabric.identity.ca: {settings.ca} holds no PEM certificate", details=str(error)
        ) from error
    try:
        context.load_cert_chain(settings.certificate, settings.key, password="")
    except ssl.SSLError as error:
        raise InvalidConfig(
            f"fabric.identity.key: {settings.key} is not the unencrypted PEM key of "
            f"{settings.certificate}",
            details=str(error),
        ) from error
    return found
