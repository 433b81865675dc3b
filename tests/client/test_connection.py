"""Every way a first connection fails, over true TLS: one line that says what to do."""

import errno
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certificates import Authority, authority, server_context
from client.http_server import Saying, answering
from medsynth_client.connection import clock_skew, fault_of, not_in_time, tls_context
from medsynth_client.flower import Fleet
from medsynth_client.probe import ask_health
from medsynth_common.errors import (
    BadConfig,
    ConnectionFailed,
    NotAdmitted,
    Unreachable,
    Untrusted,
)
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard

CA = authority()
KEY = ec.generate_private_key(ec.SECP384R1())


def card(address: str, ca: Authority = CA) -> CoordinatorCard:
    key = SigningKey.generate().public.text
    return CoordinatorCard(federation="f", address=address, signing_key=key, ca=ca.pem)


@contextmanager
def fleet(address: str, extra_ca: str | None = None) -> Iterator[Fleet]:
    context = tls_context(card(address), extra_ca)
    with Fleet(address, key=KEY, context=context) as made:
        yield made


def fault(address: str) -> ConnectionFailed:
    with fleet(address) as made, pytest.raises(ConnectionFailed) as caught:
        made.activate()
    assert "\n" not in str(caught.value)
    return caught.value


@dataclass
class Tunnel:
    """A proxy that passes bytes on, as most do."""

    place: str
    asked: list[str]


@contextmanager
def tunnel() -> Iterator[Tunnel]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline().decode().strip()
            made.asked.append(line.rpartition(" ")[0])
            while self.rfile.readline().strip():
                pass
            host, _, port = line.split()[1].rpartition(":")
            with socket.create_connection((host, int(port))) as beyond:
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pass_on, args=(beyond, self.connection))
                back.start()
                pass_on(self.connection, beyond)
                back.join()

    def pass_on(here: socket.socket, there: socket.socket) -> None:
        with suppress(OSError):  # either end may hang up first
            while content := here.recv(4096):
                there.sendall(content)
            there.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        made = Tunnel(f"127.0.0.1:{server.server_address[1]}", [])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        server.shutdown()
        thread.join()


Context = Callable[[Path], ssl.SSLContext | None]


@pytest.mark.parametrize(
    ("context", "told"),
    [
        (lambda f: server_context(authority("a proxy"), f), "not from the certificate authority"),
        (lambda f: server_context(CA, f, names=("elsewhere.example",)), "another server name"),
        (lambda f: server_context(CA, f, life=-timedelta(days=1)), "has expired"),
        (lambda f: None, "answers without TLS"),
    ],
    ids=["wrong CA", "wrong name", "expired", "plain HTTP"],
)
def test_what_does_not_prove_to_be_the_coordinator(
    tmp_path: Path, context: Context, told: str
) -> None:
    with answering(Saying(), context(tmp_path)) as address:
        found = fault(address)
    assert isinstance(found, Untrusted)
    assert told in str(found)
    assert found.exit_code == 2


UNKNOWN_KEY = json.dumps({"code": 2004, "detail": "Failed to activate SuperNode."}).encode()


@pytest.mark.parametrize(
    ("saying", "kind", "told"),
    [
        (Saying(401, date=time.time() + 3600), NotAdmitted, "s behind of the coordinator's"),
        (Saying(401, date=time.time() - 60), NotAdmitted, "s ahead of the coordinator's"),
        (Saying(401), NotAdmitted, "is site.card enrolled there?"),
        (Saying(412, UNKNOWN_KEY), NotAdmitted, "is site.card enrolled there?"),
        (Saying(404), Untrusted, "not a coordinator"),
        (Saying(200, b"<html>blocked by policy</html>"), Untrusted, "not a coordinator's"),
        (Saying(503), Unreachable, "HTTP 503"),
    ],
)
def test_what_a_coordinator_may_answer(
    tmp_path: Path, saying: Saying, kind: type[ConnectionFailed], told: str
) -> None:
    with answering(saying, server_context(CA, tmp_path)) as address:
        found = fault(address)
    assert type(found) is kind
    assert told in str(found)


def test_nobody_there_and_no_such_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    found = fault(address)
    assert isinstance(found, Unreachable)
    assert "connection refused" in str(found)
    away = OSError(errno.EHOSTUNREACH, "No route to host")
    assert "is this machine's network up?" in str(fault_of(away, "10.0.0.1:1"))
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert "no such name in DNS" in str(fault_of(unknown, "nowhere.example:1"))


def test_a_proxy_s_authority_may_be_trusted_besides(tmp_path: Path) -> None:
    proxy = authority("a proxy")
    extra = tmp_path / "proxy.pem"
    extra.write_text(proxy.pem)
    saying = Saying(404)
    with answering(saying, server_context(proxy, tmp_path)) as address:
        assert isinstance(fault(address), Untrusted)
        assert saying.asked == []
        with fleet(address, str(extra)) as made, pytest.raises(Untrusted, match="404"):
            made.activate()
    with pytest.raises(BadConfig, match=r"connection.extra_ca: got /nowhere"):
        tls_context(card("a:1"), "/nowhere")


def test_a_proxy_of_the_environment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # discard: nobody listens
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(Saying(404), server_context(CA, tmp_path)) as address:
        assert isinstance(fault(address), Unreachable)  # it did not go past the proxy
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert isinstance(fault(address), Untrusted)


def test_a_proxy_is_gone_through_as_it_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(Saying(404), server_context(CA, tmp_path)) as address, tunnel() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.place}")
        with fleet(address) as made, pytest.raises(Untrusted, match="404"):
            made.activate()
        assert ask_health(address, tls_context(card(address), None))["date"]
        assert proxy.asked == [f"CONNECT {address}"] * 2


def test_clocks_are_compared_by_the_date_of_an_answer() -> None:
    now = 1_000_000_000.0
    date = "Sun, 09 Sep 2001 01:46:40 GMT"  # the same moment
    assert clock_skew(date, now=now + 7) == 7
    assert clock_skew("no date", now=now) is None
    assert not_in_time(None, now=now) is None
    assert not_in_time(date, now=now + 5) is None
    assert not_in_time(date, now=now - 300) is None
    assert "6 s ahead" in str(not_in_time(date, now=now + 6))
    assert "301 s behind" in str(not_in_time(date, now=now - 301))
