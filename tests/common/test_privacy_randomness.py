import copy
import math
import os
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from medsynth_common.privacy.randomness import Randomness, SimulatedRandomness, SystemRandomness


@pytest.mark.parametrize("count", [1, 127, 128, 32_768, 200_001])
def test_normals_have_the_shape_and_type_asked_for(count: int) -> None:
    drawn = SystemRandomness().normal((count,), 2.0)
    assert drawn.shape == (count,)
    assert drawn.dtype == torch.float64
    assert bool(drawn.isfinite().all())
    assert SystemRandomness().normal((), 1.0).shape == ()
    assert SystemRandomness().normal((2, 0, 3), 1.0).shape == (2, 0, 3)


def test_normals_are_normal() -> None:
    drawn = SimulatedRandomness("normal", 1).normal((400_000,), 1.0).numpy()
    assert abs(drawn.mean()) < 0.008  # five standard errors
    assert abs(drawn.var() - 1) < 0.012
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    # Sine and cosine of one pair, and neighbours, are unrelated.
    assert abs(np.corrcoef(drawn[:16_384], drawn[16_384:32_768])[0, 1]) < 0.04
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.008
    assert 4.2 < np.abs(drawn).max() < 6.5


class _OfWords(SimulatedRandomness):
    """A stream that begins with these words, and goes on with zeros."""

    def __init__(self, words: Sequence[int]) -> None:
        super().__init__()
        self._begin = np.array(words, dtype="<u8").tobytes()

    def _key_stream(self, length: int) -> bytearray:
        return bytearray(self._begin.ljust(length + 16, b"\0"))


def test_normals_are_the_box_muller_transform_of_the_streams_words() -> None:
    pairs = 64  # of the shortest block: first its radii, then its angles
    radii = [0, 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 5, 2**64 - 1]
    angles = [0, 1, 2**61, 2**62, 2**63 - 1, 2**63, 3 * 2**62, 2**64 - 1]
    words = [word for word in radii for _ in angles] + angles * len(radii)
    drawn = _OfWords(words).normal((2 * pairs,), 2.0).numpy()
    for pair, (radius, angle) in enumerate(zip(words[:pairs], words[pairs:], strict=True)):
        length = 2 * math.sqrt(-2 * math.log((radius % 2**63 + 0.5) / 2**63))
        turn = 2 * math.pi * (angle / 2**64)
        expected = length * math.cos(turn), length * math.sin(turn)
        assert drawn[[pair, pair + pairs]] == pytest.approx(expected, rel=1e-13, abs=1e-13)
    assert np.abs(drawn).max() == pytest.approx(2 * 9.419, abs=1e-3)  # where the tail ends


def test_uniforms_are_uniform() -> None:
    drawn = SimulatedRandomness("uniform").uniform(400_000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3


def test_a_scale_is_a_factor() -> None:
    unit = SimulatedRandomness(5).normal((100,), 1.0)
    torch.testing.assert_close(SimulatedRandomness(5).normal((100,), 3.0), 3 * unit)
    assert not SimulatedRandomness(5).normal((100,), 0.0).any()


def test_simulated_streams_repeat_and_differ_by_their_material() -> None:
    def first(*material: str | int) -> list[float]:
        return list(SimulatedRandomness(*material).uniform(4))

    assert first("site-a", 1) == first("site-a", 1)
    streams = [first("site-a", 1), first("site-a", "1"), first("site-a1"), first(), first(1)]
    assert len({tuple(stream) for stream in streams}) == len(streams)


def test_draws_of_one_stream_differ() -> None:
    stream = SimulatedRandomness("a")
    assert not np.array_equal(stream.uniform(8), stream.uniform(8))


def test_system_streams_never_repeat() -> None:
    assert not np.array_equal(SystemRandomness().uniform(8), SystemRandomness().uniform(8))


@pytest.mark.parametrize(
    ("randomness", "seeded"), [(SystemRandomness(), False), (SimulatedRandomness("secret"), True)]
)
def test_a_source_says_whether_it_is_seeded_and_keeps_its_key(
    randomness: Randomness, seeded: bool
) -> None:
    assert randomness.seeded is seeded
    assert "secret" not in repr(randomness)
    keys = [value for value in vars(randomness).values() if isinstance(value, bytes | str | list)]
    assert keys == []
    for store in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be copied or stored"):
            store(randomness)


def test_another_process_takes_a_new_key(monkeypatch: pytest.MonkeyPatch) -> None:
    randomness = SystemRandomness()
    cipher = vars(randomness)["_cipher"]
    randomness.uniform(1)
    assert vars(randomness)["_cipher"] is cipher
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as a forked child would see
    randomness.uniform(1)
    assert vars(randomness)["_cipher"] is not cipher
