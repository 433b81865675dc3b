"""What keeps a hospital out is told by `medsynth-client run` in one line, and ends it with 2."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (wrong_authority, "not from the certificate authority"),
        (wrong_name, "another server name"),
        (expired, "has expired"),
        (plain_http, "answers without TLS"),
        (another_time, "behind of the coordinator's"),
        (unknown_key, "is site.card enrolled there?"),
        (nobody, "nobody listens there"),
    ],
    ids=["authority", "name", "expired", "plain HTTP", "clock", "key", "nobody"],
)
def test_a_run_ends_with_2_and_one_line(
    fault: Callable[[Path], AbstractContextManager[str]], told: str, tmp_path: Path
) -> None:
    with fault(tmp_path) as address:
        card = CoordinatorCard(
            federation="test",
            address=address,
            signing_key=SigningKey.generate().public.text,
            ca=CA.pem,
        )
        site = make_hospital(tmp_path / "site", name="site-a", card=card).start()
        code = site.ended(seconds=120)
    errors = [line for line in site.errors().splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1, site.errors()
    assert told in errors[0]
    assert "Traceback" not in site.errors()
