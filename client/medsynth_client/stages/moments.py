"""Stage moments: one Gaussian release a round of what this scanner makes of each tissue.

Round 1 releases the level of every tissue, round 2 how far patients lie from it. What travels is
the generator's calibration layer for this site, which is computed from the noisy release alone.
"""

from torch import Tensor

from medsynth_client.order import Order, Outcome
from medsynth_common.learning.moments import (
    Prior,
    level_length,
    level_vector,
    spread_length,
    spread_vector,
    style_from_level,
    style_from_spread,
)
from medsynth_common.learning.volumes import Volume
from medsynth_common.privacy.patients import poisson_sample, release_mean
from medsynth_common.style import Style
from medsynth_common.tensors import under, with_prefix
from medsynth_common.wire.forms import expected_mechanisms


def release_moments(order: Order) -> Outcome:
    """Release this round's moments and turn them into the site's style."""
    (name,) = expected_mechanisms(order.plan)
    mechanism = order.mechanism(name)
    prior = Prior.from_tensors(under("prior", order.weights))
    style = Style.from_tensors(under("style", order.weights))
    expected = mechanism.sampling_rate * order.declared
    chosen = poisson_sample(len(order.patients), mechanism.sampling_rate, order.randomness)

    def vector(patient: Volume) -> Tensor:
        if name == "level":
            return level_vector(patient, prior)
        return spread_vector(patient, prior, style)

    mean = release_mean(
        (vector(order.patients[index]) for index in chosen),
        mechanism,
        expected_patients=expected,
        randomness=order.randomness,
        shape=(level_length(prior) if name == "level" else spread_length(prior),),
        stand_in=lambda: vector(order.stand_in),
    )
    noise = mechanism.noise_multiplier * mechanism.clip / expected if mechanism.protected else 0.0
    if name == "level":
        style = style_from_level(mean.float(), prior, noise=noise)
    else:
        style = style_from_spread(mean.float(), prior, style, noise=noise)
    return Outcome(weights={}, own=with_prefix("style", style.tensors()), state=order.state)
