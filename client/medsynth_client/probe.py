"""One careful look at the way to the coordinator: name, port, TLS, clock; through a proxy too."""

import base64
import http.client
import socket
import ssl
import urllib.request
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from cryptography import x509

_SECONDS: Final = 8.0


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The certificate that a server shows, whether or not anyone believes it."""

    issuer: str
    subject: str
    names: tuple[str, ...]
    ends: str

    def __str__(self) -> str:
        names = ", ".join(self.names) or "no name"
        return f"issued by {self.issuer} for {names}, valid until {self.ends}"


def split_address(address: str) -> tuple[str, int]:
    """Take host and port of a card's address apart."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def proxy_for(host: str) -> SplitResult | None:
    """The proxy that the environment names for https to `host`; None for none."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(host):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def resolve(host: str) -> list[str]:
    """Addresses of a name. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(entry[4][0]) for entry in found})


def connect(address: str) -> None:
    """Open the port, through the proxy if there is one, and close it. Raises OSError."""
    _opened(address).close()


def shown_certificate(address: str) -> Shown:
    """Read the certificate without believing it. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # to look, not to talk
    host, _ = split_address(address)
    with context.wrap_socket(_opened(address), server_hostname=host) as stream:
        content = stream.getpeercert(binary_form=True)
    assert content is not None
    return _shown(x509.load_der_x509_certificate(content))


def subject_of(pem: str) -> str:
    """The name of a certificate authority."""
    return x509.load_pem_x509_certificates(pem.encode())[0].subject.rfc4514_string()


def ask_health(address: str, context: ssl.SSLContext) -> http.client.HTTPMessage:
    """Ask `/health` under TLS; gives the answer's headers. Raises OSError or HTTPException."""
    host, port = split_address(address)
    proxy = proxy_for(host)
    if proxy is None:
        connection = http.client.HTTPSConnection(host, port, context=context, timeout=_SECONDS)
    else:
        place = proxy.hostname or ""
        connection = http.client.HTTPSConnection(
            place, proxy.port or 80, context=context, timeout=_SECONDS
        )
        connection.set_tunnel(host, port, headers=_proxy_headers(proxy))
    try:
        connection.request("GET", "/health")
        return connection.getresponse().headers
    finally:
        connection.close()


def _opened(address: str) -> socket.socket:
    host, port = split_address(address)
    proxy = proxy_for(host)
    if proxy is None:
        return socket.create_connection((host, port), timeout=_SECONDS)
    connection = http.client.HTTPConnection(
        proxy.hostname or "", proxy.port or 80, timeout=_SECONDS
    )
    connection.set_tunnel(host, port, headers=_proxy_headers(proxy))
    connection.connect()
    opened = connection.sock
    assert isinstance(opened, socket.socket)
    return opened


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _shown(certificate: x509.Certificate) -> Shown:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = [str(name.value) for name in extension.value]
    except x509.ExtensionNotFound:
        names = []
    return Shown(
        issuer=certificate.issuer.rfc4514_string(),
        subject=certificate.subject.rfc4514_string(),
        names=tuple(names),
        ends=f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
    )
