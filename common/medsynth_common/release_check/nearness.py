"""Copies: synthetic volumes that lie nearer to a training patient than any other person does.

A distance alone misleads: a smooth, average picture is near to everybody. So each volume is
measured against itself: the distance to its nearest training patient over its median distance to
all of them. Real people, each compared with all *other* people, say how small that becomes without
any copying; the same distances to held-out patients say it for this very set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common.release_check.intervals import share_interval
from medsynth_common.release_check.result import (
    Compared,
    DuplicateFinding,
    NearnessFinding,
    Verdict,
)
from medsynth_common.release_check.signature import (
    Cohort,
    Floats,
    Signature,
    image_distances,
    label_distances,
)

Distances = Callable[[Signature, Signature], Floats]

#: With fewer training patients nobody's median distance to the others means anything.
_FEWEST: Final = 3
_CONTROL_QUANTILE: Final = 0.05
#: A set fails as a whole when more than this share of it lies below the controls' 5 % point,
#: with 97.5 % confidence: three times what chance gives, since few controls know that point badly.
_UNUSUAL: Final = 0.15
#: Few controls see little of their lower end: no threshold above this.
_HIGHEST_THRESHOLD: Final = 0.55
#: So many controls that a share below their 5 % point says something.
_ENOUGH: Final = 20
#: Closer than this is the same picture or map, whoever else is there: noise of SD 0.05 comes to
#: 0.01 in images, one label of ten changed to 0.02; the nearest of 180 phantoms never below 0.11.
_SAME: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """One comparison.

    Attributes:
        of: its name.
        signatures: of a cohort, what is compared.
        distances: between two cohorts' signatures.
        margin: a copy scores below this part of the controls' 5 % point. Tumours of two people
            may well lie in one place: their scores have a long lower end.

    """

    of: Compared
    signatures: Callable[[Cohort], Signature]
    distances: Callable[[Signature, Signature], Floats]
    margin: float

    def between(self, a: Cohort, b: Cohort) -> Floats:
        return self.distances(self.signatures(a), self.signatures(b))


_KINDS: Final = (
    _Kind(of="images", signatures=lambda c: c.image, distances=image_distances, margin=0.75),
    _Kind(
        of="anatomy maps", signatures=lambda c: c.anatomy, distances=label_distances, margin=0.75
    ),
    _Kind(of="tumour maps", signatures=lambda c: c.tumour, distances=label_distances, margin=0.5),
)


def find_copies(
    names: Sequence[str], synthetic: Cohort, training: Cohort, held_out: Cohort
) -> tuple[NearnessFinding, ...]:
    """Compare images, anatomy maps and tumour maps with the training patients'.

    Args:
        names: of the synthetic volumes, in order.
        synthetic: the set.
        training: patients that were trained on.
        held_out: patients that were not; may be empty.

    """
    return tuple(_compare(kind, names, synthetic, training, held_out) for kind in _KINDS)


def find_duplicates(names: Sequence[str], synthetic: Cohort) -> DuplicateFinding:
    """Find pairs of synthetic volumes that show the same picture, mirrored or not."""
    apart = image_distances(synthetic.image, synthetic.image)
    rows, columns = np.nonzero(np.triu(apart < _SAME, k=1))
    pairs = tuple(
        (names[i], names[j]) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
    )
    reason = (
        f"{len(pairs)} pairs of synthetic volumes are copies of one another, such as "
        f"{' and '.join(pairs[0])}."
        if pairs
        else "No synthetic volume is a copy of another."
    )
    return DuplicateFinding(
        verdict=Verdict.FAILED if pairs else Verdict.PASSED,
        reason=reason,
        compared=len(names),
        pairs=pairs,
        threshold=_SAME,
    )


def _compare(
    kind: _Kind, names: Sequence[str], synthetic: Cohort, training: Cohort, held_out: Cohort
) -> NearnessFinding:
    among = kind.between(training, training)
    np.fill_diagonal(among, np.inf)  # each is compared with all others
    controls = _known(
        np.concatenate([_score(among), _score(to_training := kind.between(held_out, training))])
    )
    apart, from_held_out = kind.between(synthetic, training), kind.between(synthetic, held_out)
    rule = _Rule.of(controls, margin=kind.margin)
    nearest, typical = _nearest(apart), _typical(apart)
    comparable = np.isfinite(nearest)
    score = _over(nearest, typical)
    is_copy = rule.copies(nearest, score)
    # The same yardstick, held to people on whom nothing was trained.
    near_held_out = rule.copies(_nearest(from_held_out), _over(_nearest(from_held_out), typical))
    compared, copies = int(comparable.sum()), int(is_copy.sum())
    unusual = int((score[comparable] < rule.low_end).sum())
    verdict, reason = _judge(kind.of, copies, compared, unusual, len(controls))
    return NearnessFinding(
        of=kind.of,
        verdict=verdict,
        reason=reason,
        compared=compared,
        copies=tuple(name for name, copy in zip(names, is_copy, strict=True) if copy),
        share=copies / max(compared, 1),
        share_interval=share_interval(copies, compared),
        threshold=rule.threshold,
        controls=len(controls),
        unusual=unusual / max(compared, 1),
        near_held_out=int(near_held_out.sum()),
        to_training=_listed(nearest),
        held_out_to_training=_listed(_nearest(to_training)),
        to_held_out=_listed(_nearest(from_held_out)),
    )


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """What counts as a copy.

    Attributes:
        threshold: a score below it; None where there are too few controls to know one.
        low_end: the controls' 5 % point; 0, which nothing is below, where there are too few.

    """

    threshold: float | None
    low_end: float

    @classmethod
    def of(cls, controls: Floats, *, margin: float) -> "_Rule":
        if len(controls) < _FEWEST:
            return cls(threshold=None, low_end=0.0)
        low_end = float(np.quantile(controls, _CONTROL_QUANTILE))
        return cls(threshold=min(margin * low_end, _HIGHEST_THRESHOLD), low_end=low_end)

    def copies(self, nearest: Floats, score: Floats) -> NDArray[np.bool_]:
        """Tell which volumes are copies: by their score, or because they are the same picture."""
        return (nearest < _SAME) | (score < (self.threshold or 0.0))


def _nearest(distances: Floats) -> Floats:
    """Smallest of each row (n, m); infinite where nothing can be compared."""
    nearest: Floats = distances.min(axis=1, initial=np.inf)
    return nearest


def _typical(distances: Floats) -> Floats:
    """Median of each row's finite values (n, m); infinite where there is none."""
    known = [row[np.isfinite(row)] for row in distances]
    return np.array([np.median(row) if len(row) else np.inf for row in known])


def _score(distances: Floats) -> Floats:
    return _over(_nearest(distances), _typical(distances))


def _over(nearest: Floats, typical: Floats) -> Floats:
    """Nearest over typical distance; infinite where either is missing, 0 where both are 0."""
    score = np.full(len(nearest), np.inf)
    known = np.isfinite(nearest) & np.isfinite(typical)
    score[known] = nearest[known] / np.maximum(typical[known], 1e-12)
    return score


def _known(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _listed(values: Floats) -> tuple[float, ...]:
    return tuple(np.round(_known(values), 6).tolist())


def _judge(
    of: Compared, copies: int, compared: int, unusual: int, controls: int
) -> tuple[Verdict, str]:
    if copies:
        told = f"{copies} of {compared} synthetic {of} are copies of a training patient's."
        return Verdict.FAILED, told
    if controls >= _ENOUGH and share_interval(unusual, compared).low > _UNUSUAL:
        return Verdict.FAILED, (
            f"{unusual} of {compared} synthetic {of} lie closer to a training patient than all but "
            "5 % of real people do to one another: the set as a whole follows the patients."
        )
    if controls < _FEWEST:
        return Verdict.NOT_DECIDABLE, (
            f"There are too few patients to know how much the {of} of different people differ: "
            "exact copies were looked for and not found, changed ones could not be."
        )
    return Verdict.PASSED, (
        f"None of {compared} synthetic {of} is a copy of a training patient's, mirrored or not."
    )
