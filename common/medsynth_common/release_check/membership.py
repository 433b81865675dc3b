"""Membership inference: can someone who holds the set tell who was trained on?

Two attacks that see nothing but the set, a volume and public phantoms as a reference:

- **GAN-Leaks** (Chen, Yu, Zhang & Fritz, CCS 2020), calibrated: a patient who lies nearer to the
  nearest synthetic volume than to the nearest volume of the reference is held to be a member.
- **DOMIAS** (van Breugel, Sun, Qian & van der Schaar, AISTATS 2023): the ratio of the set's
  density to the reference's, where the patient lies. Both are Gaussian kernel estimates on a few
  principal components of the reference.

An area under the curve above one half says nothing by itself: splitting the *training* patients
at random gives such areas too. An attack counts only beyond that control.
"""

from typing import Final, Literal, get_args

import numpy as np
from scipy.special import logsumexp

from medsynth_common.release_check.intervals import (
    auc,
    auc_from_nothing,
    auc_interval,
    share_interval,
)
from medsynth_common.release_check.result import AttackFinding, Verdict
from medsynth_common.release_check.signature import Cohort, Floats, image_distances

Attack = Literal["GAN-Leaks", "DOMIAS"]

#: With fewer on either side an area of 1 comes about by chance too often.
_FEWEST: Final = 10
_COMPONENTS: Final = 16
#: Kernels half as wide as Scott's rule: that is made for smooth densities, and memorised volumes
#: are narrow peaks. Measured on a set of noisy copies: AUC 0.77 in place of 0.58.
_NARROWER: Final = 0.5
#: Each of two attacks fails a set by chance in at most 1 of 100.
_CONTROL_QUANTILE: Final = 0.99
_FALSE_POSITIVES: Final = 0.01


def enough_to_attack(training: Cohort, held_out: Cohort) -> bool:
    """Whether there are patients enough for an attack's success to mean anything."""
    return min(len(training), len(held_out)) >= _FEWEST


def attack_membership(
    synthetic: Cohort, training: Cohort, held_out: Cohort, reference: Cohort, *, seed: int
) -> tuple[AttackFinding, ...]:
    """Let both attacks try to tell training from held-out patients."""
    if not enough_to_attack(training, held_out):
        return tuple(
            _undecidable(attack, len(training), len(held_out)) for attack in get_args(Attack)
        )
    patients = training.joined(held_out)
    scores: dict[Attack, Floats] = {
        "GAN-Leaks": gan_leaks(patients, synthetic, reference),
        "DOMIAS": domias(patients, synthetic, reference),
    }
    n = len(training)
    return tuple(
        _judge(attack, score[:n], score[n:], np.random.default_rng([seed, index]))
        for index, (attack, score) in enumerate(scores.items())
    )


def gan_leaks(patients: Cohort, synthetic: Cohort, reference: Cohort) -> Floats:
    """Distance to the nearest reference volume less that to the nearest synthetic: (patient,)."""
    to_reference = image_distances(patients.image, reference.image).min(axis=1)
    to_synthetic = image_distances(patients.image, synthetic.image).min(axis=1)
    score: Floats = to_reference - to_synthetic
    return score


def domias(patients: Cohort, synthetic: Cohort, reference: Cohort) -> Floats:
    """Log density of the set less that of the reference, where each patient lies: (patient,)."""
    known = _rows(reference)
    centre = known.mean(0)
    _, spread, axes = np.linalg.svd(known - centre, full_matrices=False)
    kept = min(_COMPONENTS, len(known) - 1)
    scale = spread[:kept] / np.sqrt(len(known) - 1)

    def components(cohort: Cohort) -> Floats:
        where: Floats = (_rows(cohort) - centre) @ axes[:kept].T / scale
        return where

    at = components(patients)
    return _log_density(at, components(synthetic)) - _log_density(at, components(reference))


def _rows(cohort: Cohort) -> Floats:
    return cohort.image.reshape(len(cohort), -1).astype(np.float64)


def _log_density(at: Floats, samples: Floats) -> Floats:
    """Gaussian kernel estimate (n,) at (n, k) from (m, k), up to a constant.

    Not scipy's `gaussian_kde`: that shapes its kernel like the sample, which copies of one volume
    make singular.
    """
    count, dimensions = samples.shape
    width = _NARROWER * count ** (-1 / (dimensions + 4))  # in SDs of the reference
    squares = ((at[:, None] - samples[None]) ** 2).sum(-1)  # (n, m)
    density: Floats = logsumexp(-squares / (2 * width**2), axis=1)
    density -= np.log(count) + dimensions * np.log(width)
    return density


def _judge(
    attack: Attack, members: Floats, others: Floats, draw: np.random.Generator
) -> AttackFinding:
    area, interval = auc(members, others), auc_interval(members, others, draw)
    control = auc_from_nothing(members, len(others), _CONTROL_QUANTILE, draw)
    caught = interval.low > 0.5 and area > control
    allowed = max(int(_FALSE_POSITIVES * len(others)), 1)  # others above the attack's threshold
    found = int((members > np.sort(others)[-allowed - 1]).sum())
    if caught:
        reason = (
            f"{attack} tells training from held-out patients: its AUC is {area:.2f} "
            f"({interval.low:.2f} to {interval.high:.2f}), beyond the {control:.2f} that it "
            "reaches from nothing. One set in a hundred that knows nobody fares so by chance."
        )
    else:
        reason = (
            f"{attack} does not tell training from held-out patients: its AUC is {area:.2f}. With "
            f"{len(others)} held out, only an AUC above {control:.2f} could be told from chance."
        )
    return AttackFinding(
        attack=attack,
        verdict=Verdict.FAILED if caught else Verdict.PASSED,
        reason=reason,
        auc=area,
        auc_interval=interval,
        control=control,
        false_positive_rate=allowed / len(others),
        true_positive_rate=found / len(members),
        true_positive_interval=share_interval(found, len(members)),
    )


def _undecidable(attack: Attack, training: int, held_out: int) -> AttackFinding:
    return AttackFinding(
        attack=attack,
        verdict=Verdict.NOT_DECIDABLE,
        reason=(
            f"{attack} could not be tried: it needs {_FEWEST} training and {_FEWEST} held-out "
            f"patients, and there are {training} and {held_out}. Whether someone can tell who took "
            "part is not known from this check."
        ),
        auc=None,
        auc_interval=None,
        control=None,
        false_positive_rate=None,
        true_positive_rate=None,
        true_positive_interval=None,
    )
