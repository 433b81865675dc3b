"""A hospital's own commands: facts on stdout, one clear line on stderr, the exit codes."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.http_server import Saying, answering
from federation.hospital import make_hospital
from medsynth_client.cli import main
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard
from small_patients import write_patient

SECONDS = 120.0
KEY = SigningKey.generate().public.text


def card(address: str) -> CoordinatorCard:
    return CoordinatorCard(federation="f", address=address, signing_key=KEY)


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["medsynth-client", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    told = capsys.readouterr()
    code = caught.value.code or 0
    assert isinstance(code, int)
    return code, told.out, told.err


def test_from_cards_to_a_checked_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("p1", "p2")):
        write_patient(tmp_path / "data" / name, seed=seed)
    card("127.0.0.1:9").write(tmp_path / "coordinator.card")
    site = tmp_path / "site"
    words: list[str | Path] = [
        "init",
        site,
        "--name",
        "site-a",
        "--coordinator",
        tmp_path / "coordinator.card",
    ]
    words += ["--data", tmp_path / "data", "--declared-patients", "2"]
    code, out, _ = command(monkeypatch, capsys, *words, "--format", "json")
    assert code == 0
    assert json.loads(out)["declared_patients"] == 2
    code, _, err = command(monkeypatch, capsys, *words)
    assert code == 4
    assert "something there already" in err

    code, out, _ = command(monkeypatch, capsys, "check", site)
    assert code == 0
    assert "2 patients at 1 site" in out
    (tmp_path / "data" / "p1" / "p1_t1.nii.gz").unlink()
    code, out, _ = command(monkeypatch, capsys, "check", site)
    assert code == 4
    assert "p1: t1" in out
    code, out, _ = command(monkeypatch, capsys, "check", site, "--format", "json")
    assert code == 4
    assert "p1: t1" in json.dumps(json.loads(out))

    code, out, _ = command(monkeypatch, capsys, "status", site, "--format", "json")
    assert code == 0
    assert json.loads(out)["phase"] == "stopped"


def test_doctor_ends_with_the_code_of_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medsynth_client.doctor.cannot_isolate", lambda: "not allowed")
    with answering(Saying()) as address:
        site = make_hospital(tmp_path / "site", name="site-a", card=card(address)).folder
        code, out, _ = command(monkeypatch, capsys, "doctor", site, "--format", "json")
        verdicts = {one["name"]: one["verdict"] for one in json.loads(out)}
        assert (code, verdicts["tls"], verdicts["isolation"]) == (2, "bad", "warning")
    (site / "site.toml").unlink()
    code, out, _ = command(monkeypatch, capsys, "doctor", site)
    assert code == 4
    assert "bad site.toml" in out


@pytest.fixture
def _own_process() -> Iterator[None]:
    logger = logging.getLogger("medsynth_client")
    before = logger.handlers[:], logger.propagate, logger.level
    handler_before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler_before)
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


@pytest.mark.usefixtures("_own_process")
def test_a_node_that_nobody_answers_gives_up_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    site = make_hospital(tmp_path / "site", name="site-a", card=card(address)).folder
    code, out, err = command(monkeypatch, capsys, "node", site, "--socket", tmp_path / "none.sock")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (2, "")
    assert len(errors) == 1
    assert "connection refused" in errors[0]
    assert err.count("trying again in") == 2


@pytest.mark.slow
def test_run_ends_as_its_node_does(tmp_path: Path) -> None:
    with answering(Saying()) as address:
        site = make_hospital(tmp_path / "site", name="site-a", card=card(address)).folder
        ended = subprocess.run(
            [sys.executable, "-m", "medsynth_client", "run", str(site)],
            capture_output=True,
            text=True,
            check=False,
            env=dict(os.environ),
            timeout=SECONDS,
        )
    assert ended.returncode == 2
    assert [line for line in ended.stderr.splitlines() if line.startswith("error")] == [
        f"error: {address}: answers without TLS, wanted https (is this the coordinator's port? "
        "does a proxy stand between?)"
    ]
    assert "Traceback" not in ended.stderr


def test_help_waits_for_nothing_heavy() -> None:
    script = (
        "import sys, medsynth_client.cli\n"
        "heavy = {'torch', 'monai', 'flwr', 'grpc', 'numpy', 'opacus', 'httpx', 'cryptography'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"
