"""The hospital's command line: facts on stdout, problems on stderr, the documented exit codes."""

import json
import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medsynth_client.cli import main
from medsynth_client.site import Site
from medsynth_common import __version__
from medsynth_common.errors import BudgetExhausted, PolicyRefusal
from medsynth_common.plan import Stage, canonical_json
from medsynth_common.wire.trainer_rpc import TrainerClient
from tiny import PATIENTS, SITE, NewSite, gaussian, plan, unprotected


@pytest.fixture
def folder(new_site: NewSite) -> Path:
    """A site that has answered two plans and refused one."""
    made = new_site()
    site = Site(made, device=torch.device("cpu"))
    site.carry(plan())
    site.carry(plan(Stage.SEGMENT))
    with pytest.raises(PolicyRefusal):
        site.carry(plan(round=2, mechanisms=(unprotected("spread"),)))
    return made


class Ended:
    """How a command ended."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code or 0, out, err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Command":
    return Command(monkeypatch, capsys)


class Command:
    """Runs `medsynth-client` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> Ended:
        self._monkeypatch.setattr("sys.argv", ["medsynth-client", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        told = self._capsys.readouterr()
        return Ended(caught.value.code, told.out, told.err)


def test_status_says_what_was_spent_with_delta_and_unit(command: Command, folder: Path) -> None:
    ended = command("privacy", "status", folder)
    assert ended.code == 0
    first, second, *table = ended.out.splitlines()
    assert first.startswith(f"{SITE}: epsilon ")
    assert first.endswith(" of 8 at delta 1e-05, unit: patient")
    assert second.endswith(f"; {PATIENTS} patients in 1 data set")
    lines = [line.split() for line in table if line.lstrip().startswith("run-1")]
    assert [line[1] for line in lines] == ["level", "segmenter", "together"]
    noise, rate, clip, steps, releases, epsilon = lines[0][2:]
    assert (noise, rate, clip, steps, releases) == ("5.000", "1", "1", "1", "1")
    assert float(epsilon) < float(lines[2][-1]) < float(epsilon) + float(lines[1][-1])


def test_status_as_json(command: Command, folder: Path, new_site: NewSite) -> None:
    other = new_site("site-b")
    ended = command("privacy", "status", folder, other, "--format", "json")
    spent, fresh = json.loads(ended.out)
    assert spent["site"] == SITE
    assert spent["unit"] == "patient"
    assert spent["epsilon"] + spent["left"] == pytest.approx(8.0)
    [project] = spent["projects"]
    assert [line["name"] for line in project["mechanisms"]] == ["level", "segmenter"]
    alone = [line["epsilon_alone"] for line in project["mechanisms"]]
    assert max(alone) < spent["epsilon"] < sum(alone)
    assert project["epsilon"] == spent["epsilon"] == spent["epsilon_ever"]
    assert (fresh["epsilon"], fresh["projects"]) == (0.0, [])
    assert not (other / "ledger.db").exists()  # asking begins nothing


def test_status_of_a_site_without_privacy(command: Command, new_site: NewSite) -> None:
    folder = new_site(allow_unprotected=True, epsilon_cap=float("inf"))
    Site(folder, device=torch.device("cpu")).carry(plan(mechanisms=(unprotected("level"),)))
    ended = command("privacy", "status", folder)
    assert "epsilon unbounded (no privacy) of none" in ended.out
    assert ended.out.rstrip().endswith(" -")
    [one] = json.loads(command("privacy", "status", folder, "--format", "json").out)
    assert (one["epsilon"], one["cap"], one["left"]) == (None, None, None)


# What a next plan would cost


def asked(folder: Path, **changes: Any) -> Path:
    """A plan's header as a file."""
    path = folder.parent / "next-plan.json"
    path.write_bytes(canonical_json(plan(Stage.SEGMENT, **changes).header))
    return path


def cost(command: Command, folder: Path, **changes: Any) -> dict[str, Any]:
    given = asked(folder, **changes)
    ended = command("privacy", "status", folder, "--plan", given, "--format", "json")
    assert ended.code == 0
    [one] = json.loads(ended.out)
    found: dict[str, Any] = one["plan"]
    return found


def test_a_plan_s_cost_is_what_carrying_it_out_costs(command: Command, folder: Path) -> None:
    told = cost(command, folder, round=2)
    assert (told["would_be_done"], told["fits_cap"], told["forbidden_by"]) == (True, True, [])
    before = json.loads(command("privacy", "status", folder, "--format", "json").out)[0]["epsilon"]
    Site(folder, device=torch.device("cpu")).carry(plan(Stage.SEGMENT, round=2))
    after = json.loads(command("privacy", "status", folder, "--format", "json").out)[0]["epsilon"]
    assert told["epsilon_after"] == after
    assert told["cost"] == after - before > 0


def test_what_forbids_a_plan_is_told_by_its_key(command: Command, folder: Path) -> None:
    told = cost(
        command,
        folder,
        round=2000,
        site="site-b",
        mechanisms=(gaussian("segmenter", noise_multiplier=0.1, steps=20_000),),
    )
    assert not told["would_be_done"]
    assert told["forbidden_by"] == [
        "maximum_rounds",
        "maximum_steps",
        "minimum_noise_multiplier",
        "site",
    ]
    text = command("privacy", "status", folder, "--plan", folder.parent / "next-plan.json").out
    assert "forbidden by maximum_rounds: got round 2000, wanted round 0 to 1000" in text
    assert "it would be refused" in text


def test_a_plan_past_the_cap_does_not_fit(command: Command, folder: Path) -> None:
    dear = (gaussian("segmenter", noise_multiplier=0.6, steps=50),)
    told = cost(command, folder, round=2, mechanisms=dear)
    assert (told["fits_cap"], told["forbidden_by"], told["would_be_done"]) == (False, [], False)
    assert told["epsilon_after"] > 8
    free = cost(command, folder, round=2, mechanisms=(unprotected("segmenter"),))
    assert (free["epsilon_after"], free["fits_cap"]) == (None, False)
    assert free["forbidden_by"] == ["allow_unprotected"]


def test_at_the_cap_no_plan_fits(command: Command, folder: Path) -> None:
    before = json.loads(command("privacy", "status", folder, "--format", "json").out)[0]["epsilon"]
    text = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(
        re.sub(
            "epsilon_cap = .*",
            f"epsilon_cap = {before!r}\nmaximum_noise_multiplier = 1e9",
            text,
            count=1,
        )
    )
    free = (gaussian("segmenter", noise_multiplier=1e9),)
    assert not cost(command, folder, round=2, mechanisms=free)["fits_cap"]
    with pytest.raises(BudgetExhausted):
        Site(folder, device=torch.device("cpu")).carry(
            plan(Stage.SEGMENT, round=2, mechanisms=free)
        )


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff"])
def test_what_is_no_plan_is_bad_input(command: Command, folder: Path, content: bytes) -> None:
    given = folder.parent / "next-plan.json"
    given.write_bytes(content)
    ended = command("privacy", "status", folder, "--plan", given)
    assert (ended.code, ended.out) == (4, "")
    assert "next-plan.json" in ended.err
    given.unlink()
    assert command("privacy", "status", folder, "--plan", given).code == 4


def test_evidence_is_written_and_said_where(command: Command, folder: Path) -> None:
    ended = command("evidence", folder)
    assert (ended.code, ended.out) == (0, f"{folder / 'evidence.html'}\n")
    out = folder.parent / "pack.html"
    told = json.loads(command("evidence", folder, "--out", out, "--format", "json").out)
    assert told == {"page": str(out), "data": str(out.with_suffix(".json")), "sound": True}
    assert "This was a rehearsal" in out.read_text()  # its site file has a seed
    out.write_text("a thesis")
    ended = command("evidence", folder, "--out", out)
    assert (ended.code, out.read_text()) == (4, "a thesis")
    (folder / "ledger.db.key").chmod(0o644)
    assert command("evidence", folder).code == 1


def test_tidying_says_what_went(command: Command, folder: Path) -> None:
    assert command("privacy", "tidy", folder).out == "nothing to remove\n"
    os.utime(folder / "state" / "run-1.safetensors", (0, 0))
    told = json.loads(command("privacy", "tidy", folder, "--format", "json").out)
    assert told == {"removed": ["state/run-1.safetensors"]}


def test_a_sound_record_is_called_sound(command: Command, folder: Path) -> None:
    ledger, audit = command("privacy", "verify", folder), command("audit", "verify", folder)
    assert ledger.code == 0
    first, second = ledger.out.splitlines()
    assert first.startswith("the record is sound: 6 ledger rows and 3 audit lines")
    assert "by dp-accounting (PLD): they agree" in second
    assert (audit.code, audit.out) == (0, "the audit log is sound\n")


def test_a_tampered_ledger_is_found(command: Command, folder: Path) -> None:
    head = folder / "ledger.db.head"
    head.write_text(head.read_text().replace('"count":', '"count":1'))
    ended = command("privacy", "verify", folder)
    assert ended.code == 1
    assert ended.out == ""
    assert "ledger.db" in ended.err
    facts = json.loads(command("privacy", "verify", folder, "--format", "json").out)
    assert (facts["sound"], facts["epsilon"]) == (False, None)


def test_a_readable_key_is_found(command: Command, folder: Path) -> None:
    (folder / "ledger.db.key").chmod(0o644)
    ended = command("privacy", "verify", folder)
    assert ended.code == 1
    assert "chmod 600" in ended.err


def test_a_tampered_audit_log_is_found(command: Command, folder: Path) -> None:
    log = folder / "audit.jsonl"
    log.write_text(log.read_text().replace('"released"', '"refused"', 1))
    ended = command("audit", "verify", folder)
    assert ended.code == 1
    assert "audit.jsonl line 1" in ended.err
    assert command("audit", "show", folder).code == 4


def test_what_left_is_shown(command: Command, folder: Path) -> None:
    lines = command("audit", "show", folder).out.splitlines()
    assert len(lines) == 3
    assert "released run-1 moments round 1: " in lines[0]
    assert " bytes, SHA-256 " in lines[1]
    assert lines[2].endswith("refused run-1 moments round 2: PolicyRefusal")
    shown = [
        json.loads(line)
        for line in command("audit", "show", folder, "--format", "json").out.splitlines()
    ]
    assert [event["outcome"] for event in shown] == ["released", "released", "refused"]


@pytest.mark.parametrize(
    "words",
    [
        ["privacy", "status"],
        ["privacy", "verify"],
        ["privacy", "tidy"],
        ["audit", "show"],
        ["audit", "verify"],
        ["evidence"],
        ["trainer", "--socket", "s", "--site"],
    ],
)
def test_a_folder_that_is_no_site_is_told_and_not_made(
    command: Command, tmp_path: Path, words: list[str]
) -> None:
    ended = command(*words, tmp_path / "mistyped")
    assert ended.code == 4
    assert "site.toml: got FileNotFoundError, wanted a readable TOML file" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["privacy", "status"],
        ["audit", "show", ".", "--format", "xml"],
        ["trainer", "--site", "a", "--socket", "b", "--threads", "0"],
        ["trainer", "--site", "a"],
    ],
)
def test_wrong_usage_is_bad_input(command: Command, words: list[str]) -> None:
    assert command(*words).code == 4


def test_help_and_version(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("--version").out == f"medsynth-client {__version__}\n"
    assert "--watch-parent" in command("trainer", "--help").out
    assert "A site's folder." in command("evidence", "--help").out  # an argument's, too
    monkeypatch.setattr("sys.argv", ["medsynth-client", "--version"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("medsynth_client", run_name="__main__")
    assert not caught.value.code


@pytest.fixture
def _as_before() -> Iterator[None]:
    """The trainer sets how its process computes; these tests share one."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_as_before")
def test_the_trainer_command_serves_its_sites(
    command: Command, new_site: NewSite, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def parent() -> bytes:
        """The end of standard input, which the trainer waits for."""
        caller = TrainerClient(socket)
        found.extend(caller.describe(timeout=60).sites)
        caller.close()
        return b""

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=SimpleNamespace(read=parent)))
    sites = [new_site(), new_site("site-b")]
    both = [word for site in sites for word in ("--site", site)]
    ended = command("trainer", *both, "--socket", socket, "--device", "cpu", "--watch-parent")
    assert ended.code == 0
    assert found == [SITE, "site-b"]
