"""What a coordinator learns beside a release: receipts, refusals, time and memory.

None of it has noise, so none of it may depend on who the patients are.
"""

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomli_w
import torch
from torch import Tensor

from medsynth_client.critics import patchgan
from medsynth_client.keeping import Keeping
from medsynth_client.ledger import Ledger
from medsynth_client.order import Order
from medsynth_client.retention import STATE
from medsynth_client.site import Site
from medsynth_client.spending import epsilon_of
from medsynth_client.stages import adversarial as adversarial_file
from medsynth_client.stages import segment
from medsynth_client.stages.adversarial import train_generator
from medsynth_client.stages.segment import train_segmenter
from medsynth_common.errors import BudgetExhausted, PolicyRefusal
from medsynth_common.learning.volumes import Volume
from medsynth_common.plan import Critic, RoundPlan, SegmentSettings, Stage
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.parts import update_tensors
from tiny import (
    PATIENTS,
    NewSite,
    Quiet,
    adversarial,
    gaussian,
    plan,
    volumes,
)

CPU = torch.device("cpu")


def segment_plan(**changes: Any) -> RoundPlan:
    return plan(Stage.SEGMENT, mechanisms=(gaussian("segmenter"),), **changes)


def critic_plan(critic: Critic, **changes: Any) -> RoundPlan:
    settings = adversarial(critic=critic)
    mechanisms = (gaussian("critic"),)
    return plan(Stage.ADVERSARIAL, mechanisms=mechanisms, settings=settings, **changes)


def same(first: SiteUpdate, second: SiteUpdate) -> bool:
    one, two = update_tensors(first), update_tensors(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("critic", Critic)
def test_one_run_s_memory_is_not_used_in_another(new_site: NewSite, critic: Critic) -> None:
    used, fresh = new_site("used"), new_site("fresh")
    Site(used, device=CPU).carry(critic_plan(critic, site="used"))
    second = critic_plan(critic, run="run-2", site="fresh")
    wanted = Site(fresh, device=CPU).carry(second)
    # The seed's noise is of a site's name: both go by one.
    renamed = used / "site.toml"
    renamed.write_text(renamed.read_text().replace('"used"', '"fresh"'))
    assert same(Site(used, device=CPU).carry(second), wanted)


@pytest.mark.parametrize("critic", Critic)
def test_a_run_of_other_networks_does_not_die_of_an_earlier_one(
    new_site: NewSite, critic: Critic
) -> None:
    """What is kept of run 1 would not fit: the charge would stand and nothing would leave."""
    folder = new_site()
    site = Site(folder, device=CPU)
    digest = site.carry(critic_plan(critic)).header.plan_digest
    memory = Keeping(folder / STATE)
    kept = memory.load("run-1", digest)
    memory.store(replace(kept, state={k: torch.zeros(2, 3) for k in kept.state}))
    site.carry(critic_plan(critic, run="run-2"))


@pytest.mark.parametrize("critic", Critic)
def test_runs_that_take_turns_keep_their_critics_and_their_answers(
    new_site: NewSite, critic: Critic
) -> None:
    busy, calm = new_site("busy"), new_site("calm")
    renamed = busy / "site.toml"
    renamed.write_text(renamed.read_text().replace('"busy"', '"calm"'))
    first, second = (critic_plan(critic, site="calm", round=round) for round in (1, 2))
    undisturbed = Site(calm, device=CPU)
    wanted = [undisturbed.carry(first), undisturbed.carry(second)]
    site = Site(busy, device=CPU)
    site.carry(first)
    site.carry(critic_plan(critic, site="calm", run="run-2"))
    spent = site._ledger.spent()
    assert same(site.carry(first), wanted[0])  # as if its answer had been lost on its way
    assert site._ledger.spent() == spent
    assert same(site.carry(second), wanted[1])


def test_what_a_run_cost_is_told_whoever_its_patients_are(new_site: NewSite) -> None:
    """Patients of an earlier run stay, or one of them leaves: the same epsilon goes up."""
    folder = new_site()
    site = Site(folder, device=CPU)
    first = site.carry(segment_plan())
    assert first.header.epsilon == site._ledger.spent()
    told = site.carry(segment_plan(run="run-2")).header.epsilon
    assert told == first.header.epsilon  # not the sum: what other runs cost is nobody's business

    newcomers = new_site("newcomers")
    file = newcomers / "site.toml"
    values = tomllib.loads(file.read_text())
    values["source"]["seed"] += PATIENTS
    file.write_text(tomli_w.dumps(values))
    alone = Site(newcomers, device=CPU).carry(segment_plan(run="run-2", site="newcomers"))
    assert alone.header.epsilon == told


def test_what_a_run_cost_counts_all_of_it_though_patients_change(tmp_path: Path) -> None:
    def opened() -> Ledger:
        return Ledger(tmp_path / "ledger.db", cap=8.0, delta=1e-5, epsilon=epsilon_of)

    def charge(ledger: Ledger, round: int) -> None:
        ledger.reserve(
            project="run",
            stage="segment",
            round=round,
            plan_digest="c" * 64,
            mechanism=gaussian("segmenter"),
        )

    told = []
    for cohorts in (("a", "b"), ("a", "b")), (("a", "b"), ("b",)), (("a",), ("b",)):
        for left in tmp_path.iterdir():
            left.unlink()
        ledger = opened()
        for round, cohort in enumerate(cohorts, start=1):
            ledger.register_dataset(cohort)
            charge(ledger, round)
        told.append(ledger.spent_on("run"))
        assert ledger.spent() <= told[-1]
        assert ledger.spent_on("another run") == 0
    assert told[0] == told[1] == told[2] > 0


def test_a_plan_that_costs_too_much_prepares_nobody(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many patients there are, the refusal takes as long."""
    folder = new_site(epsilon_cap=0.5)
    asked = segment_plan(grid=(24, 24, 32))
    site = Site(folder, device=CPU)
    loaded: list[object] = []
    monkeypatch.setattr(Site, "patients", lambda _, grid: loaded.append(grid))
    with pytest.raises(BudgetExhausted):
        site.carry(asked)
    assert loaded == []


def test_a_grid_on_which_little_is_left_of_a_patient_is_refused(new_site: NewSite) -> None:
    site = Site(new_site(), device=CPU)
    with pytest.raises(PolicyRefusal, match="minimum_side: got a grid with a side of 16"):
        site.carry(segment_plan(grid=(24, 24, 16)))


Work = Callable[[Order], object]
STEPS: dict[str, tuple[Work, ModuleType, RoundPlan]] = {
    "segment": (train_segmenter, segment, segment_plan()),
    "along directions": (
        train_segmenter,
        segment,
        segment_plan(settings=SegmentSettings(directions=4)),
    ),
    "patchgan": (train_generator, patchgan, critic_plan(Critic.PATCHGAN)),
    "paired": (
        train_generator,
        adversarial_file,
        plan(
            Stage.ADVERSARIAL,
            mechanisms=(gaussian("critic"), gaussian("paired")),
            settings=adversarial(paired_weight=1.0),
        ),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_memory_does_not_tell_how_many_are_sampled(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One patient's crops are cut after the gradient of the patient before."""
    work, module, asked = STEPS[name]
    here = volumes()
    seen: list[str] = []
    cut, grad = module.draw_crops, torch.autograd.grad

    def draw_crops(volume: Volume, **more: Any) -> tuple[Tensor, Tensor]:
        if any(volume is patient for patient in here):
            seen.append("crops")
        crops: tuple[Tensor, Tensor] = cut(volume, **more)
        return crops

    def gradient(*arguments: Any, **more: Any) -> Any:
        seen.append("gradient")
        return grad(*arguments, **more)

    monkeypatch.setattr(module, "draw_crops", draw_crops)
    monkeypatch.setattr(torch.autograd, "grad", gradient)
    work(
        Order(
            plan=asked.header,
            weights=asked.weights,
            patients=here,
            declared=PATIENTS,
            state={},
            randomness=Quiet(),
            device=CPU,
        )
    )
    assert seen.count("crops") == PATIENTS
    first = seen.index("crops")
    assert seen[first : first + 2 * PATIENTS] == ["crops", "gradient"] * PATIENTS
