"""What keeps a hospital out is told in one line, and ends it with 2.

The node tells it. `medsynth-client run` is its parent; that it passes on line and exit status is
seen once, since each of its runs loads a trainer too.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from certificates import authority, server_context
from client.http_server import Saying, answering
from federation.hospital import make_hospital
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard

pytestmark = pytest.mark.slow

CA = authority()
#: The coordinator's clock that a hospital's is behind of by an hour, and its refusal of a key.
AN_HOUR = 3600.0
REFUSED = 401


@contextmanager
def wrong_authority(folder: Path) -> Iterator[str]:
    with answering(Saying(), server_context(authority("a proxy"), folder)) as address:
        yield address


@contextmanager
def wrong_name(folder: Path) -> Iterator[str]:
    context = server_context(CA, folder, names=("elsewhere.example",))
    with answering(Saying(), context) as address:
        yield address


@contextmanager
def expired(folder: Path) -> Iterator[str]:
    context = server_context(CA, folder, life=-timedelta(days=1))
    with answering(Saying(), context) as address:
        yield address


@contextmanager
def plain_http(folder: Path) -> Iterator[str]:
    with answering(Saying()) as address:
        yield address


@contextmanager
def another_time(folder: Path) -> Iterator[str]:
    saying = Saying(REFUSED, date=time.time() + AN_HOUR)
    with answering(saying, server_context(CA, folder)) as address:
        yield address


@contextmanager
def unknown_key(folder: Path) -> Iterator[str]:
    with answering(Saying(REFUSED), server_context(CA, folder)) as address:
        yield address


@contextmanager
def nobody(folder: Path) -> Iterator[str]:
    with answering(Saying()) as address:
        pass
    yield address


FAULTS = {
    "authority": (wrong_authority, "not from the certificate authority"),
    "name": (wrong_name, "another server name"),
    "expired": (expired, "has expired"),
    "plain HTTP": (plain_http, "answers without TLS"),
    "clock": (another_time, "behind of the coordinator's"),
    "key": (unknown_key, "is site.card enrolled there?"),
    "nobody": (nobody, "nobody listens there"),
}


@pytest.mark.parametrize(
    ("command", "name"), [("run", "name"), *(("node", name) for name in FAULTS)]
)
def test_a_hospital_ends_with_2_and_one_line(command: str, name: str, tmp_path: Path) -> None:
    fault, told = FAULTS[name]
    with fault(tmp_path) as address:
        card = CoordinatorCard(
            federation="test",
            address=address,
            signing_key=SigningKey.generate().public.text,
            ca=CA.pem,
        )
        site = make_hospital(tmp_path / "site", name="site-a", card=card)
        socket = ("--socket", str(tmp_path / "no-trainer.sock")) if command == "node" else ()
        code = site.start(*socket, command=command).ended(seconds=120)
    errors = [line for line in site.errors().splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1, site.errors()
    assert told in errors[0]
    assert "Traceback" not in site.errors()
