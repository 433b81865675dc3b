from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medsynth_common.anatomy import CLASSES, NETWORK, AnatomyNetwork, AnatomySettings, TissueNetwork
from medsynth_common.dataset import DataConfig, find_patients, prepare
from medsynth_common.dataset import source as patients_file
from medsynth_common.dataset.frame import frames_between
from medsynth_common.dataset.source import FolderSource, load_patients
from medsynth_common.errors import BadData
from medsynth_common.labels import TUMOUR, Tissue
from medsynth_common.weights.file import Recipe, Weights, write_weights
from small_patients import AFFINE, small_image, small_labels, write_patient

TINY = AnatomySettings(channels=(4, 4, 4), detail=4)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an untrained network of a few channels."""

    def written(name: str = "net", *, seed: int = 0, settings: AnatomySettings = TINY) -> Path:
        torch.manual_seed(seed)
        recipe = Recipe(
            network=NETWORK,
            settings=TINY.model_dump(mode="json"),
            command="",
            seed=seed,
            data=("nothing",),
        )
        path = tmp_path / f"{name}.safetensors"
        tensors = AnatomyNetwork(settings).state_dict()
        write_weights(path, Weights(tensors=tensors, recipe=recipe))
        return path

    return written


def label(path: Path, image: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    tumour = np.where(np.isin(labels, TUMOUR), labels, np.uint8(0))
    affine = np.abs(AFFINE)
    return TissueNetwork.read(path).label(image, labels > 0, tumour, affine=affine)


@pytest.mark.parametrize("kept", [(0, 1, 2, 3), (0,), (2, 3)])
def test_a_map_fills_the_brain_and_nothing_else(write: Write, kept: tuple[int, ...]) -> None:
    labels = small_labels()
    image = small_image(labels)
    image[[one for one in range(4) if one not in kept]] = 0
    found = label(write(), image, labels)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found > 0, labels > 0)
    is_tumour = np.isin(labels, TUMOUR)
    np.testing.assert_array_equal(found[is_tumour], labels[is_tumour])
    assert set(np.unique(found[~is_tumour])) <= {Tissue.BACKGROUND, *CLASSES}
    np.testing.assert_array_equal(found, label(write(), image, labels))


def test_what_lies_outside_the_brain_does_not_matter(write: Write) -> None:
    labels = small_labels()
    image = small_image(labels)
    spoiled = np.where(labels > 0, image, np.float32(4000))
    np.testing.assert_array_equal(
        label(write(), image, labels), label(write(), spoiled.astype(np.float32), labels)
    )


def test_left_and_right_are_alike(write: Write) -> None:
    # Sides that are whole blocks of the network, where a mirrored head lies on the same voxels.
    labels = small_labels((24, 28, 20))
    found = label(write(), small_image(labels), labels)
    mirrored = label(write(), small_image(labels)[:, ::-1].copy(), labels[::-1].copy())
    assert (found == mirrored[::-1]).mean() > 0.999


def test_a_frame_and_its_way_back_keep_what_varies_slowly() -> None:
    affine = np.diag([1.2, 3.0, 0.9, 1.0])
    x, y, z = np.meshgrid(*(np.linspace(0, 1, side) for side in (40, 17, 50)), indexing="ij")
    volume = (x + 2 * y - z).astype(np.float32)
    there, back = frames_between((40, 17, 50), affine, voxel_mm=2.0, multiple=8)
    coarse = there.resample(volume)
    assert coarse.shape == (24, 32, 24)
    np.testing.assert_allclose(np.linalg.norm(there.affine[:3, :3], axis=0), 2.0)
    inner = (slice(4, -4), slice(2, -2), slice(4, -4))
    np.testing.assert_allclose(back.resample(coarse)[inner], volume[inner], atol=0.02)


def test_voxels_of_the_network_s_size_stay_what_they_were() -> None:
    volume = np.random.default_rng(0).random((13, 10, 11)).astype(np.float32)
    there, back = frames_between(
        (13, 10, 11), np.diag([2.0, 2.0, 2.0, 1.0]), voxel_mm=2.0, multiple=8
    )
    coarse = there.resample(volume)
    assert coarse.shape == (16, 16, 16)
    np.testing.assert_allclose(coarse[1:14, 3:13, 2:13], volume, atol=1e-6)
    np.testing.assert_allclose(back.resample(coarse), volume, atol=1e-6)


def test_weights_of_other_sizes_are_refused(write: Write) -> None:
    path = write(settings=AnatomySettings(channels=(4, 8), detail=4))
    with pytest.raises(BadData, match="got other tensors, wanted those of its settings"):
        TissueNetwork.read(path)


@pytest.mark.parametrize("value", ["cluster", "net.safetensors", "/nets/net.pt"])
def test_a_way_to_tissues_that_is_none_is_told(value: str) -> None:
    with pytest.raises(ValueError, match="network, clustering, or the absolute path"):
        DataConfig.model_validate({"tissues": value})


def test_a_patient_is_prepared_by_the_network_of_the_site_s_file(
    tmp_path: Path, write: Write
) -> None:
    write_patient(tmp_path / "data" / "a" / "p")
    ((files,),) = find_patients(tmp_path / "data", DataConfig()).values()
    by_network = DataConfig(tissues=str(write()))
    clustered = DataConfig(tissues="clustering")
    one, other = (prepare(files, (24, 24, 24), data) for data in (by_network, clustered))
    assert (one.labels != other.labels).any()
    np.testing.assert_array_equal(np.isin(one.labels, TUMOUR), np.isin(other.labels, TUMOUR))


def test_another_network_prepares_anew(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_patient(tmp_path / "data" / "sites" / "a" / "p")
    path = write()

    def load(data: DataConfig) -> None:
        source = FolderSource(root=str(tmp_path / "data"), data=data, site="a", patients=("p",))
        load_patients(source, (24, 24, 24), cache=tmp_path / "cache")

    data = DataConfig(tissues=str(path))
    load(data)

    def making(*_: object, **__: object) -> None:
        raise AssertionError("prepared anew")

    monkeypatch.setattr(patients_file, "prepare", making)
    load(data)
    load(DataConfig(tissues=str(write("moved"))))  # the same weights under another name
    for changed in (write("other", seed=1), write(seed=1)):  # the second in the first one's place
        with pytest.raises(AssertionError, match="anew"):
            load(DataConfig(tissues=str(changed)))
    with pytest.raises(AssertionError, match="anew"):
        load(DataConfig(tissues="clustering"))
    path.unlink()
    with pytest.raises(BadData, match=r"net\.safetensors: got no such file"):
        load(data)
