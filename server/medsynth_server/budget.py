"""From the run's epsilon to each stage's noise: one calibration for everything that will happen."""

from collections.abc import Mapping
from dataclasses import dataclass

from medsynth_common.learning.dice import SCORES_CLIP
from medsynth_common.plan import Critic
from medsynth_common.privacy.accountant import Request, calibrate
from medsynth_common.privacy.mechanism import Mechanism, Unprotected
from medsynth_server.config import RunConfig
from medsynth_server.model import Model


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The mechanisms of a whole run, by name, with their total number of steps."""

    mechanisms: Mapping[str, Mechanism]

    def for_round(self, name: str, *, steps: int) -> Mechanism:
        """The mechanism `name`, for one round of `steps` steps."""
        return self.mechanisms[name].model_copy(update={"steps": steps})


@dataclass(frozen=True, kw_only=True)
class PublicClips:
    """The clips that are measured on public phantoms; noise is in units of them.

    Attributes:
        level: of a patient's vector of tissue intensities.
        spread: of a patient's vector of distances from the site's mean.
        features: of a patient's vector of image features; also of the head's gradient, which
            is that vector and a 1.
        critic: of a patient's gradient of a whole PatchGAN.

    """

    level: float
    spread: float
    features: float
    critic: float

    @classmethod
    def of(cls, model: Model) -> "PublicClips":
        """Read them from the publicly trained model."""
        prior = model.prior
        return cls(
            level=float(prior.level_clip),
            spread=float(prior.spread_clip),
            features=float(model.tensors["features.clip"]),
            critic=float(model.tensors["clips.critic"]),
        )


def check_budget(config: RunConfig) -> None:
    """Raise `BadConfig` for a budget that no noise can keep; before anything has been trained."""
    if config.privacy == "off":
        return
    unmeasured = PublicClips(level=1.0, spread=1.0, features=1.0, critic=1.0)
    calibrate(
        requests(config, unmeasured), epsilon=config.privacy.epsilon, delta=config.privacy.delta
    )


def requests(config: RunConfig, clips: PublicClips) -> list[Request]:
    """What the enabled stages will ask of patients."""
    wanted: list[Request] = []
    if config.moments.enabled:
        for name, share, norm in (
            ("level", config.moments.level_share, clips.level),
            ("spread", config.moments.spread_share, clips.spread),
        ):
            wanted.append(Request(name=name, share=share, clip=norm, sampling_rate=1.0, steps=1))
    if config.segment.enabled:
        segment = config.segment
        wanted.append(
            Request(
                name="segmenter",
                share=segment.share,
                clip=segment.clip,
                sampling_rate=segment.sampling_rate,
                steps=segment.rounds * segment.steps,
            )
        )
    if config.adversarial.enabled:
        adversarial = config.adversarial
        whole = adversarial.critic is Critic.PATCHGAN
        clip = adversarial.clip or (clips.critic if whole else clips.features)
        wanted.append(
            Request(
                name="critic",
                share=adversarial.share,
                clip=clip,
                sampling_rate=adversarial.sampling_rate,
                steps=adversarial.rounds * adversarial.steps,
            )
        )
        if adversarial.paired_weight:
            wanted.append(
                Request(
                    name="paired",
                    share=adversarial.paired_share,
                    clip=adversarial.paired_clip,
                    sampling_rate=adversarial.paired_sampling_rate,
                    steps=adversarial.rounds * adversarial.generator_steps,
                )
            )
    if config.metrics.enabled:
        share = config.metrics.share
        wanted.append(
            Request(name="metrics", share=share, clip=SCORES_CLIP, sampling_rate=1.0, steps=1)
        )
    return wanted


def plan_budget(config: RunConfig, model: Model) -> Budget:
    """Calibrate every mechanism so that all of them together cost the run's epsilon."""
    wanted = requests(config, PublicClips.of(model))
    mechanisms: list[Mechanism]
    if config.privacy == "off":
        mechanisms = [
            Unprotected(name=w.name, sampling_rate=w.sampling_rate, steps=w.steps) for w in wanted
        ]
    else:
        mechanisms = list(
            calibrate(wanted, epsilon=config.privacy.epsilon, delta=config.privacy.delta)
        )
    return Budget(mechanisms={mechanism.name: mechanism for mechanism in mechanisms})


def accounting(config: RunConfig) -> str:
    """Say in one line what a run's epsilons are for: delta, unit, mechanisms."""
    if config.privacy == "off":
        return ""  # there is none: every site says so in its own line
    names = ["level", "spread"] if config.moments.enabled else []
    names += ["segmenter"] if config.segment.enabled else []
    names += ["critic"] if config.adversarial.enabled else []
    names += ["paired"] if config.adversarial.enabled and config.adversarial.paired_weight else []
    names += ["metrics"] if config.metrics.enabled else []
    return f"delta {config.privacy.delta:g}, unit: patient, Gaussian mechanisms: {', '.join(names)}"
