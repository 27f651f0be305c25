"""Key derivation: RFC 5869, no ambiguity, no repetition; the secret's file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from netconf import keys
from netconf.errors import InvalidConfig

CAK = b"sixteen bytes ok"
SALT = bytes(range(32))
SCI = bytes.fromhex("024e0a4010050001")

parts = st.tuples(st.binary(min_size=8, max_size=8), st.text(max_size=40))


def test_sak_is_hkdf_sha256() -> None:
    info = b"".join(
        len(part).to_bytes(2, "big") + part
        for part in (b"noctule sak 1", b"mesh", SCI, b"gcm-aes-128")
    )
    wanted = HKDF(SHA256(), 16, SALT, info).derive(CAK)
    assert keys.derive_sak(CAK, salt=SALT, ca="mesh", sci=SCI) == wanted


@given(secret=st.binary(min_size=16, max_size=64), one=parts, other=parts)
def test_another_ca_or_sci_is_another_key(
    secret: bytes, one: tuple[bytes, str], other: tuple[bytes, str]
) -> None:
    saks = [keys.derive_sak(secret, salt=SALT, ca=ca, sci=sci) for sci, ca in (one, other)]
    assert (saks[0] == saks[1]) == (one == other)


def test_the_cipher_decides_the_length_and_the_key() -> None:
    short = keys.derive_sak(CAK, salt=SALT, ca="mesh", sci=SCI)
    long = keys.derive_sak(CAK, salt=SALT, ca="mesh", sci=SCI, cipher="gcm-aes-256")
    assert (len(short), len(long)) == (16, 32)
    assert long[:16] != short


def test_key_id_names_salt_and_sci() -> None:
    named = keys.key_id(SALT, SCI)
    assert len(named) == 16
    assert named != keys.key_id(SALT[::-1], SCI)
    assert named != keys.key_id(SALT, SCI[::-1])


def test_salts_differ() -> None:
    assert len({keys.new_salt() for _ in range(100)}) == 100
    assert len(keys.new_salt()) == 32


def test_the_secret_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\x00 sixteen bytes and a newline\n")
    assert keys.read_key(str(file)) == b"\x00 sixteen bytes and a newline\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "0 bytes"), (b"x" * 15, "15 bytes.*at least 16"), (b"x" * 5000, "too large")],
)
def test_a_secret_of_the_wrong_size(tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(InvalidConfig, match=f"key.file: .*{text}"):
        keys.read_key(str(file))


@pytest.mark.parametrize("path", ["", "/there/is/none", "/", "bad\0path"])
def test_a_secret_that_cannot_be_read(path: str) -> None:
    with pytest.raises(InvalidConfig, match=r"key\.file: cannot read"):
        keys.read_key(path)


@pytest.mark.timeout(20)
def test_a_named_pipe_in_the_secrets_place_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key")
    with pytest.raises(InvalidConfig, match=r"key\.file"):
        keys.read_key(str(tmp_path / "key"))
