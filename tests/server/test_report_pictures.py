import io
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from made_up_run import write_samples
from medsynth_common.errors import BadData
from medsynth_common.labels import Tissue
from medsynth_server.report.folder import RunFolder, Samples
from medsynth_server.report.pictures import Tile, plates, telling_slice, tissues_shown


def decoded(tile: Tile) -> NDArray[np.float32]:
    """Give a tile's pixels (row, column, rgb), 0..1."""
    kind, _, content = tile.source.partition(",")
    assert kind == "data:image/png;base64"
    return imread(io.BytesIO(b64decode(content)))[..., :3]


def one_patient(labels: NDArray[np.int64], real: float = 1.0, synthetic: float = 2.0) -> Samples:
    """Make volumes that are one value inside the head, real and synthetic."""
    head = (labels != Tissue.BACKGROUND).astype(np.float32)[None, None].repeat(4, axis=1)
    return Samples(
        sites=("site-a",),
        source="phantom",
        real_labels=labels[None],
        real_image=real * head,
        synthetic_image=synthetic * head,
        public_image=None,
    )


def test_pictures_hang_as_radiologists_hang_them() -> None:
    labels = np.zeros((6, 8, 10), dtype=np.int64)  # x right, y anterior, z superior
    labels[5, 7, 9] = Tissue.CORE  # the patient's right, front and top
    axial, coronal, sagittal = (
        decoded(plate.label).sum(axis=-1) for plate in plates(one_patient(labels))
    )
    assert axial.shape == (8, 6)
    assert coronal.shape == (10, 6)
    assert sagittal.shape == (10, 8)
    for picture in (axial, coronal, sagittal):
        assert picture[0, 0] > 0  # right is on the left; front and top are up; the face looks left
        assert np.count_nonzero(picture) == 1


def test_real_and_synthetic_share_one_grey_scale() -> None:
    labels = np.full((8, 8, 8), Tissue.GREY, dtype=np.int64)
    labels[0] = Tissue.BACKGROUND
    axial = plates(one_patient(labels, real=1.0, synthetic=0.5))[0]
    real, synthetic = (decoded(strip.tiles[0]).max() for strip in axial.strips)
    assert real == pytest.approx(1.0)
    assert synthetic == pytest.approx(0.5, abs=0.01)


def test_the_slice_with_most_tumour_is_shown() -> None:
    labels = np.full((4, 4, 6), Tissue.WHITE, dtype=np.int64)
    labels[1:3, 1:3, 4] = Tissue.OEDEMA
    assert telling_slice(labels, axis=2) == 4


def test_without_tumour_the_largest_slice_of_the_head_is_shown() -> None:
    labels = np.zeros((4, 4, 6), dtype=np.int64)
    labels[:, :, 2], labels[0, 0, 3] = Tissue.WHITE, Tissue.WHITE
    assert telling_slice(labels, axis=2) == 2


def test_a_volume_without_a_head_is_shown_too() -> None:
    blank = one_patient(np.zeros((4, 4, 4), dtype=np.int64))
    assert len(plates(blank)) == 3
    assert tissues_shown(blank) == ()


def test_values_that_are_not_finite_are_drawn_black() -> None:
    labels = np.full((4, 4, 4), Tissue.GREY, dtype=np.int64)
    sick = one_patient(labels, synthetic=float("nan"))
    assert decoded(plates(sick)[0].strips[1].tiles[0]).max() == 0


def test_only_the_first_six_patients_are_shown(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.safetensors", patients=7)
    samples = RunFolder.read(tmp_path).samples
    assert samples is not None
    assert len(plates(samples)) == 3 + 5


def test_every_misfit_of_the_samples_is_told(tmp_path: Path) -> None:
    path = tmp_path / "samples.safetensors"
    write_samples(path, patients=2)
    tensors = load_file(path)
    tensors["synthetic.image"] = np.ascontiguousarray(tensors["synthetic.image"][:, :3])
    tensors["real.labels"] = tensors["real.labels"] + 7
    save_file(tensors, path, metadata={"sites": '["site-a"]', "source": "phantom"})
    with pytest.raises(BadData) as caught:
        RunFolder.read(tmp_path)
    told = str(caught.value)
    for words in ("synthetic.image: got (2, 3,", "wanted 2 names", "wanted label values 0..8"):
        assert words in told


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"sites": '["site-a"]'}, "source"),
        ({"sites": '["site-a"]', "source": "dream"}, "phantom or real"),
        ({"sites": "site-a", "source": "phantom"}, "readable"),
    ],
)
def test_samples_must_say_where_they_come_from(
    tmp_path: Path, metadata: dict[str, str], words: str
) -> None:
    path = tmp_path / "samples.safetensors"
    write_samples(path, patients=1)
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(BadData, match=words):
        RunFolder.read(tmp_path)
