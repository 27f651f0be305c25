"""Who is believed: only a node's own, current certificate of this cluster's CA."""

from __future__ import annotations

import base64
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from daemon.model.identity import Identity
from daemon.model.trust import Trust, Untrusted
from netconf.errors import InvalidConfig, IOFailure
from tests.unit.model_kit import NOW, folder, identity, trust

DAY = 86_400.0
Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def subject(name: str, *units: str) -> x509.Name:
    given = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units]
    return x509.Name([*given, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(
    name: x509.Name,
    key: object,
    issuer: x509.Name,
    issuer_key: Key,
    basic: x509.BasicConstraints | None = None,
    days: float = 1,
) -> x509.Certificate:
    start = datetime.fromtimestamp(NOW, UTC) - timedelta(hours=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())  # type: ignore[attr-defined]
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
    )
    if basic is not None:
        builder = builder.add_extension(basic, critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


def pem(*certificates: x509.Certificate) -> str:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates).decode()


def ca(length: int | None = None) -> x509.BasicConstraints:
    return x509.BasicConstraints(ca=True, path_length=length)


ROOT_KEY, NODE_KEY = new_key(), new_key()
ROOT = certificate(subject("root"), ROOT_KEY, subject("root"), ROOT_KEY, ca(), days=30)
NODE = subject("n1", "swarm-worker")


def test_a_node_is_believed_and_its_signatures_too() -> None:
    signer = trust().verify_node(identity("n1").pem, "n1", NOW)
    signature = identity("n1").sign(b"data")
    assert signer.name == "n1"
    assert not signer.manager
    assert signer.verify(signature, b"data")
    assert not signer.verify(signature, b"date")
    assert not signer.verify(identity("n2").sign(b"data"), b"data")
    assert not signer.verify(b"", b"data")
    assert identity("n1").sign(b"data") == signature


def test_another_name_another_ca_another_time() -> None:
    believe = trust().verify_node
    with pytest.raises(Untrusted, match=r'^x: its CN is "n1", not "n2"'):
        believe(identity("n1").pem, "n2", NOW, "x")
    with pytest.raises(Untrusted, match="not issued by this cluster's CA"):
        believe(identity("n1", "other").pem, "n1", NOW)
    for moment in (NOW - DAY, NOW + 800 * DAY):
        with pytest.raises(Untrusted, match=r"valid from 20.* renew it, or set the clock"):
            believe(identity("n1").pem, "n1", moment)
    with pytest.raises(Untrusted, match="holds no certificate in PEM"):
        believe("nothing", "n1", NOW)


def test_the_authority_is_no_node() -> None:
    with pytest.raises(Untrusted, match="its OU is none of"):
        trust().verify_node(identity("authority").pem, "authority", NOW)


def test_a_swarm_manager_is_one() -> None:
    leaf = certificate(subject("n1", "swarm-manager"), NODE_KEY, ROOT.subject, ROOT_KEY)
    assert Trust([ROOT], None).verify_node(pem(leaf), "n1", NOW).manager


def test_two_units_are_none() -> None:
    two = subject("n1", "swarm-worker", "swarm-manager")
    leaf = certificate(two, NODE_KEY, ROOT.subject, ROOT_KEY)
    with pytest.raises(Untrusted, match="OU"):
        Trust([ROOT], None).verify_node(pem(leaf), "n1", NOW)


def test_a_chain_may_pass_through_intermediates_that_may_issue() -> None:
    believe = Trust([ROOT], None).verify_node
    key, name = new_key(), subject("between")
    leaf = certificate(NODE, NODE_KEY, name, key)
    good = certificate(name, key, ROOT.subject, ROOT_KEY, ca(0))
    assert believe(pem(leaf, good), "n1", NOW).name == "n1"
    with pytest.raises(Untrusted, match="not issued"):
        believe(pem(leaf), "n1", NOW)
    for bad in (
        certificate(name, key, ROOT.subject, ROOT_KEY),
        certificate(name, key, ROOT.subject, ROOT_KEY, x509.BasicConstraints(False, None)),
        certificate(name, key, ROOT.subject, ROOT_KEY, ca(), days=0.01),
        certificate(name, key, ROOT.subject, new_key(), ca()),
    ):
        with pytest.raises(Untrusted, match="not issued"):
            believe(pem(leaf, bad), "n1", NOW)


def test_path_lengths_count() -> None:
    keys, names = [new_key(), new_key()], [subject("upper"), subject("lower")]
    upper = certificate(names[0], keys[0], ROOT.subject, ROOT_KEY, ca(0))
    lower = certificate(names[1], keys[1], names[0], keys[0], ca())
    leaf = certificate(NODE, NODE_KEY, names[1], keys[1])
    with pytest.raises(Untrusted, match="not issued"):
        Trust([ROOT], None).verify_node(pem(leaf, lower, upper), "n1", NOW)
    wider = certificate(names[0], keys[0], ROOT.subject, ROOT_KEY, ca(1))
    Trust([ROOT], None).verify_node(pem(leaf, lower, wider), "n1", NOW)


def test_a_nodes_certificate_issues_no_others() -> None:
    """n1's key must not be able to make an n2."""
    n1 = certificate(NODE, NODE_KEY, ROOT.subject, ROOT_KEY)
    forged = certificate(subject("n2", "swarm-worker"), new_key(), NODE, NODE_KEY)
    with pytest.raises(Untrusted, match="not issued"):
        Trust([ROOT], None).verify_node(pem(forged, n1), "n2", NOW)


def test_a_ca_and_other_kinds_of_keys_are_no_node() -> None:
    believe = Trust([ROOT], None).verify_node
    with pytest.raises(Untrusted, match="is a CA's"):
        believe(pem(certificate(NODE, NODE_KEY, ROOT.subject, ROOT_KEY, ca())), "n1", NOW)
    for key in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        with pytest.raises(Untrusted, match="P-256"):
            believe(pem(certificate(NODE, key, ROOT.subject, ROOT_KEY)), "n1", NOW)


def test_several_roots_are_all_believed() -> None:
    other = Trust.load(folder("other") / "ca.crt", None)
    both = pem(ROOT) + (folder() / "ca.crt").read_text()
    made = Trust(x509.load_pem_x509_certificates(both.encode()), None)
    made.verify_node(identity("n1").pem, "n1", NOW)
    with pytest.raises(Untrusted):
        other.verify_node(identity("n1").pem, "n1", NOW)


def test_the_pinned_authority_counts_whoever_issued_it() -> None:
    key = new_key()
    name = subject("chief")
    own = certificate(name, key, name, key, days=0.01)
    made = Trust([ROOT], own).authority
    assert made is not None
    assert made.name == "chief"
    assert made.verify(key.sign(b"x", ec.ECDSA(hashes.SHA256())), b"x")
    ed = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(InvalidConfig, match=r"policy\.authority: not for an ECDSA P-256 key"):
        Trust([ROOT], certificate(name, ed, name, key))


def test_files_that_are_not_what_they_should_be_are_named(tmp_path: Path) -> None:
    pair = folder()
    cases = [
        (tmp_path / "none", pair / "n1.key", IOFailure, r"fabric.identity.certificate: cannot"),
        (pair / "n1.crt", tmp_path / "none", IOFailure, r"fabric.identity.key: cannot read .*none"),
        (pair / "n1.key", pair / "n1.key", InvalidConfig, r"certificate: holds no certificate"),
        (pair / "n1.crt", pair / "n1.crt", InvalidConfig, r"key: not an unencrypted private key"),
        (pair / "n1.crt", pair / "n2.key", InvalidConfig, r"key: does not belong to fabric"),
    ]
    for one, two, kind, says in cases:
        with pytest.raises(kind, match=says):
            Identity.load(one, two)
    with pytest.raises(IOFailure, match=r"^fabric\.identity\.ca: cannot read"):
        Trust.load(tmp_path / "none", None)
    with pytest.raises(InvalidConfig, match=r"^policy\.authority: holds no certificate"):
        Trust.load(pair / "ca.crt", pair / "ca.key")
    secret = NODE_KEY.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )
    with pytest.raises(InvalidConfig, match="key: not an unencrypted"):
        Identity.parse((pair / "n1.crt").read_bytes(), secret)


def test_no_damaged_certificate_is_believed_or_gets_past_as_another_error() -> None:
    """Every byte in turn: parts of a certificate are parsed, and may fail, only when read.

    One is no damage: the count of unused bits before the signature, where the last bit allows
    another one. It is outside of what is signed, and what is signed and the signature stay.
    """
    believer, genuine = trust(), identity("n1").certificate
    whole = genuine.public_bytes(serialization.Encoding.DER)
    harmless = whole.index(genuine.signature) - 1
    for position in range(len(whole)):
        for bit in (0x01, 0x10, 0x80):
            damaged = bytearray(whole)
            damaged[position] ^= bit
            body = base64.encodebytes(bytes(damaged)).decode()
            text = f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"
            if position == harmless:
                with contextlib.suppress(Untrusted):
                    believer.verify_node(text, "n1", NOW)
                    said = x509.load_der_x509_certificate(bytes(damaged))
                    assert said.tbs_certificate_bytes == genuine.tbs_certificate_bytes
                    assert said.signature == genuine.signature
                continue
            with pytest.raises(Untrusted):
                believer.verify_node(text, "n1", NOW)
