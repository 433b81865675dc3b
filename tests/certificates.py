"""Certificate authorities and server certificates for tests, good and bad."""

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(_PEM).decode()


def authority(name: str = "the coordinator's authority") -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(name), _name(name), key.public_key(), timedelta(days=9))
    signed = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return Authority(key, signed.add_extension(usage, critical=True).sign(key, hashes.SHA256()))


def server_context(
    above: Authority,
    folder: Path,
    *,
    names: tuple[str, ...] = ("127.0.0.1",),
    life: timedelta = timedelta(days=1),
) -> ssl.SSLContext:
    """A server's side of TLS; with a negative `life` its certificate has expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name("server"), above.certificate.subject, key.public_key(), life)
    alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
    certificate = builder.add_extension(alternatives, critical=False).sign(
        above.key, hashes.SHA256()
    )
    pem = folder / "server.pem"
    private = key.private_bytes(
        _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + certificate.public_bytes(_PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + life)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
