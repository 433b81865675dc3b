"""The network engine on one machine: every simulated hospital as it will run, over loopback.

The coordinator's own link is opened with TLS and keys, and each hospital is `medsynth-client run`
in a process of its own: node, trainer, socket, seals and all. A simulation plays both sides, so it
makes the hospitals' keys too; in a federation they make their own.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard, SiteCard
from medsynth_common.identity.keys import read_owned, write_private
from medsynth_server.coordinator.opening import Attendance, Premises, opened
from medsynth_server.coordinator.pki import make_authority, make_server
from medsynth_server.engines.flower import FlowerGrid
from medsynth_server.run_folder import RunFolder

_HOST: Final = "127.0.0.1"
_JOIN_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 60.0


def coordinator_key(folder: RunFolder) -> str:
    """The public key whose seal the rehearsed hospitals' plans bear; made once a run."""
    return _signing_key(_home(folder) / "signing.key").public.text


@contextmanager
def rehearse(
    folder: RunFolder,
    sites: Sequence[Path],
    *,
    logs: Path,
    device: str,
    tell: Callable[[str], None],
) -> Iterator[FlowerGrid]:
    """Start the coordinator's link and all hospitals; end them with the block.

    Args:
        folder: the run's.
        sites: the hospitals' folders, each with its site.toml.
        logs: a folder for what their processes print.
        device: of their trainers.
        tell: says who is still to come.

    """
    home = _home(folder)
    key = _signing_key(home / "signing.key")
    cards = {card.site: card for card in (_site_card(site) for site in sites)}
    authority = make_authority("rehearsal")
    server = make_server(authority, _HOST)
    write_bytes(home / "server.crt", server.certificate)
    (home / "server.key").unlink(missing_ok=True)
    write_private(home / "server.key", server.key)
    premises = Premises(
        database=home / f"{logs.name}.db",
        listen=f"{_HOST}:0",
        certificate=home / "server.crt",
        key=home / "server.key",
    )
    attendance = Attendance(quorum=len(cards), join_deadline=_JOIN_SECONDS, tell=tell)
    with ExitStack() as held:
        grid, door = held.enter_context(opened(premises, lambda: cards, key, attendance))
        card = CoordinatorCard(
            federation="rehearsal",
            address=f"{_HOST}:{door.port}",
            signing_key=key.public.text,
            ca=authority.certificate.decode(),
        )
        for site in sites:
            card.write(site / "coordinator.card")
            held.enter_context(_hospital(site, logs, device))
        yield grid


@contextmanager
def _hospital(site: Path, logs: Path, device: str) -> Iterator[None]:
    """Run one hospital, with one CPU thread as the local engine's trainers."""
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "medsynth_client", "run", str(site), "--device", device]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (logs / f"{site.name}.log").open("ab") as log:
        process = subprocess.Popen(
            # However this process ends, the hospital's standard input then closes, and it ends too.
            [*command, "--threads", "1", "--rehearsal", "--watch-parent"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **threads},
            start_new_session=True,  # Ctrl-C is ours to handle: we end it below
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()


def _home(folder: RunFolder) -> Path:
    return folder.path / "rehearsal"


def _signing_key(path: Path) -> SigningKey:
    if not path.exists():
        SigningKey.generate().save(path)
    return SigningKey.load(path)


def _site_card(site: Path) -> SiteCard:
    """The card of a hospital whose keys are made here, once."""
    path = site / "keys" / "node.key"
    if not path.exists():
        content = ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        write_private(path, content)
    node = serialization.load_ssh_private_key(read_owned(path), None)
    if not isinstance(node, ec.EllipticCurvePrivateKey):
        raise BadConfig(Problem(name=str(path), value=type(node).__name__, wanted="an EC key"))
    public = node.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    signing = _signing_key(site / "keys" / "signing.key")
    return SiteCard(site=site.name, node_key=public.decode(), signing_key=signing.public.text)
