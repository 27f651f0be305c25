"""Deriving the key that a replica transmits with from the shared secret. Only `read_key` does I/O.

1. The CAK is the content of a file, at least 128 bits. It is read anew each time and kept nowhere.
2. SAK = HKDF-SHA256(CAK, salt, info). Salts are 32 random bytes and public. Every attach and every
   rekey takes a new salt, so that no triple of (key, SCI, packet number) is ever used twice, which
   would break GCM.
3. info = "noctule sak 1", the CA's name, the SCI and the cipher's name, each preceded by its length
   as two bytes, so that two different lists of parts never give the same info.
4. The key id is the first 128 bits of SHA-256 over salt and SCI. ``ip macsec show`` prints it:
   equal ids at both ends mean the same salt and SCI, and an id reveals nothing about the SAK.

Source: RFC 5869; IEEE 802.1X-2020 6.2; docs/design.md, Keys.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

from netconf.errors import InvalidConfig

SALT_BYTES = 32
KEY_ID_BYTES = 16
CAK_MIN_BYTES = 16
CAK_MAX_BYTES = 4096
"""An upper limit, so that a mistaken path (of a log, a device) is not read into memory whole."""

CIPHER = "gcm-aes-128"
SAK_BYTES = {"gcm-aes-128": 16, "gcm-aes-256": 32}

_LABEL = b"noctule sak 1"


def read_key(path: str) -> bytes:
    """Return the bytes of the file at `path`, unchanged, as CAK; InvalidConfig."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            secret = file.read(CAK_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidConfig(
            f"key.file: cannot read {path or 'an empty path'}: {reason}; "
            "name a file that holds the network's secret",
            details=str(error),
        ) from error
    if not CAK_MIN_BYTES <= len(secret) <= CAK_MAX_BYTES:
        size = f"{len(secret)} bytes" if len(secret) <= CAK_MAX_BYTES else "too large"
        raise InvalidConfig(
            f"key.file: the secret in {path} is {size}; it must have "
            f"at least {CAK_MIN_BYTES} bytes and at most {CAK_MAX_BYTES}"
        )
    return secret


def _at_once(path: str, flags: int) -> int:
    """Open without blocking, so that a named pipe at the secret's path cannot stall an ADD."""
    return os.open(path, flags | os.O_NONBLOCK)


def derive_sak(cak: bytes, *, salt: bytes, ca: str, sci: bytes, cipher: str = CIPHER) -> bytes:
    """Return the SAK that the owner of `sci` transmits with in the CA named `ca`."""
    parts = (_LABEL, ca.encode(), sci, cipher.encode())
    info = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
    return _hkdf(cak, salt, info, SAK_BYTES[cipher])


def key_id(salt: bytes, sci: bytes) -> bytes:
    """Return the 16 bytes that name the SAK of this salt and SCI."""
    return hashlib.sha256(salt + sci).digest()[:KEY_ID_BYTES]


def new_salt() -> bytes:
    """Return a fresh random salt."""
    return secrets.token_bytes(SALT_BYTES)


def _hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256, for outputs of one block: at most 32 bytes."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")[:length]
