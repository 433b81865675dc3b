import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from medsynth_common.errors import BadMessage
from medsynth_common.plan import (
    AdversarialSettings,
    Critic,
    Game,
    PlanHeader,
    Precision,
    RoundPlan,
    SegmentSettings,
    Stage,
    canonical_json,
    parse,
)
from medsynth_common.tensors import HashedTensors
from tiny import GRID, NETWORKS, adversarial, gaussian, header, plan, unprotected

CHANGES: dict[str, Any] = {
    "run": "run-2",
    "round": 2,
    "site": "site-b",
    "grid": (32, 24, 24),
    "crop": (20, 16, 16),
    "networks": NETWORKS.model_copy(update={"critic_layers": 1}),
    "settings": adversarial(critic=Critic.HEAD),
    "mechanisms": (gaussian("critic", steps=2),),
    "public_seed": 12,
    "update_bits": 4,
}


def test_the_digest_changes_with_every_field() -> None:
    first = plan(Stage.ADVERSARIAL)
    digests = {first.digest()}
    for name, value in CHANGES.items():
        digests.add(plan(Stage.ADVERSARIAL, **{name: value}).digest())
    assert PlanHeader.model_fields.keys() == {*CHANGES, "stage"}
    digests.add(plan(Stage.SEGMENT).digest())
    assert len(digests) == len(CHANGES) + 2


def test_the_digest_changes_with_every_setting_and_mechanism_field() -> None:
    settings: dict[str, Any] = {
        name: value * 2 if isinstance(value, int | float) and value else 1.0
        for name, value in adversarial(generator_steps=1).model_dump().items()
        if name not in ("stage", "critic", "game", "precision", "lesion_patch")
    }
    settings |= {"game": Game.CROSS_ENTROPY, "lesion_patch": (8, 8, 8)}
    settings |= {"precision": Precision.BFLOAT16}
    plans = [plan(Stage.ADVERSARIAL, settings=adversarial(**{k: v})) for k, v in settings.items()]
    for field, value in {
        "name": "x",
        "clip": 2.0,
        "noise_multiplier": 4.0,
        "sampling_rate": 0.5,
        "steps": 9,
    }.items():
        changed = gaussian("critic").model_copy(update={field: value})
        plans.append(plan(Stage.ADVERSARIAL, mechanisms=(changed,)))
    plans.append(plan(Stage.ADVERSARIAL, mechanisms=(unprotected("critic"),)))
    assert len({one.digest() for one in plans}) == len(plans)


def test_the_digest_changes_with_any_weight() -> None:
    weights = {"a": torch.zeros(2), "b": torch.zeros((), dtype=torch.int64)}
    others: list[dict[str, torch.Tensor]] = [
        {"a": torch.tensor([0.0, 1e-30]), "b": weights["b"]},
        {"a": torch.tensor([0.0, -0.0]), "b": weights["b"]},
        {"a": torch.zeros(1, 2), "b": weights["b"]},
        {"a": torch.zeros(1, dtype=torch.float64), "b": weights["b"]},
        {"a": weights["a"], "b": torch.ones((), dtype=torch.int64)},
        {"a": weights["a"]},
        {"a": weights["a"], "c": weights["b"]},
    ]
    digests = {RoundPlan(header=header(), weights=one).digest() for one in [weights, *others]}
    assert len(digests) == 1 + len(others)
    turned = RoundPlan(header=header(), weights=dict(reversed(weights.items())))
    assert turned.digest() == RoundPlan(header=header(), weights=weights).digest()


def test_the_canonical_spelling_is_stable() -> None:
    spelled = canonical_json(header())
    assert spelled == canonical_json(parse(PlanHeader, spelled, name="plan"))
    assert (
        spelled == json.dumps(json.loads(spelled), sort_keys=True, separators=(",", ":")).encode()
    )
    assert spelled.startswith(b'{"crop":[16,16,16],"grid":[24,24,24],"mechanisms":[{"clip":1.0,')


@pytest.mark.parametrize("stage", [Stage.MOMENTS, Stage.SEGMENT, Stage.ADVERSARIAL])
def test_a_header_survives_the_wire(stage: Stage) -> None:
    sent = header(stage)
    assert parse(PlanHeader, canonical_json(sent), name="plan") == sent


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"settings": SegmentSettings()}, "settings are for segment, the plan for moments"),
        ({"grid": (24, 24)}, "at least 3 items"),
        ({"grid": (24, 24, 4)}, "sides must be 8..512"),
        ({"grid": (24, 24, 513)}, "sides must be 8..512"),
        ({"crop": (16, 16, 7)}, "sides must be 8..512"),
        ({"crop": (16, 16, 32)}, "a crop that fits the grid"),
        ({"mechanisms": (gaussian("a"), gaussian("a"))}, "different names"),
        ({"mechanisms": tuple(map(gaussian, "abc"))}, "at most 2 items"),
        ({"round": 0}, "greater than or equal to 1"),
        ({"round": 10**9}, "less than or equal to 1000000"),
        ({"public_seed": 2**63}, "less than"),
        ({"site": "../../etc/passwd"}, "pattern"),
        ({"run": ""}, "pattern"),
        ({"noise_seed": 1}, "Extra inputs"),
    ],
)
def test_a_plan_that_contradicts_itself_is_none(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        header(**changes)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"crops": 0},
        {"crops": 2.0},
        {"proximal": -1.0},
    ],
)
def test_settings_check_themselves(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SegmentSettings(**settings)


@pytest.mark.parametrize(
    "settings", [{"batch": 1}, {"critic_weight": -0.1}, {"critic": "gan"}, {"label_bank": 10**6}]
)
def test_adversarial_settings_check_themselves(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AdversarialSettings(**settings)


@pytest.mark.parametrize("channels", [(0, 8), (-4, 8), (4, 10**9), (4,), (4,) * 7])
@pytest.mark.parametrize("network", ["generator_channels", "segmenter_channels"])
def test_networks_of_impossible_size_are_no_plan(network: str, channels: tuple[int, ...]) -> None:
    fields = json.loads(canonical_json(header()))
    fields["networks"][network] = channels
    with pytest.raises(BadMessage, match=f"plan: networks.{network}"):
        parse(PlanHeader, json.dumps(fields), name="plan")


def test_all_problems_of_a_message_are_told() -> None:
    fields = json.loads(canonical_json(header(Stage.SEGMENT)))
    fields |= {"round": "one", "surprise": 3, "public_seed": -1}
    fields["mechanisms"][0]["clip"] = 0
    fields["settings"]["crops"] = 1000
    del fields["grid"]
    with pytest.raises(BadMessage) as caught:
        parse(PlanHeader, json.dumps(fields), name="plan")
    told = {problem.name: problem for problem in caught.value.problems}
    assert told.keys() == {
        "plan: round",
        "plan: surprise",
        "plan: public_seed",
        "plan: mechanisms.0.gaussian.clip",
        "plan: settings.segment.crops",
        "plan: grid",
    }
    assert told["plan: settings.segment.crops"].value == "1000"
    assert "less than or equal to 64" in told["plan: settings.segment.crops"].wanted


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"x"', b"NaN"])
def test_what_is_no_json_object_is_no_plan(content: bytes) -> None:
    with pytest.raises(BadMessage, match="plan"):
        parse(PlanHeader, content, name="plan")


def test_a_grid_s_side_is_a_whole_number() -> None:
    fields = json.loads(canonical_json(header()))
    fields["grid"] = [float(side) for side in GRID]
    fields["grid"][0] += 0.5
    with pytest.raises(BadMessage, match="grid"):
        parse(PlanHeader, json.dumps(fields), name="plan")


def never_hashed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("medsynth_common.tensors.bytes_of", lambda _: pytest.fail("hashed again"))


def anew(one: RoundPlan) -> str:
    """The digest as one who knows nothing works it out."""
    return replace(one, hashed=HashedTensors()).digest()


def test_a_plans_digest_is_remembered_until_a_tensor_is_changed_or_exchanged() -> None:
    first = plan(Stage.SEGMENT)
    before = first.digest()
    with pytest.MonkeyPatch.context() as patch:
        never_hashed(patch)
        assert first.digest() == before
    name, tensor = next((n, t) for n, t in first.weights.items() if t.is_floating_point())
    tensor.view(-1)[0] += 1.0  # through a view
    changed = first.digest()
    assert changed != before
    assert changed == anew(first)
    assert isinstance(first.weights, dict)
    first.weights[name] = tensor - 2.0
    assert first.digest() not in (before, changed)
    assert first.digest() == anew(first)
    renamed = replace(first, weights={f"{n}x": t for n, t in first.weights.items()})
    assert renamed.digest() == anew(renamed) != first.digest()


def test_the_digest_of_tensors_without_a_version_is_never_remembered() -> None:
    with torch.inference_mode():
        weights = {name: tensor.clone() for name, tensor in plan(Stage.SEGMENT).weights.items()}
        first = replace(plan(Stage.SEGMENT), weights=weights)
        before = first.digest()
        next(t for t in weights.values() if t.is_floating_point()).add_(1.0)
        assert first.digest() != before


def test_plans_of_the_same_weights_hash_them_once_and_say_what_each_would_alone() -> None:
    first, hashed = plan(Stage.ADVERSARIAL), HashedTensors()
    first = replace(first, hashed=hashed)
    second = replace(first, header=header(Stage.ADVERSARIAL, site="site-b"))
    styled = replace(second, weights={**first.weights, "style.code": torch.ones(4)})
    fewer = replace(first, weights=dict(sorted(first.weights.items())[:3]))
    asked = [first, second, styled, fewer, styled, first]
    wanted = [anew(one) for one in asked]
    assert len(set(wanted)) == 4
    assert [one.digest() for one in asked] == wanted
    with pytest.MonkeyPatch.context() as patch:
        never_hashed(patch)
        assert second.digest() == wanted[1]
    next(iter(first.weights.values())).view(-1)[0] += 1  # of all of them
    for one, before in zip(asked, wanted, strict=True):
        assert one.digest() == anew(one)
        assert one.digest() != before or one is fewer
