"""How a hospital reaches its coordinator: the certificate it trusts, and what can go wrong.

Every fault becomes one line that says what was found, what was wanted and what to do, in one of
three kinds: `Unreachable` (try again), `Untrusted` (what answers is not the coordinator) and
`NotAdmitted` (it is, and does not let this node in).

A proxy is taken from HTTPS_PROXY, https_proxy and NO_PROXY, as by most programs. A proxy that
opens TLS needs its certificate authority in `connection.extra_ca` of `site.toml`.
"""

import errno
import socket
import ssl
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from medsynth_client.site_file import SiteFile
from medsynth_common.errors import (
    BadConfig,
    ConnectionFailed,
    NotAdmitted,
    Problem,
    Unreachable,
    Untrusted,
)
from medsynth_common.identity.cards import CoordinatorCard, read_card

COORDINATOR_CARD: Final = "coordinator.card"
#: How far a node's clock may be ahead of the coordinator's, and how far behind, seconds: what
#: Flower's authentication takes.
AHEAD: Final = 5.0
BEHIND: Final = 300.0

# OpenSSL's reasons (x509_vfy.h) that a certificate does not verify.
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST, _WRONG_ADDRESS = 9, 10, 62, 64
#: What OpenSSL calls an answer that is no TLS.
_NO_TLS: Final = {
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "HTTP_REQUEST",
    "UNKNOWN_PROTOCOL",
}


def load_card(folder: Path) -> CoordinatorCard:
    """Read the coordinator's card that a site keeps.

    Raises:
        BadConfig: there is none, or its key is not the one that `site.toml` pins.

    """
    card = read_card(folder / COORDINATOR_CARD, CoordinatorCard)
    pinned = SiteFile.load(folder / "site.toml").coordinator_key
    if card.signing_key != pinned:
        problem = Problem(
            name="site.toml: coordinator_key",
            value=str(pinned),
            wanted=f"{card.signing_key}, as on {COORDINATOR_CARD}",
            mend="ask the coordinator by telephone which of the two is right",
        )
        raise BadConfig(problem)
    return card


def tls_context(card: CoordinatorCard, extra_ca: str | None) -> ssl.SSLContext:
    """Trust the card's certificate authority alone, or, without one on it, the system's.

    `extra_ca` is a PEM file that is trusted besides: a TLS-opening proxy's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if card.ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cadata=card.ca)
    except ssl.SSLError as error:
        wanted = "certificates in PEM"
        raise BadConfig(
            Problem(name=f"{COORDINATOR_CARD}: ca", value="?", wanted=wanted)
        ) from error
    if extra_ca is not None:
        try:
            context.load_verify_locations(cafile=extra_ca)
        except OSError as error:  # ssl.SSLError is one
            value = error.strerror or type(error).__name__
            problem = Problem(
                name="site.toml: connection.extra_ca",
                value=f"{extra_ca}: {value}",
                wanted="a file of certificates in PEM",
            )
            raise BadConfig(problem) from error
    return context


def fault_of(error: BaseException, address: str) -> ConnectionFailed:
    """Tell what a failed request means; looks through all the errors it was raised from."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return _tls_fault(cause, address)
        if isinstance(cause, socket.gaierror):
            return Unreachable(
                f"{address}: no such name in DNS (check the address on {COORDINATOR_CARD}; where "
                "names are resolved by a proxy, set HTTPS_PROXY)"
            )
        if isinstance(cause, ConnectionRefusedError):
            return Unreachable(
                f"{address}: connection refused, nobody listens there (is the coordinator "
                "running? does the firewall let this machine out to that port?)"
            )
        if isinstance(cause, OSError) and cause.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            return Unreachable(
                f"{address}: no way there (is this machine's network up? is the address on "
                f"{COORDINATOR_CARD} right?)"
            )
    if "timeout" in type(error).__name__.lower() or isinstance(error, TimeoutError):
        return Unreachable(
            f"{address}: no answer in time (a firewall that drops packets, or a network that is "
            "down)"
        )
    if "proxy" in type(error).__name__.lower():
        return Unreachable(f"{address}: the proxy of HTTPS_PROXY does not connect: {error}")
    return Unreachable(f"{address}: {type(error).__name__} ({error})")


def not_in_time(date: str | None, *, now: float) -> NotAdmitted | None:
    """Tell a clock that the coordinator will not take, from the `Date` header of its answer."""
    skew = clock_skew(date, now=now)
    if skew is None or -BEHIND <= skew <= AHEAD:
        return None
    return NotAdmitted(
        f"this machine's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'} of the "
        f"coordinator's, which takes at most {AHEAD:.0f} s ahead and {BEHIND:.0f} s behind: set "
        "the clock (NTP), then try again"
    )


def clock_skew(date: str | None, *, now: float) -> float | None:
    """Seconds that this clock is ahead of the one that wrote an HTTP `Date`; None without one."""
    if date is None:
        return None
    try:
        return now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


def _tls_fault(error: ssl.SSLError, address: str) -> ConnectionFailed:
    if isinstance(error, ssl.SSLCertVerificationError):
        return Untrusted(f"{address}: {_certificate_fault(error)}")
    if error.reason in _NO_TLS:
        return Untrusted(
            f"{address}: answers without TLS, wanted https (is this the coordinator's port? does "
            "a proxy stand between?)"
        )
    return Unreachable(f"{address}: the TLS connection broke off ({error.reason})")


def _certificate_fault(error: ssl.SSLCertVerificationError) -> str:
    match error.verify_code:
        case code if code == _EXPIRED:
            return (
                "its certificate has expired (the coordinator must renew it; or this machine's "
                "clock is wrong)"
            )
        case code if code == _NOT_YET_VALID:
            return "its certificate is not valid yet (this machine's clock is wrong?)"
        case code if code in (_WRONG_HOST, _WRONG_ADDRESS):
            return (
                f"its certificate is for another server name ({error.verify_message}; ask the "
                f"coordinator which address it was made for)"
            )
        case _:
            return (
                "its certificate is not from the certificate authority on "
                f"{COORDINATOR_CARD} ({error.verify_message}; a proxy that opens TLS, another "
                "server, or a new card: `medsynth-client doctor` tells which)"
            )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
