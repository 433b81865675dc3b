"""Private steps along a few public directions: noise for as many numbers, not for every weight."""

import math
from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor

from medsynth_common.learning.directions import Directions
from medsynth_common.privacy.mechanism import Gaussian, Unprotected
from medsynth_common.privacy.patients import Loss, loss_gradient, release_mean
from medsynth_common.privacy.randomness import Randomness

#: Noise of this length, in usual gradients, did no harm; along directions that matter, more did.
_LOUD: Final = 0.7


class GuidedOptimizer:
    """Steps parameters by the released mean of the patients' coordinates along `directions`.

    One step is one release of `mechanism`, as with `PatientOptimizer`; what is clipped are the
    coordinates. Whoever chose the directions, and however: a patient adds at most the clip.

    Args:
        parameters: what moves; in the order that the directions were found in.
        directions: they hold no more of the patients than what has been released of them.
        mechanism: its clip is in units of a public gradient's usual length.
        expected_patients: sampling rate times the declared number of patients.
        randomness: where the noise comes from.
        learning_rate: a step is about as long as one of Adam's at this rate; shorter where noise
            is loud, by the square of how loud, as its variance grows.
        sites: whose steps are averaged, which leaves less noise.
        proximal: FedProx' pull back to where the parameters were (Li et al. 2020): it depends on
            weights alone, so it needs no noise. Taken implicitly: however strong, it ends there.
        bfloat16: of `loss_gradient`.

    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        directions: Directions,
        mechanism: Gaussian | Unprotected,
        *,
        expected_patients: float,
        randomness: Randomness,
        learning_rate: float,
        sites: int = 1,
        proximal: float = 0.0,
        bfloat16: bool = False,
    ) -> None:
        self._parameters, self._directions = parameters, directions
        self._mechanism, self._expected = mechanism, expected_patients
        self._randomness, self._bfloat16 = randomness, bfloat16
        count = directions.reach.numel()
        noise = mechanism.noise_std / expected_patients * math.sqrt(count)
        chance = math.sqrt((1 - mechanism.sampling_rate) / expected_patients)  # who was sampled
        loudness = math.hypot(noise, chance) / math.sqrt(sites) / _LOUD if noise else 0.0
        self._rate = learning_rate / max(1.0, loudness) ** 2
        self._proximal = proximal
        self._start = [parameter.detach().clone() for parameter in parameters]
        self._gone = torch.zeros_like(directions.reach)  # along each direction, from there

    def step(self, patient_losses: Iterable[Loss], *, stand_in: Loss | None = None) -> None:
        """Take one step on the sampled patients; with none, on noise alone.

        Args:
            patient_losses: for each sampled patient, computes the mean loss over its crops. A
                patient whose gradient is not finite adds nothing.
            stand_in: of nobody, where nobody was sampled; see `PatientOptimizer.step`.

        """
        mean = release_mean(
            (self._coordinates(loss) for loss in patient_losses),
            self._mechanism,
            expected_patients=self._expected,
            randomness=self._randomness,
            shape=self._directions.reach.shape,
            stand_in=None if stand_in is None else lambda: self._coordinates(stand_in),
        )
        pull = self._proximal * self._rate * self._directions.rates
        self._gone = (self._gone - self._rate * self._directions.step(mean)) / (1 + pull)
        moved = self._directions.weights(self._gone)
        sizes = [parameter.numel() for parameter in self._parameters]
        with torch.no_grad():
            for parameter, start, part in zip(
                self._parameters, self._start, torch.split(moved, sizes), strict=True
            ):
                parameter.copy_(start + part.view_as(start))

    def _coordinates(self, loss: Loss) -> Tensor:
        gradient = loss_gradient(self._parameters, loss, bfloat16=self._bfloat16)
        return self._directions.coordinates(torch.cat([part.flatten() for part in gradient]))
