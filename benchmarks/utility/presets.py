"""How large the bench is: for every day, for an hour, for some hours."""

from typing import Any, Final, Literal

from benchmarks.utility.federation import DELTA, Patients
from medsynth_common.plan import Critic
from medsynth_common.privacy.mechanism import Value
from medsynth_server.config import RunConfig, Segment, parse_config

#: Added to a preset's seed on the federation that settings are chosen on: nobody is in both.
DEVELOPMENT: Final = 1000
#: The critics' own DP-SGD, in steps of a round; the mean of features is released once.
_CRITIC_STEPS: Final = {Critic.MEAN_FEATURES: 1, Critic.HEAD: 30, Critic.PATCHGAN: 10}


class Preset(Value):
    """One size of the bench.

    Attributes:
        name: by which it is asked for.
        seeds: the bench is repeated with each.
        side, crop: of the grid and of what networks train on, voxels.
        sites, each, held_out, unseen: see `Patients`.
        hospitals: how large federations are compared, each patient's budget being the same.
        rounds, steps, sampling_rate, free_steps, directions: of stage segment.
        adversarial_rounds, generator_steps: of stage adversarial.
        synthetic, synthetic_steps: the set of those that train on synthetic images alone, and
            for how long they do.
        rows: those that are measured; none named: every one.

    """

    name: str
    seeds: tuple[int, ...]
    side: int
    crop: int
    sites: int = 4
    each: int
    held_out: int
    unseen: int
    hospitals: tuple[int, ...] = (1, 4, 16)
    rounds: int
    steps: int
    sampling_rate: float
    free_steps: int
    directions: int = Segment().directions
    adversarial_rounds: int
    generator_steps: int
    synthetic: int
    synthetic_steps: int
    rows: tuple[str, ...] = ()

    def patients(self, seed: int) -> Patients:
        """Everyone of one seed's federation."""
        return Patients(seed, self.side, self.sites, self.each, self.held_out, self.unseen)

    def config(
        self,
        *,
        epsilon: float | None,
        adversarial: bool = False,
        critic: Critic = Critic.MEAN_FEATURES,
        weights: tuple[float, float] | None = None,
    ) -> RunConfig:
        """Give the settings of a run.

        Args:
            epsilon: of all stages together; None without privacy.
            adversarial: whether the adversarial stage takes its share.
            critic: which.
            weights: of critic and consistency in the generator's loss, where not the defaults.

        """
        adversary: dict[str, Any] = {
            "enabled": adversarial,
            "critic": critic.value,
            "rounds": self.adversarial_rounds,
            "steps": _CRITIC_STEPS[critic],
            "generator_steps": self.generator_steps,
            "sampling_rate": 1.0 if critic is not Critic.PATCHGAN else 0.25,
        }
        if weights:
            adversary |= {"critic_weight": weights[0], "consistency_weight": weights[1]}
        values: dict[str, Any] = {
            "name": "utility",
            "grid": [self.side] * 3,
            "crop": [self.crop] * 3,
            "privacy": "off" if epsilon is None else {"epsilon": epsilon, "delta": DELTA},
            "segment": {
                "rounds": self.rounds,
                "steps": self.steps,
                "sampling_rate": self.sampling_rate,
                "free_steps": self.free_steps,
                "directions": self.directions,
            },
            "adversarial": adversary,
        }
        return parse_config(values, name=f"preset {self.name}")


_Name = Literal["small", "medium", "hundred", "full"]
_MEDIUM: Final = Preset(
    name="medium",
    seeds=(1, 2, 3),
    side=32,
    crop=24,
    each=40,
    held_out=12,
    unseen=20,
    rounds=6,
    steps=3,
    sampling_rate=0.2,
    free_steps=100,
    adversarial_rounds=2,
    generator_steps=15,
    synthetic=400,
    synthetic_steps=200,
)
#: What it takes to say whether the goals are met.
_DECISIVE: Final = (
    "synthetic: moments, epsilon 8",
    "synthetic: + consistency + mean-features, epsilon 8",
    "pooled, as on a set",
    "pooled",
    "FedAvg",
    "before private steps, epsilon 8",
    "FedAvg, epsilon 8",
    "FedAvg, epsilon 2",
    "public weights",
)
PRESETS: Final[dict[_Name, Preset]] = {
    "small": Preset(
        name="small",
        seeds=(1,),
        side=32,
        crop=24,
        each=24,
        held_out=5,
        unseen=4,
        hospitals=(1, 4),
        rounds=4,
        steps=3,
        sampling_rate=0.15,
        free_steps=40,
        directions=16,  # to find 64 for each of eight models would take minutes
        adversarial_rounds=1,
        generator_steps=4,
        synthetic=16,
        synthetic_steps=60,
    ),
    "medium": _MEDIUM,
    "hundred": _MEDIUM.model_copy(update={"name": "hundred", "each": 100, "rows": _DECISIVE}),
    "full": _MEDIUM.model_copy(
        update={
            "name": "full",
            "side": 48,
            "crop": 32,
            "each": 100,
            "held_out": 15,
            "rows": _DECISIVE,
        }
    ),
}
