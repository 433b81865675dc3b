"""A made-up, plausible run folder for the tests of what reads one. Not one figure is measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.ndimage import gaussian_filter

from made_up_evaluation import write_evaluation
from medsynth_common.labels import CONTRASTS, TISSUES, Contrast, Region, Tissue
from medsynth_common.plan import Stage
from medsynth_common.release_check import ReleaseCheck, Verdict
from medsynth_common.release_check.intervals import share_interval
from medsynth_common.release_check.result import (
    AttackFinding,
    DuplicateFinding,
    Interval,
    NearnessFinding,
)
from medsynth_server.record import (
    BEFORE_TRAINING,
    FEDERATED,
    SYNTHETIC_ONLY,
    Arm,
    ArmPrivacy,
    EvaluationEvent,
    Event,
    IntensityEvent,
    MechanismSpent,
    NoteEvent,
    PrivacyStatement,
    RoundEvent,
    RunLog,
    SitePrivacy,
    write_privacy,
)

SITES = ("site-a", "site-b", "site-c")
PATIENTS = 8
DELTA = 1e-5
CAP = 8.0
EPSILON = {"site-a": 7.8612, "site-b": 7.8612, "site-c": 7.9034}
MECHANISMS = ("moments", "segmenter", "critic features")

#: Mean whole-tumour Dice by model and arm.
DICE: Mapping[tuple[str, Arm], float] = {
    (BEFORE_TRAINING, Arm.PRIVATE): 0.41,
    (BEFORE_TRAINING, Arm.REFERENCE): 0.41,
    (FEDERATED, Arm.PRIVATE): 0.68,
    (FEDERATED, Arm.REFERENCE): 0.77,
    (SYNTHETIC_ONLY, Arm.PRIVATE): 0.61,
    (SYNTHETIC_ONLY, Arm.REFERENCE): 0.66,
}

#: How bright each class is in each contrast, 0..1.
BRIGHTNESS: Mapping[Contrast, tuple[float, ...]] = {
    Contrast.T1: (0.0, 0.15, 0.12, 0.5, 0.75, 0.6, 0.3, 0.45, 0.5),
    Contrast.T1GD: (0.0, 0.17, 0.14, 0.5, 0.75, 0.6, 0.3, 0.45, 0.98),
    Contrast.T2: (0.0, 0.95, 0.95, 0.55, 0.4, 0.45, 0.8, 0.75, 0.6),
    Contrast.FLAIR: (0.0, 0.12, 0.1, 0.55, 0.42, 0.5, 0.35, 0.9, 0.7),
}

CONFIG = """\
seed = 7
epsilon = 8.0
stages = ["pretrain", "moments", "segment", "adversarial"]

[data]
grid = [40, 48, 40]
patients = 8

[segment]
rounds = 12
learning_rate = 0.002

[segment.privacy]
share = 0.6
clip = 1.0
"""


def write_run(folder: Path, *, patients: int = 3, told: Sequence[Event] | None = None) -> Path:
    """Write a run into `folder`, with all events unless they are given, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder / "metrics.jsonl")
    for event in events() if told is None else told:
        log.append(event)
    write_privacy(folder / "privacy.json", statement())
    write_samples(folder / "samples.safetensors", patients=patients)
    (folder / "config.toml").write_text(CONFIG)
    write_evaluation(folder / "evaluation", SITES)
    (folder / "release-check.json").write_bytes(release_check().encoded())
    return folder


def events() -> list[Event]:
    """All that a run of two arms records."""
    rng = np.random.default_rng(1)
    return [
        *(event for arm in Arm for event in _rounds(arm, rng)),
        *_evaluations(rng),
        *(event for arm in Arm for event in _histograms(arm, rng)),
        NoteEvent(text="Enhancing tumour gains least: site-c holds few enhancing lesions."),
    ]


def statement(*, epsilon: Mapping[str, float] = EPSILON, seeded: bool = True) -> PrivacyStatement:
    """A statement of a private arm and an unprotected one."""
    return PrivacyStatement(
        seeded=seeded,
        arms={
            Arm.PRIVATE: ArmPrivacy(
                protected=True, sites={site: _spent(spent) for site, spent in epsilon.items()}
            ),
            Arm.REFERENCE: ArmPrivacy(
                protected=False, sites={site: _spent(None) for site in epsilon}
            ),
        },
    )


def _spent(epsilon: float | None) -> SitePrivacy:
    noise = (4.2, 1.31, 6.05) if epsilon is not None else (0.0, 0.0, 0.0)
    mechanisms = tuple(
        MechanismSpent(
            name=name,
            clip=clip,
            noise_multiplier=sigma,
            sampling_rate=rate,
            steps=steps,
            releases=steps,
            epsilon_alone=None if epsilon is None else share * epsilon,
        )
        for name, clip, sigma, rate, steps, share in zip(
            MECHANISMS,
            (1.0, 0.5, 1.0),
            noise,
            (1.0, 0.5, 1.0),
            (1, 240, 4),
            (0.13, 0.71, 0.4),
            strict=True,
        )
    )
    return SitePrivacy(
        epsilon=epsilon, cap=CAP, delta=DELTA, patients_declared=PATIENTS, mechanisms=mechanisms
    )


def _rounds(arm: Arm, rng: np.random.Generator) -> list[Event]:
    lengths = {Stage.PRETRAIN: 20, Stage.MOMENTS: 1, Stage.SEGMENT: 12, Stage.ADVERSARIAL: 10}
    losses = {
        Stage.PRETRAIN: ("generator", "segmenter"),
        Stage.MOMENTS: ("moment distance",),
        Stage.SEGMENT: ("segmenter on synthetic",),
        Stage.ADVERSARIAL: ("critic", "consistency", "moment lock"),
    }
    floor = 0.12 if arm is Arm.REFERENCE else 0.2
    return [
        RoundEvent(
            arm=arm,
            stage=stage,
            round=number,
            seconds=float(rng.uniform(2, 4)),
            losses={
                name: floor + float(np.exp(-3 * number / rounds)) + 0.03 * abs(float(rng.normal()))
                for name in losses[stage]
            },
            sites=() if stage is Stage.PRETRAIN else SITES[: 2 if number == 5 else 3],
            refused={"site-c": "TimedOut"} if number == 5 and stage is Stage.SEGMENT else {},
            bytes_up=0 if stage is Stage.PRETRAIN else 1_240_000,
            bytes_down=0 if stage is Stage.PRETRAIN else 1_250_000,
        )
        for stage, rounds in lengths.items()
        if not (stage is Stage.PRETRAIN and arm is Arm.REFERENCE)
        for number in range(1, rounds + 1)
    ]


def _evaluations(rng: np.random.Generator) -> list[Event]:
    trained_on = {
        BEFORE_TRAINING: "public phantoms",
        FEDERATED: "the patients of three hospitals",
        SYNTHETIC_ONLY: "64 synthetic volumes",
    }
    harder = {Region.WHOLE: 0.0, Region.CORE: 0.08, Region.ENHANCING: 0.15}
    made: list[Event] = []
    for (model, arm), mean in DICE.items():
        for region, less in harder.items():
            sd = 0.11 + less / 4
            made.append(
                EvaluationEvent(
                    arm=arm,
                    model=model,
                    trained_on=trained_on[model],
                    region=region,
                    dice_mean=mean - less,
                    dice_sd=sd,
                    patients=12,
                    chance=None if model == BEFORE_TRAINING else 0.002,
                    per_site={
                        site: mean - less + offset
                        for site, offset in zip(SITES, (0.02, -0.03, 0.01), strict=True)
                    },
                )
            )
    rng.shuffle(made)
    return made


def _histograms(arm: Arm, rng: np.random.Generator) -> list[Event]:
    edges = np.linspace(0, 1.2, 49)
    shift = 0.05 if arm is Arm.PRIVATE else 0.02
    return [
        IntensityEvent(
            arm=arm,
            site=site,
            contrast=contrast,
            tissue=tissue,
            edges=tuple(edges.tolist()),
            real=_bins(rng.normal(bright, 0.06, 4000), edges),
            synthetic=_bins(rng.normal(bright + rng.normal() * shift, 0.05, 4000), edges),
        )
        for site in SITES
        for contrast in CONTRASTS
        for tissue, bright in zip(TISSUES, BRIGHTNESS[contrast], strict=True)
        if tissue is not Tissue.BACKGROUND
    ]


def _bins(values: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.histogram(values, edges)[0].astype(float).tolist())


def write_samples(path: Path, *, patients: int = 3, source: str = "phantom") -> None:
    """Write blobby heads, their images, and paler synthetic ones."""
    rng = np.random.default_rng(2)
    labels = np.stack([_head(rng) for _ in range(patients)])
    real = np.stack([_image(head, rng, blur=0.6, noise=0.03) for head in labels])
    synthetic = np.stack([_image(head, rng, blur=0.9, noise=0.015) for head in labels])
    public = np.stack([0.7 * _image(head, rng, blur=1.3, noise=0.01) + 0.15 for head in labels])
    tensors = {
        "real.image": real,
        "real.labels": labels,
        "synthetic.image": synthetic,
        "public.image": public,
    }
    sites = [SITES[patient % len(SITES)] for patient in range(patients)]
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
        path,
        metadata={"sites": json.dumps(sites), "source": source},
    )


def _head(rng: np.random.Generator) -> NDArray[np.uint8]:
    grid = (40, 48, 40)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in grid), indexing="ij")
    folds = gaussian_filter(rng.normal(size=grid), 1.8)
    folds *= 0.1 / folds.std()
    radius = np.sqrt((x / 0.8) ** 2 + (y / 0.9) ** 2 + (z / 0.8) ** 2)
    labels = np.zeros(grid, dtype=np.uint8)
    for tissue, limit in ((Tissue.CSF, 1.0), (Tissue.GREY, 0.93), (Tissue.WHITE, 0.75)):
        labels[radius + folds * (tissue is not Tissue.CSF) < limit] = tissue
    for side in (-1, 1):
        deep = ((x - side * 0.22) / 0.1) ** 2 + (y / 0.18) ** 2 + (z / 0.14) ** 2
        horn = ((x - side * 0.1) / 0.07) ** 2 + ((y - 0.08) / 0.33) ** 2 + ((z - 0.1) / 0.16) ** 2
        labels[deep < 1] = Tissue.DEEP_GREY
        labels[horn < 1] = Tissue.VENTRICLE
    centre = rng.uniform((-0.4, -0.4, -0.2), (0.4, 0.4, 0.3))
    away = np.sqrt(sum((axis - at) ** 2 for axis, at in zip((x, y, z), centre, strict=True)))
    away = away + 0.5 * folds
    inside = labels > Tissue.CSF
    for tissue, limit in ((Tissue.OEDEMA, 0.36), (Tissue.ENHANCING, 0.21), (Tissue.CORE, 0.13)):
        labels[(away < limit) & inside] = tissue
    return labels


def _image(
    labels: NDArray[np.uint8], rng: np.random.Generator, *, blur: float, noise: float
) -> NDArray[np.float32]:
    channels = [
        gaussian_filter(np.array(BRIGHTNESS[contrast])[labels], blur)
        + noise * rng.normal(size=labels.shape)
        for contrast in CONTRASTS
    ]
    return np.stack(channels).clip(0).astype(np.float32)


def release_check(verdict: Verdict = Verdict.PASSED) -> ReleaseCheck:
    """What a check of 36 volumes may have found; of a failed one, two copies and a leak."""
    rng = np.random.default_rng(3)
    failed = verdict is Verdict.FAILED
    copies = ("synthetic-004", "synthetic-017") if failed else ()
    reasons = {
        Verdict.PASSED: "None of 36 synthetic images is a copy.",
        Verdict.FAILED: "2 of 36 synthetic images are copies of a training patient's.",
        Verdict.NOT_DECIDABLE: "There are too few patients.",
    }
    comparable = verdict is not Verdict.NOT_DECIDABLE
    near = rng.normal(0.17, 0.015, 36)
    near[: len(copies)] = 0.012
    nearness = NearnessFinding(
        of="images",
        verdict=verdict,
        reason=reasons[verdict],
        compared=36,
        copies=copies,
        share=len(copies) / 36,
        share_interval=share_interval(len(copies), 36),
        threshold=0.52 if comparable else None,
        controls=198 if comparable else 2,
        unusual=len(copies) / 36,
        near_held_out=0,
        to_training=tuple(near.tolist()),
        held_out_to_training=tuple(rng.normal(0.175, 0.02, 18).tolist()) if comparable else (),
        to_held_out=tuple(rng.normal(0.18, 0.02, 36).tolist()) if comparable else (),
    )
    attack = AttackFinding(
        attack="GAN-Leaks",
        verdict=verdict,
        reason=f"GAN-Leaks {'tells' if failed else 'does not tell'} training patients apart.",
        auc=(0.81 if failed else 0.47) if comparable else None,
        auc_interval=Interval(low=0.3, high=0.88) if comparable else None,
        control=0.66 if comparable else None,
        false_positive_rate=1 / 18 if comparable else None,
        true_positive_rate=0.25 if comparable else None,
        true_positive_interval=Interval(low=0.18, high=0.33) if comparable else None,
    )
    return ReleaseCheck(
        verdict=verdict,
        seed=1,
        training=180 if comparable else 2,
        held_out=18 if comparable else 0,
        synthetic=36,
        reference=48 if comparable else 0,
        nearness=(nearness,),
        duplicates=DuplicateFinding(
            verdict=Verdict.PASSED,
            reason="No synthetic volume is a copy of another.",
            compared=36,
            pairs=(),
            threshold=0.05,
        ),
        attacks=(attack,),
    )
