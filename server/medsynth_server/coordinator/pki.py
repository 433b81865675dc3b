"""The coordinator's certificates: an authority of its own, and what it vouches for.

The authority signs one server certificate and is sent to every hospital on the coordinator's card;
a hospital believes it and no other. Its key stays in the folder, for the next server certificate.
"""

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medsynth_common.errors import BadConfig, Problem
from medsynth_common.identity.cards import ADDRESS

#: The authority outlives any study; the server certificate is renewed within the 398 days that
#: TLS clients have come to expect of one (CA/Browser Forum, ballot SC31).
_AUTHORITY_DAYS: Final = 3650
_SERVER_DAYS: Final = 397
#: Clocks that stand a little behind must not take a new certificate for one of the future.
_EARLIER: Final = timedelta(minutes=10)
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A private key and the certificate for it, both PEM; the certificate may be a chain."""

    key: bytes
    certificate: bytes


def split_address(address: str) -> tuple[str, int]:
    """Take host and port apart; an IPv6 host stands in brackets. Raises `BadConfig`."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if re.fullmatch(ADDRESS, address) is None or not int(port) < 1 << 16:
        wanted = "HOST:PORT, such as coordinator.example.org:8443"
        raise BadConfig(Problem(name="address", value=address, wanted=wanted))
    return host, int(port)


def make_authority(name: str) -> Credential:
    """Make a certificate authority that may sign server certificates and nothing below it."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(f"medsynth federation {name}")
    certificate = (
        _begun(subject, subject, key.public_key(), days=_AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return Credential(key=_pem(key), certificate=certificate.public_bytes(_PEM))


def make_server(authority: Credential, host: str, *, key: bytes | None = None) -> Credential:
    """Make a server certificate for one host name or IP address.

    Args:
        authority: who vouches.
        host: for whom.
        key: the server's private key, PEM; None: a new one.

    """
    signer = _private(authority.key)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    own = ec.generate_private_key(ec.SECP384R1()) if key is None else _private(key)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    certificate = (
        _begun(_name(host), issuer.subject, own.public_key(), days=_SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName([_alternative(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(above, critical=False)
        .sign(signer, hashes.SHA384())
    )
    return Credential(key=_pem(own), certificate=certificate.public_bytes(_PEM))


def ends(server: Credential) -> datetime:
    """When a certificate's time is over."""
    return x509.load_pem_x509_certificates(server.certificate)[0].not_valid_after_utc


def check_server(server: Credential, host: str, *, name: str, now: datetime) -> None:
    """Raise `BadConfig`, with every problem, unless clients would take it for `host` now."""
    try:
        certificate = x509.load_pem_x509_certificates(server.certificate)[0]
        key = serialization.load_pem_private_key(server.key, None)
    except (ValueError, TypeError) as error:
        problem = Problem(name=name, value="unreadable", wanted="certificate and key in PEM")
        raise BadConfig(problem) from error
    problems = []
    if _spki(certificate.public_key()) != _spki(key.public_key()):
        problems.append(Problem(name=name, value="another key's", wanted="one for its key"))
    begins, over = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now < over:
        value = f"valid from {begins:%Y-%m-%d} to {over:%Y-%m-%d}"
        mend = "medsynth-server renew" if now >= over else ""
        wanted = f"valid on {now:%Y-%m-%d}"
        problems.append(Problem(name=name, value=value, wanted=wanted, mend=mend))
    if not any(_matches(named, host) for named in _names(certificate)):
        value = f"for {', '.join(_names(certificate)) or 'no name'}"
        problems.append(Problem(name=name, value=value, wanted=f"for {host}"))
    if problems:
        raise BadConfig(problems)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    # X.520 allows a common name of 64 characters; a longer host stands whole among the
    # alternative names, which are all that clients read.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    hosts = found.get_values_for_type(x509.DNSName)
    return [*hosts, *map(str, found.get_values_for_type(x509.IPAddress))]


def _matches(named: str, host: str) -> bool:
    """As TLS clients match them (RFC 6125): a star stands for the first label alone."""
    if named.startswith("*."):
        return named[1:].lower() == host[host.find(".") :].lower()
    return named.lower() == host.lower()


def _spki(key: object) -> bytes:
    public: bytes = key.public_bytes(  # type: ignore[attr-defined] # every public key has it
        _PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
