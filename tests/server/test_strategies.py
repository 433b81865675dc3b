"""Every strategy against its own definition, written out in float64."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsynth_common.plan import Stage
from medsynth_common.tensors import under, with_prefix
from medsynth_common.update import SiteUpdate, UpdateHeader
from medsynth_server.checkpoint import Checkpoint, Done
from medsynth_server.flower import start_identity
from medsynth_server.strategies import STRATEGIES, Answer, Combiner
from tiny_run import public_model, same_tensors

SIZES = (10, 20, 70, 40, 60)
SHAPES = {"segmenter.a": (2, 3), "segmenter.b": (4,)}


@pytest.fixture(autouse=True)
def _identity() -> None:
    start_identity(run_id=1)


def _weights(rng: np.random.Generator) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        for name, shape in SHAPES.items()
    }


def _answers(weights: Sequence[Mapping[str, Tensor]], sizes: Sequence[int] = SIZES) -> list[Answer]:
    answers = []
    for index, (tensors, size) in enumerate(zip(weights, sizes, strict=False)):
        header = UpdateHeader(
            run="r",
            site=f"site-{index}",
            stage=Stage.SEGMENT,
            round=1,
            plan_digest="0" * 64,
            declared_patients=size,
            delta=1e-3,
        )
        update = SiteUpdate(header=header, weights=tensors, own={})
        answers.append(Answer(update=update))
    return answers


def _stacked(weights: Sequence[Mapping[str, Tensor]], name: str) -> NDArray[np.float64]:
    return np.stack([one[name].numpy().astype(np.float64) for one in weights])


def _combine(
    name: str, current: Mapping[str, Tensor], weights: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    combined, _ = Combiner(name).combine(current, _answers(weights), round=1, memory={})
    return combined


def _mean(stacked: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.average(stacked, axis=0, weights=SIZES[: len(stacked)]))


def _median(stacked: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.median(stacked, axis=0))


def _trimmed(stacked: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sort(stacked, axis=0)[1:-1].mean(axis=0))  # a fifth of five, each end


def _nearest_to_its_neighbours(stacked: NDArray[np.float64]) -> NDArray[np.float64]:
    """Krum for one liar (Blanchard et al. 2017): the update nearest its n - 1 - 2 neighbours."""
    flat = stacked.reshape(len(stacked), -1)
    distances = ((flat[:, None] - flat[None]) ** 2).sum(-1)
    scores = np.sort(distances, axis=1)[:, 1 : len(flat) - 2].sum(axis=1)
    return np.asarray(stacked[scores.argmin()])


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("fedavg", _mean),
        ("fedprox", _mean),
        ("median", _median),
        ("trimmed-mean", _trimmed),
    ],
)
def test_a_strategy_is_its_definition(name: str, definition: object) -> None:
    assert callable(definition)
    rng = np.random.default_rng(1)
    current, weights = _weights(rng), [_weights(rng) for _ in SIZES]
    combined = _combine(name, current, weights)
    assert combined.keys() == current.keys()
    for tensor in current:
        wanted = definition(_stacked(weights, tensor))
        np.testing.assert_allclose(combined[tensor].numpy(), wanted, rtol=1e-5, atol=1e-6)
        assert combined[tensor].dtype == current[tensor].dtype


def test_krum_takes_the_update_nearest_to_the_others_whole() -> None:
    rng = np.random.default_rng(2)
    current, weights = _weights(rng), [_weights(rng) for _ in SIZES]
    flat = np.stack([np.concatenate([one[k].numpy().ravel() for k in SHAPES]) for one in weights])
    wanted = _nearest_to_its_neighbours(flat.astype(np.float64))
    combined = _combine("krum", current, weights)
    found = np.concatenate([combined[k].numpy().ravel() for k in SHAPES])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def _adam(
    x: NDArray[np.float64], averages: Sequence[NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """FedAdam (Reddi et al. 2021) with eta 1e-2, betas 0.9 and 0.99, tau 1e-3."""
    m, v, found = np.zeros_like(x), np.zeros_like(x), []
    for number, average in enumerate(averages, start=1):
        delta = average - x
        m = 0.9 * m + 0.1 * delta
        v = 0.99 * v + 0.01 * delta**2
        rate = 1e-2 * np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))
        x = x + rate * m / (np.sqrt(v) + 1e-3)
        found.append(x)
    return found


def test_fedadam_is_its_definition_over_rounds() -> None:
    rng = np.random.default_rng(3)
    start = _weights(rng)
    rounds = [[_weights(rng) for _ in range(3)] for _ in range(3)]
    combiner, current = Combiner("fedadam"), start
    memory: dict[str, Tensor] = {}
    found = []
    for number, weights in enumerate(rounds, start=1):
        current, memory = combiner.combine(current, _answers(weights), round=number, memory=memory)
        found.append(current)
    for name in SHAPES:
        averages = [_mean(_stacked(weights, name)) for weights in rounds]
        wanted = _adam(start[name].numpy().astype(np.float64), averages)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one[name].numpy(), other, rtol=1e-4, atol=1e-6)
        assert found[0][name].dtype == torch.float32


def test_fedadam_resumed_from_a_checkpoint_goes_on_as_if_uninterrupted(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    start = _weights(rng)
    rounds = [[_weights(rng) for _ in range(2)] for _ in range(4)]

    def train(resumed_after: int | None) -> dict[str, Tensor]:
        combiner, current = Combiner("fedadam"), dict(start)
        memory: dict[str, Tensor] = {}
        for number, weights in enumerate(rounds, start=1):
            current, memory = combiner.combine(
                current, _answers(weights), round=number, memory=memory
            )
            if number == resumed_after:
                model = public_model().updated({**current, **with_prefix("strategy.s", memory)})
                checkpoint = Checkpoint(tmp_path / "c.safetensors")
                checkpoint.store(model, Done())
                stored, _ = checkpoint.load(public_model())
                memory = under("strategy.s", stored.tensors)
                current = {name: stored.tensors[name] for name in SHAPES}
                combiner = Combiner("fedadam")
        return current

    assert same_tensors(train(resumed_after=2), train(resumed_after=None))


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum"])
def test_robust_strategies_survive_one_hostile_update(name: str) -> None:
    rng = np.random.default_rng(5)
    honest = [{k: 1 + 0.01 * t for k, t in _weights(rng).items()} for _ in range(4)]
    hostile = {k: torch.full(shape, -9e3) for k, shape in SHAPES.items()}
    combined = _combine(name, honest[0], [*honest, hostile])
    plain = _combine("fedavg", honest[0], [*honest, hostile])
    for tensor in SHAPES:
        assert (combined[tensor] - 1).abs().max() < 0.1
        assert (plain[tensor] - 1).abs().max() > 1000  # what the others are for


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("sites", [1, 2])
def test_every_strategy_takes_a_round_that_few_sites_answered(name: str, sites: int) -> None:
    rng = np.random.default_rng(6)
    current = _weights(rng)
    weights = [_weights(rng) for _ in range(sites)]
    combined = _combine(name, current, weights)
    assert {k: t.shape for k, t in combined.items()} == {k: t.shape for k, t in current.items()}
    assert all(bool(torch.isfinite(t).all()) for t in combined.values())


def test_only_fedadam_keeps_a_memory() -> None:
    rng = np.random.default_rng(7)
    for name in STRATEGIES:
        _, memory = Combiner(name).combine(
            _weights(rng), _answers([_weights(rng), _weights(rng)]), round=1, memory={}
        )
        slots = {slot.partition(".")[0] for slot in memory}
        assert slots == ({"m_t", "v_t"} if name == "fedadam" else set())
