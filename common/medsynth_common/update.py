"""What comes up from a site: a `SiteUpdate`, and the checks it must pass before anyone uses it.

Nothing but privatised weights and their privacy receipt: no loss, no count, no name of a patient.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from medsynth_common.errors import BadMessage, Problem
from medsynth_common.identity.seal import Seal
from medsynth_common.plan import MOST_PROBLEMS, Name, Stage, canonical_json
from medsynth_common.privacy.mechanism import Value
from medsynth_common.tensors import tensors_digest

#: A weight beyond this is no weight of ours; it would steer or end a run.
LARGEST_WEIGHT = 1e4


class UpdateHeader(Value):
    """All of an update but its weights.

    Attributes:
        plan_digest: which plan this answers.
        declared_patients: the site's public size, its weight in an average (not its true count).
        epsilon: what this run has cost a patient who took part in all of it, by the site's ledger;
            None when training without privacy. It depends on the run's plans alone.
        cap: the site's lifetime cap, over all runs; None likewise.
        delta: the failure probability that epsilon is stated with.
        rehearsal: the noise can be repeated, and protects nobody.

    """

    run: Name
    site: Name
    stage: Stage
    round: int = Field(ge=1, le=1_000_000)
    plan_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    declared_patients: int = Field(ge=1, le=1_000_000)
    epsilon: float | None = Field(default=None, ge=0)
    cap: float | None = Field(default=None, gt=0)
    delta: float = Field(gt=0, lt=1)
    rehearsal: bool = False


@dataclass(frozen=True, kw_only=True)
class SiteUpdate:
    """One site's answer to one plan.

    Attributes:
        header: who answers what, and what it cost.
        weights: privatised tensors, combined over the sites by the strategy.
        own: privatised tensors that stay this site's own: its style (calibration and code).
        seal: whose word this is; no part of the digest. None within one machine.

    """

    header: UpdateHeader
    weights: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    seal: Seal | None = None

    def digest(self) -> str:
        """SHA-256 over the canonical header and every tensor's name, type, shape and bytes."""
        digest = hashlib.sha256(canonical_json(self.header))
        digest.update(tensors_digest(self.weights))
        digest.update(tensors_digest(self.own))
        return digest.hexdigest()


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check names, types, shapes, finiteness and size against tensors of the wanted form.

    Raises:
        BadMessage: with the first problems found.

    """
    problems = [
        Problem(name=name, value="nothing", wanted="a tensor")
        for name in sorted(set(expected) - set(tensors))
    ]
    problems += [
        Problem(name=name[:80], value="a tensor", wanted="no tensor of this name")
        for name in sorted(set(tensors) - set(expected))
    ]
    for name in sorted(set(expected) & set(tensors)):
        problems += _problems_of_tensor(name, tensors[name], expected[name])
    if problems:
        raise BadMessage(problems[:MOST_PROBLEMS])


def _problems_of_tensor(name: str, tensor: Tensor, wanted: Tensor) -> list[Problem]:
    if tensor.dtype != wanted.dtype or tensor.shape != wanted.shape:
        return [
            Problem(
                name=name,
                value=f"{tensor.dtype} {tuple(tensor.shape)}",
                wanted=f"{wanted.dtype} {tuple(wanted.shape)}",
            )
        ]
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return []
    largest = max(abs(float(end)) for end in torch.aminmax(tensor))  # NaN where there is one
    if largest <= LARGEST_WEIGHT:
        return []
    value = f"{largest:.3g}" if math.isfinite(largest) else "not finite"
    return [Problem(name=name, value=value, wanted=f"finite, at most {LARGEST_WEIGHT:g}")]
