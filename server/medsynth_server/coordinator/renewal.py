"""`medsynth-server renew`: a new server certificate by the federation's own authority.

Hospitals believe the authority, whose certificate is on the card they hold; so nothing changes for
them. The server's private key stays: one file takes the place of another, and a crash between
leaves the old one.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.identity.cards import CoordinatorCard, read_card
from medsynth_server.coordinator.folder import FederationFolder
from medsynth_server.coordinator.founding import enrolment_sheet
from medsynth_server.coordinator.pki import (
    Credential,
    check_server,
    ends,
    make_server,
    split_address,
)

#: From so long before its end a certificate is worth a word.
_SOON: Final = timedelta(days=30)


def renew(folder: FederationFolder) -> datetime:
    """Renew the server's certificate; gives the new one's end.

    Raises:
        BadConfig: the federation has no authority of its own, or one whose time is over.

    """
    address = folder.load().coordinator.address
    host, _ = split_address(address)
    if not folder.authority_key.exists():
        problem = Problem(
            name=str(folder.authority_key),
            value="absent",
            wanted="a federation with an authority of its own",
            mend=f"put your own authority's new certificate at {folder.server_certificate}",
        )
        raise BadConfig(problem)
    authority = Credential(
        key=folder.authority_key.read_bytes(),
        certificate=folder.authority_certificate.read_bytes(),
    )
    if (over := ends(authority)) <= datetime.now(UTC):
        problem = Problem(
            name=str(folder.authority_certificate),
            value=f"valid to {over:%Y-%m-%d}",
            wanted="an authority that hospitals still believe",
            mend="found a new federation: every hospital needs its card",
        )
        raise BadConfig(problem)
    server = make_server(authority, host, key=folder.server().key)
    check_server(server, host, name="the new certificate", now=datetime.now(UTC))
    write_bytes(folder.server_certificate, server.certificate)
    card = read_card(folder.card, CoordinatorCard)
    write_bytes(folder.sheet, enrolment_sheet(card, server.certificate).encode())
    return ends(server)


def ends_soon(folder: FederationFolder) -> str:
    """Say that the certificate ends within weeks, or nothing."""
    over = ends(folder.server())
    if over - datetime.now(UTC) > _SOON:
        return ""
    return f"the server certificate ends on {over:%Y-%m-%d}: medsynth-server renew {folder.path}"
