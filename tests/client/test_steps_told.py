"""Which step a round is at: for the hospital's eyes, and never the end of a round."""

import errno
import math
from typing import Any

import pytest
import torch

from medsynth_client import status_file
from medsynth_client.audit import AuditLog
from medsynth_client.site import Site
from medsynth_client.status_command import site_status, status_text
from medsynth_client.status_file import StatusFile, forget_step, read_status
from medsynth_common.plan import Stage
from tiny import NewSite, gaussian, plan

CPU = torch.device("cpu")
ASKED = plan(Stage.SEGMENT, mechanisms=(gaussian("segmenter"),))


def test_the_site_alone_is_told_which_step_it_is_at(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_site()
    site = Site(folder, device=CPU)
    monkeypatch.setattr(status_file, "_STEP_SECONDS", math.inf)
    site.carry(ASKED)
    assert read_status(folder) == {}  # so short a round leaves the disk alone

    monkeypatch.setattr(status_file, "_STEP_SECONDS", -1.0)
    shown: list[str] = []
    begin = StatusFile.begin

    def watched(self: StatusFile, **fields: Any) -> None:
        begin(self, **fields)
        shown.append(status_text(site_status(folder) | {"running": True}))

    monkeypatch.setattr(StatusFile, "begin", watched)
    two = (gaussian("segmenter", steps=2),)
    site.carry(plan(Stage.SEGMENT, round=2, mechanisms=two))
    first, second, after = shown
    assert "at work: segmenter, step 1 of 2" in first
    assert "at work: segmenter, step 2 of 2" in second
    assert "at work" not in after


def test_a_step_that_cannot_be_told_ends_no_round(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(status_file, "_STEP_SECONDS", -1.0)
    monkeypatch.setattr(status_file, "write_json", full)
    folder = new_site()
    Site(folder, device=CPU).carry(ASKED)
    [event] = AuditLog(folder / "audit.jsonl").read()
    assert event.outcome == "released"
    assert "the step could not be told: OSError" in caplog.text


def test_what_a_killed_trainer_was_at_is_forgotten(new_site: NewSite) -> None:
    folder = new_site()
    StatusFile(folder, "step").begin(of="segmenter", step=3, steps=9)
    assert "step 3 of 9" in status_text(site_status(folder) | {"running": True})
    forget_step(folder)
    assert "step" not in read_status(folder)["step"]
