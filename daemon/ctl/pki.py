"""Makes certificates for a cluster that has no Swarm to issue them. Works offline, on files.

1. ``init`` makes a CA and a policy authority signed by it; ``issue`` makes one node's
   certificate and key.
2. Nothing is ever overwritten: an existing file is an error that names it. ``init`` also makes an
   empty file beside the authority's key, which means that this key has signed no policy yet
   (``daemon.ctl.signing``).
3. Keys are ECDSA P-256, PKCS #8 without a password, in files that have mode 0600 from the start.
4. A certificate is in force from BACKDATE before now on, because clocks differ.
5. The CA and the authority last ten years: replacing them means touching every node. A
   node's lasts two: ``issue`` again in another folder and put both files in place; the
   daemon follows them (``daemon.cluster.credentials``).
6. Certificates have the form of those that Swarm issues (O = cluster, OU, CN = node id, EC P-256),
   and in addition SANs for the addresses that peers dial, because rustls checks those (RFC 5280:
   v3, critical basicConstraints and keyUsage, extendedKeyUsage for both ends of a session).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from daemon.model.identity import Identity
from daemon.model.trust import NODE_UNIT
from daemon.naming import NAME, is_host_name
from netconf import files
from netconf.errors import InvalidConfig, IOFailure

AUTHORITY = "authority"
"""CN of the policy authority, and so the signer of its records."""
AUTHORITY_UNIT = "noctule-authority"
BACKDATE = timedelta(hours=1)
LONG = timedelta(days=3652)
NODE_LIFE = timedelta(days=731)


def last_signed_beside(key: Path) -> Path:
    """Return the path of the file with the policy that an authority's private `key` signed last."""
    return key.with_name(f"{key.name.removesuffix('.key')}.policy")


def init(directory: Path, cluster: str, now: float) -> list[Path]:
    """Write ca.crt, ca.key, authority.crt, authority.key and authority.policy; return their paths.

    `directory` is made if missing; `now` is in seconds since the epoch. Raises InvalidConfig
    for a file that exists or a `cluster` that is no name, IOFailure when writing fails.
    """
    _check_name(cluster, "cluster")
    paths = [directory / f"{name}.{kind}" for name in ("ca", AUTHORITY) for kind in ("crt", "key")]
    last_signed = last_signed_beside(paths[-1])
    paths.append(last_signed)
    _check_absent(paths)
    start = datetime.fromtimestamp(now, UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _subject(cluster, "noctule-ca", f"{cluster} CA"[:64])
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), ca_key.public_key(), start, LONG)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject(cluster, AUTHORITY_UNIT, AUTHORITY)
    authority = (
        _builder(name, ca_name, key.public_key(), ca_key.public_key(), start, LONG)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IOFailure(f"{directory}: cannot make it: {error.strerror}") from error
    _write_pair(directory / "ca", ca, ca_key)
    _write_pair(directory / AUTHORITY, authority, key)
    files.create(last_signed, b"")
    return paths


def issue(directory: Path, node: str, addresses: Sequence[str], now: float) -> list[Path]:
    """Write NODE.crt and NODE.key, signed by the CA in `directory`; return their paths.

    `addresses` are IP addresses or DNS names, without port, that peers dial `node` at; its
    own name is added as a DNS name. Raises InvalidConfig for names and addresses that cannot
    be in a certificate, a file that exists or a CA that cannot be used; IOFailure when
    reading or writing fails.
    """
    _check_name(node, "node")
    if node in ("ca", AUTHORITY):
        raise InvalidConfig(f'node: "{node}" is the name of a file of pki init; choose another')
    if not is_host_name(node):
        raise InvalidConfig(
            f'node: "{node}" cannot be a DNS name, as it must be to be dialled by name; '
            "use no empty part between dots, no '-' before or after a dot, no dot at the end"
        )
    names: list[x509.GeneralName] = [_general_name(address) for address in addresses]
    names.append(x509.DNSName(node))
    _check_absent([directory / f"{node}.crt", directory / f"{node}.key"])
    ca = Identity.load(directory / "ca.crt", directory / "ca.key", "pki.ca")
    cluster = ca.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    subject = _subject(str(cluster[0].value) if cluster else "noctule", NODE_UNIT, node)
    start = datetime.fromtimestamp(now, UTC)
    # End it with the CA at the latest: after that it would fail although its own dates hold.
    life = min(NODE_LIFE, ca.certificate.not_valid_after_utc - start)
    if life <= timedelta():
        raise InvalidConfig(f"{directory / 'ca.crt'}: has expired; make a new CA with pki init")
    key = ec.generate_private_key(ec.SECP256R1())
    ends = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = ca.certify(
        _builder(subject, ca.certificate.subject, key.public_key(), ca.public_key, start, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(ends), critical=False)
        .add_extension(x509.SubjectAlternativeName(list(dict.fromkeys(names))), critical=False)
    )
    return _write_pair(directory / node, certificate, key)


def _check_name(name: str, field: str) -> None:
    if NAME.fullmatch(name) is None:
        raise InvalidConfig(
            f'{field}: "{name}" is not a name; use at most 64 letters, digits, "_", "." and '
            '"-", a letter or digit first'
        )


def _check_absent(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.exists() or path.is_symlink():
            raise InvalidConfig(f"{path}: exists already; move it away, or use another folder")


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(address))
    except ValueError:
        # Refuse an all-digit last label: it is a mistyped IP address (192.0.2.300), not a name.
        last = address.rpartition(".")[2]
        if NAME.fullmatch(address) and is_host_name(address) and not last.isdigit():
            return x509.DNSName(address)
    raise InvalidConfig(
        f'address: "{address}" is neither an IP address nor a DNS name; '
        "write it without protocol and port, as 192.0.2.1 or n1.example.net"
    )


def _subject(cluster: str, unit: str, name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    start: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - BACKDATE)
        .not_valid_after(start + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_pair(
    stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> list[Path]:
    """Write STEM.key, then STEM.crt; an interrupted run leaves no certificate without its key."""
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    paths = [stem.parent / f"{stem.name}.crt", stem.parent / f"{stem.name}.key"]
    files.create(paths[1], private)
    files.create(paths[0], certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return paths
