import tomllib
from pathlib import Path
from typing import Any

import pytest

from medsynth_common.errors import BadConfig
from medsynth_common.labels import Tissue
from medsynth_server.config import RunConfig, dump_config, load_config, parse_config
from tiny_run import tiny_config


def _problems(values: dict[str, Any]) -> dict[str, tuple[str, str]]:
    with pytest.raises(BadConfig) as caught:
        parse_config(values, name="f.toml")
    return {p.name.removeprefix("f.toml: "): (p.value, p.wanted) for p in caught.value.problems}


def test_every_problem_is_told_at_once_each_under_its_own_key() -> None:
    found = _problems(
        {
            "seed": -1,
            "networks": {"detail_channels": 1},
            "privacy": {"epsilon": 0, "detla": 1e-5},
            "segment": {"clip": -0.5},
        }
    )
    assert found.keys() == {
        *("seed", "networks.detail_channels", "privacy.epsilon", "privacy.detla", "segment.clip"),
    }
    assert found["privacy.epsilon"] == ("0", "greater than 0")


@pytest.mark.parametrize(
    ("values", "key", "nearest"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"networks": {"generator_chanels": [4, 8]}}, "networks.generator_chanels", "generator_ch"),
        ({"data": {"contrast": {}}}, "data.contrast", "contrasts"),
        ({"adversarial": {"paired_wieght": 1.0}}, "adversarial.paired_wieght", "paired_weight"),
        ({"privacy": {"detla": 1.0}}, "privacy.detla", "delta"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_known_one(
    values: dict[str, Any], key: str, nearest: str
) -> None:
    value, wanted = _problems(values)[key]
    assert value == f"unknown key {key.rpartition('.')[2]!r}"
    assert f"such as '{nearest}" in wanted


def test_fedprox_wants_its_pull() -> None:
    fedprox = {"federation": {"strategy": "fedprox"}}
    ((value, wanted),) = _problems(fedprox).values()
    assert value == "settings that do not go together"
    assert "segment.proximal" in wanted
    parse_config({**fedprox, "segment": {"proximal": 0.1}}, name="settings")


def test_an_unknown_key_that_is_like_none_gets_no_hint() -> None:
    assert _problems({"zzz": 1})["zzz"][1] == "a known key"


@pytest.mark.parametrize("epsilon", [0, -1.0, float("nan"), float("inf")])
def test_epsilon_must_be_a_number_above_zero(epsilon: float) -> None:
    assert _problems({"privacy": {"epsilon": epsilon}}).keys() == {"privacy.epsilon"}


@pytest.mark.parametrize("privacy", ["of", 3, True, []])
def test_privacy_is_a_table_or_off(privacy: object) -> None:
    assert _problems({"privacy": privacy})["privacy"][1] == "a table of privacy settings, or 'off'"
    assert parse_config({"privacy": "off"}, name="f").privacy == "off"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"preset": ["cpu"]}, "preset"),
        ({"preset": "tpu"}, "preset"),
        ({"networks": 3}, "networks"),
        ({"federation": "many"}, "federation"),
        ({"seed": "a date"}, "seed"),
        ({"workers": True}, "workers"),
        ({"device": "gpu"}, "device"),
        ({"grid": [16, 16, 16]}, "grid"),
        ({"crop": [4, 8, 8]}, "crop"),
        ({"grid": [48, 48]}, "grid"),
        ({"name": "Demo run"}, "name"),
        ({"federation": {"strategy": "fedsgd"}}, "federation.strategy"),
    ],
)
def test_a_value_of_the_wrong_kind_is_a_problem_and_not_a_crash(
    values: dict[str, Any], key: str
) -> None:
    assert _problems(values).keys() == {key}


def test_a_date_in_toml_is_a_problem_and_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text("seed = 2020-01-01\n")
    with pytest.raises(BadConfig, match="seed: got '2020-01-01'"):
        load_config(path, {})


def test_crop_must_fit_the_grid() -> None:
    (wanted,) = (wanted for _, wanted in _problems({"crop": [64, 32, 32]}).values())
    assert "fits the grid (48, 48, 48), got (64, 32, 32)" in wanted


def test_sides_need_not_be_multiples_of_the_networks_depth() -> None:
    config = parse_config({"grid": [46, 50, 27], "crop": [30, 33, 27]}, name="f")
    assert config.crop == (30, 33, 27)


def test_the_segmenter_must_have_something_left_to_normalise() -> None:
    deep = {"networks": {"segmenter_channels": [4, 4, 4, 4, 4, 4]}}
    (wanted,) = (wanted for _, wanted in _problems(deep).values())
    assert "a crop side above 32, as deep as the segmenter is, got (32, 32, 32)" in wanted
    parse_config({**deep, "crop": [32, 33, 32]}, name="f")


@pytest.mark.parametrize(
    ("values", "wish"),
    [
        ({"networks": {"critic_layers": 5}}, "crop sides of at least 96"),
        ({"crop": [8, 8, 8]}, "crop sides of at least 12"),
        ({"crop": [32, 32, 8]}, "crop sides of at least 12"),
    ],
)
def test_the_critic_must_have_something_left_to_look_at(values: dict[str, Any], wish: str) -> None:
    (wanted,) = (wanted for _, wanted in _problems(values).values())
    assert wish in wanted


def test_slices_need_no_depth() -> None:
    flat = {"networks": {"spatial_dims": 2}, "crop": [32, 32, 8]}
    assert parse_config(flat, name="f").crop == (32, 32, 8)


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"seed = = 1", "line 1"), (b"seed = 1\n[x\n", "line 2"), (b"\xff", "0xff")],
)
def test_a_file_that_is_no_toml_is_told_with_the_place(
    tmp_path: Path, content: bytes, value: str
) -> None:
    path = tmp_path / "f.toml"
    path.write_bytes(content)
    with pytest.raises(BadConfig) as caught:
        load_config(path, {})
    (problem,) = caught.value.problems
    assert problem.name == str(path)
    assert value in problem.value
    assert problem.wanted == "valid TOML"


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "none.toml"
    with pytest.raises(BadConfig, match="wanted a TOML file"):
        load_config(path, {})


def test_overrides_lie_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text("[privacy]\nepsilon = 2.0\ndelta = 1e-4\n[federation]\nsites = 5\n")
    config = load_config(path, {"privacy.epsilon": 3.0, "seed": 4})
    assert config.privacy != "off"
    assert (config.privacy.epsilon, config.privacy.delta) == (3.0, 1e-4)
    assert (config.federation.sites, config.seed) == (5, 4)
    assert config.federation.patients == RunConfig().federation.patients


def test_a_budget_from_a_flag_turns_privacy_on(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text('privacy = "off"\n')
    config = load_config(path, {"privacy.epsilon": 3.0})
    assert config.privacy != "off"
    assert config.privacy.epsilon == 3.0


def test_sizes_from_a_preset_give_way_to_sizes_in_the_file() -> None:
    config = parse_config(
        {"preset": "gpu", "networks": {"critic_channels": 8}, "grid": [64] * 3}, name="f"
    )
    assert config.networks.critic_channels == 8
    assert config.networks.segmenter == "segresnet"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy": "off", "seed": None},
        {"privacy": {"cap": 3.5}},
        {
            "data": {
                "one_site_per_patient": True,
                "contrasts": {"t1": "T1_*.nii.gz"},
                "tumour": "simple.nii.gz",
                "anatomy": ["a.nii", "b.nii"],
                "tumour_values": {"1": "oedema", "7": "background"},
                "allow_no_tumour": True,
            }
        },
        {"data": {"sites": "partition.csv"}},
    ],
)
def test_what_is_written_reads_back_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny_config(changes)
    path = tmp_path / "config.toml"
    path.write_text(dump_config(config))
    assert load_config(path, {}) == config
    assert parse_config(tomllib.loads(dump_config(config)), name="f") == config


def test_a_data_table_keeps_its_meaning() -> None:
    config = tiny_config({"data": {"tumour_values": {"1": "oedema"}}})
    assert config.data.tumour_values == {1: Tissue.OEDEMA}


def test_the_cap_leaves_room_for_a_repeated_round_unless_it_is_given() -> None:
    private = tiny_config({"privacy": {"epsilon": 4.0}}).privacy
    assert private != "off"
    assert private.lifetime_cap == 5.0
    capped = tiny_config({"privacy": {"epsilon": 4.0, "cap": 2.0}}).privacy
    assert capped != "off"
    assert capped.lifetime_cap == 2.0


@pytest.mark.parametrize("name", ["ms_lesions", "tcga_lgg"])
def test_the_example_settings_read(name: str) -> None:
    path = Path(__file__).resolve().parents[2] / "deploy" / "examples" / f"{name}.toml"
    assert load_config(path, {}).data.one_site_per_patient
