"""The bench of many sites counts each row's memory by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import memory, results
from benchmarks.speed import growth

pytestmark = pytest.mark.skipif(not memory.RESETS, reason="only Linux tells")
MIB = 2**20


def test_a_peak_is_counted_anew() -> None:
    torch.zeros(200 * MIB, dtype=torch.uint8)  # held, and freed at once
    before = memory.count_anew()
    assert memory.peak() - before < 20 * MIB
    torch.ones(60 * MIB, dtype=torch.uint8)
    assert 55 * MIB < memory.peak() - before < 90 * MIB


def test_a_thousand_sites_are_compared_with_a_hundred_like_with_like(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[str, Any] = {}

    def rounds(config: Any, folder: Path, mechanism: object, *, workers: int) -> list[float]:
        held = 120 if config.federation.sites == growth.SITES[1] else 40
        torch.ones(held * MIB, dtype=torch.uint8)
        return [1.0]

    monkeypatch.setattr(growth, "rounds_of", rounds)
    monkeypatch.setattr(results, "record", lambda name, **found: told.update(found))
    growth.thousand_sites()
    few, many = told["rows"]
    assert (few["sites"], many["sites"]) == (128, 1000)
    assert few[growth._PEAK] == pytest.approx(120, abs=30)
    assert many[growth._PEAK] == pytest.approx(40, abs=30)  # not what is left of the few's
    [goal] = told["goals"]
    whole = [row[growth._BEFORE] + row[growth._PEAK] for row in (few, many)]
    assert goal.figure == pytest.approx(whole[1] / whole[0])
