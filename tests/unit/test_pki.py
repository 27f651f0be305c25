"""Certificates that the operator makes: their shape, their files, and that TLS takes them."""

from __future__ import annotations

import shutil
import ssl
import stat
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from daemon.ctl import pki
from daemon.model.identity import Identity
from daemon.model.trust import Trust
from netconf.errors import InvalidConfig, IOFailure
from tests.unit.model_kit import NOW, folder


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


NAMES = ["ca.crt", "ca.key", "authority.crt", "authority.key", "authority.policy"]


def test_init_writes_five_files_with_keys_for_their_owner_only(tmp_path: Path) -> None:
    made = pki.init(tmp_path / "new" / "pki", "lab", NOW)
    assert [path.name for path in made] == NAMES
    assert made[4] == pki.last_signed_beside(made[3])
    assert made[4].read_bytes() == b""
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made}
    assert modes["ca.key"] == modes["authority.key"] == 0o600
    assert certificate(made[2]).issuer == certificate(made[0]).subject


@pytest.mark.parametrize("name", NAMES)
def test_init_never_overwrites_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(InvalidConfig, match=f"{name}: exists already"):
        pki.init(tmp_path, "lab", NOW)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


def test_issue_never_overwrites(tmp_path: Path) -> None:
    shutil.copytree(folder(), tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "n1.key").read_bytes()
    with pytest.raises(InvalidConfig, match=r"n1\.crt: exists already; move it away"):
        pki.issue(tmp_path, "n1", [], NOW)
    (tmp_path / "n1.crt").unlink()
    with pytest.raises(InvalidConfig, match=r"n1\.key: exists already"):
        pki.issue(tmp_path, "n1", [], NOW)
    assert (tmp_path / "n1.key").read_bytes() == before


def test_a_node_certificate_has_the_shape_of_swarms(tmp_path: Path) -> None:
    shutil.copytree(folder(), tmp_path, dirs_exist_ok=True)
    made = pki.issue(tmp_path, "n9.rack-1", ["192.0.2.9", "n9.example.net", "2001:db8::9"], NOW)
    assert [path.name for path in made] == ["n9.rack-1.crt", "n9.rack-1.key"]
    assert stat.S_IMODE(made[1].stat().st_mode) == 0o600
    leaf = certificate(made[0])
    assert leaf.version is x509.Version.v3
    assert leaf.subject.rfc4514_string() == "CN=n9.rack-1,OU=noctule-node,O=lab"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "192.0.2.9",
        "2001:db8::9",
    ]
    assert names.get_values_for_type(x509.DNSName) == ["n9.example.net", "n9.rack-1"]
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert basic.critical
    assert not basic.value.ca
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert Identity.load(made[0], made[1]).name == "n9.rack-1"


@pytest.mark.parametrize("node", ["", "a/b", "../n1", "a..b", "n1.", "n1-", "ca", "authority"])
def test_a_node_that_cannot_be_named_is_refused(node: str) -> None:
    with pytest.raises(InvalidConfig, match="node: "):
        pki.issue(folder(), node, [], NOW)


@pytest.mark.parametrize(
    "address", ["192.0.2.1:7447", "tls/192.0.2.1", "192.0.2.300", "", "*.example.net", "a_-.b"]
)
def test_an_address_that_cannot_be_dialled_is_refused(address: str) -> None:
    with pytest.raises(InvalidConfig, match=r"address: .* is neither an IP address nor a DNS name"):
        pki.issue(folder(), "n8", [address], NOW)
    assert not (folder() / "n8.key").exists()


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(IOFailure, match=r"pki.ca.certificate: cannot read .*ca\.crt"):
        pki.issue(tmp_path, "n1", [], NOW)
    with pytest.raises(InvalidConfig, match="cluster: "):
        pki.init(tmp_path, "no name", NOW)
    (tmp_path / "file").touch()
    with pytest.raises(IOFailure, match="file"):
        pki.init(tmp_path / "file", "lab", NOW)


def test_a_node_certificate_never_outlives_its_ca(tmp_path: Path) -> None:
    pki.init(tmp_path, "lab", NOW)
    end = certificate(tmp_path / "ca.crt").not_valid_after_utc
    late = end.timestamp() - 1000
    pki.issue(tmp_path, "n1", [], late)
    assert certificate(tmp_path / "n1.crt").not_valid_after_utc == end
    Trust.load(tmp_path / "ca.crt", None).verify_node((tmp_path / "n1.crt").read_text(), "n1", late)
    with pytest.raises(InvalidConfig, match="has expired"):
        pki.issue(tmp_path, "n2", [], end.timestamp() + 1)


def test_both_ends_of_a_tls_session_accept_it_by_address(tmp_path: Path) -> None:
    now = time.time()
    pki.init(tmp_path, "lab", now)
    pki.issue(tmp_path, "n1", ["192.0.2.1"], now)
    pki.issue(tmp_path, "n2", ["192.0.2.2"], now)
    assert _handshake(tmp_path, "192.0.2.1") == "n2"
    assert _handshake(tmp_path, "n1") == "n2"
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        _handshake(tmp_path, "192.0.2.2")


def _handshake(pki_folder: Path, dialled: str) -> str:
    """Let n2 dial n1 in memory, both verifying; return the CN that n1 saw."""

    def context(side: int, node: str) -> ssl.SSLContext:
        made = ssl.SSLContext(side)
        made.load_verify_locations(pki_folder / "ca.crt")
        made.load_cert_chain(pki_folder / f"{node}.crt", pki_folder / f"{node}.key")
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        made.verify_mode = ssl.CERT_REQUIRED
        return made

    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context(ssl.PROTOCOL_TLS_SERVER, "n1").wrap_bio(up, down, server_side=True)
    client = context(ssl.PROTOCOL_TLS_CLIENT, "n2").wrap_bio(down, up, server_hostname=dialled)
    waiting = {client, server}
    for end in (client, server, client, server, client, server):
        if end in waiting:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.discard(end)
    assert not waiting
    seen = server.getpeercert(binary_form=True)
    assert seen is not None
    subject = x509.load_der_x509_certificate(seen).subject
    return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
