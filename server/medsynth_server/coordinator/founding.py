"""`medsynth-server init`: the folder of a new federation, its keys and its enrolment sheet."""

import re
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard
from medsynth_common.identity.keys import write_private
from medsynth_common.plan import SITE_NAME
from medsynth_server.config import parse_config, read_settings
from medsynth_server.coordinator.folder import FederationFolder
from medsynth_server.coordinator.pki import (
    Credential,
    check_server,
    make_authority,
    make_server,
    split_address,
)

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

_SETTINGS: Final = """\
[coordinator]
name = "{name}"
address = "{address}"        # what hospitals connect to; the server certificate is for it
listen = "{listen}"          # what is bound here
quorum = 2                   # sites that must answer a round
join_deadline = 3600.0       # seconds to wait for so many to be in touch
repeats = 3                  # times that a round without a quorum is asked again
"""
_RUN: Final = """
[run]                        # as for `simulate`, see docs/configuration.md
name = "{run}"

[run.federation]
deadline = 3600.0            # seconds for a round's answers

[run.privacy]
epsilon = 8.0                # what this run asks of a patient; every site has its own cap
delta = 1e-4                 # at most the smallest in any site's policy
"""


def found(
    path: Path,
    *,
    address: str,
    name: str | None,
    certificate: Path | None,
    key: Path | None,
    settings: Path | None = None,
) -> FederationFolder:
    """Make a federation's folder; nothing is overwritten.

    Args:
        path: a folder that is not there yet, or is empty.
        address: host and port that hospitals connect to.
        name: of the federation; None: the folder's.
        certificate: the operator's own server certificate, which every system knows.
        key: its key.
        settings: of the run, as `simulate` takes them; None: the defaults.

    Raises:
        BadConfig: something is there already, or the settings cannot be used.

    """
    host, port = split_address(address)
    name = name if name is not None else path.resolve().name
    _check(path, name, certificate, key)
    run = re.sub(r"[^a-z0-9-]", "-", name.lower())[:41]
    table = _RUN.format(run=run) if settings is None else _run_table(settings)
    folder = FederationFolder(path)
    signing = SigningKey.generate()
    authority, server = _certificates(name, host, certificate, key)
    card = CoordinatorCard(
        federation=name,
        address=address,
        signing_key=signing.public.text,
        ca=authority.certificate.decode() if authority is not None else None,
    )
    signing.save(folder.signing_key)
    write_private(folder.server_key, server.key)
    write_bytes(folder.server_certificate, server.certificate)
    if authority is not None:
        write_private(folder.authority_key, authority.key)
        write_bytes(folder.authority_certificate, authority.certificate)
    folder.sites.mkdir()
    card.write(folder.card)
    write_bytes(folder.sheet, enrolment_sheet(card, server.certificate).encode())
    listen = f"{'127.0.0.1' if host in _LOOPBACK else '0.0.0.0'}:{port}"
    coordinator = _SETTINGS.format(name=name, address=address, listen=listen)
    # Last: without it there is no federation, and an interrupted init says so when given again.
    write_bytes(folder.settings, (coordinator + table).encode())
    return folder


def _run_table(settings: Path) -> str:
    """The settings of a run as they were given, once they are known to be good."""
    values = read_settings(settings)
    parse_config(values, name=str(settings))
    return "\n" + tomli_w.dumps({"run": values})


def _check(path: Path, name: str, certificate: Path | None, key: Path | None) -> None:
    problems = []
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        problems.append(
            Problem(
                name=str(path),
                value="a file, or a folder that is not empty",
                wanted="a new or empty folder: no key or setting is overwritten",
            )
        )
    if not SITE_NAME.fullmatch(name):
        wanted = "at most 64 letters, digits, '.', '_' and '-', not beginning with a sign"
        problems.append(Problem(name="--name", value=repr(name), wanted=wanted))
    if (certificate is None) != (key is None):
        problems.append(
            Problem(name="--certificate", value="one of two", wanted="it and --certificate-key")
        )
    if problems:
        raise BadConfig(problems)


def _certificates(
    name: str, host: str, certificate: Path | None, key: Path | None
) -> tuple[Credential | None, Credential]:
    """The authority, unless the operator brings a certificate; and the server's certificate."""
    if certificate is None or key is None:
        authority = make_authority(name)
        return authority, make_server(authority, host)
    try:
        server = Credential(key=key.read_bytes(), certificate=certificate.read_bytes())
    except OSError as error:
        value = error.strerror or type(error).__name__
        problem = Problem(name=str(error.filename), value=value, wanted="a readable PEM file")
        raise BadConfig(problem) from error
    check_server(server, host, name=str(certificate), now=datetime.now(UTC))
    return None, server


def enrolment_sheet(card: CoordinatorCard, certificate: bytes) -> str:
    """What is read aloud when a hospital joins."""
    shown = x509.load_pem_x509_certificates(certificate)[0]
    digits = shown.fingerprint(hashes.SHA256()).hex()
    server = " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))
    until = shown.not_valid_after_utc.strftime("%Y-%m-%d")
    return textwrap.dedent(
        f"""\
        Federation {card.federation}, coordinator at {card.address}

        Send coordinator.card to every hospital, by any way at all. Then read this to a person
        there, who compares it with what their own screen shows of the card:

            coordinator.card    {card.fingerprint}

        The hospital sends site.card back, and reads its fingerprint from its screen:

            medsynth-server sites add DIR NAME --card site.card --fingerprint "..."

        For reference, SHA-256 of the server's certificate, valid until {until}:

            {server}
        """
    )
