"""Defects as data sets have them, each planted in a phantom of its own: all are found and named."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from medsynth_common.dataset import DataConfig, Examination, Level, examine, find_patients
from phantom_patients import AFFINE, SHAPE, Images, brats, patient, write
from small_patients import BRATS_OLD

#: The seed of a patient without a defect, whom others are copies of.
GOOD = 1000
Plant = Callable[[Path, Images], object]
Found = tuple[str, str, str]


def path_of(folder: Path, role: str) -> Path:
    return folder / f"{folder.name}{BRATS_OLD[role]}.nii.gz"


def without(role: str) -> Plant:
    return lambda folder, _: path_of(folder, role).unlink()


def content(role: str, change: Callable[[bytes], bytes]) -> Plant:
    def plant(folder: Path, _: Images) -> None:
        path = path_of(folder, role)
        path.write_bytes(change(path.read_bytes()))

    return plant


def changed(role: str, change: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Plant:
    def plant(folder: Path, images: Images) -> None:
        data = change(images[role])
        kept = np.uint8 if images[role].dtype == np.uint8 and role == "seg" else np.float32
        write(path_of(folder, role), data.astype(kept if data.dtype != np.float64 else np.float32))

    return plant


def moved(affine: NDArray[np.float64], *roles: str, forms: bool = True) -> Plant:
    def plant(folder: Path, images: Images) -> None:
        for role in roles or BRATS_OLD:
            write(path_of(folder, role), images[role], affine, forms=forms)

    return plant


def scaled(x: float, y: float, z: float) -> NDArray[np.float64]:
    return AFFINE @ np.diag([x / 5, y / 5, z / 5, 1.0])


def shifted(millimetres: float) -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[0, 3] += millimetres
    return affine


def turned(degrees: float) -> NDArray[np.float64]:
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    turn = np.eye(4)
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    return np.asarray(turn @ AFFINE)


def another_kind(dtype: type) -> Plant:
    return lambda folder, images: write(path_of(folder, "t2"), images["t2"].astype(dtype))


def four_volumes(folder: Path, images: Images) -> None:
    write(path_of(folder, "t1"), np.stack([images["t1"]] * 4, axis=-1))


def second_flair(folder: Path, images: Images) -> None:
    write(folder / "again_flair.nii.gz", images["flair"] * np.float32(0.9))


def flat_affine(folder: Path, images: Images) -> None:
    path = path_of(folder, "t1")
    image = nibabel.Nifti1Image(images["t1"], AFFINE)
    image.header["srow_z"] = 0
    image.header["qform_code"] = 0
    path.write_bytes(gzip.compress(image.to_bytes()))
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[312:328] = bytes(16)  # srow_z
    path.write_bytes(gzip.compress(bytes(content)))


def two_orientations(folder: Path, images: Images) -> None:
    image = nibabel.Nifti1Image(images["t2"], AFFINE)
    image.set_sform(AFFINE, code=1)
    image.set_qform(shifted(20), code=1)
    nibabel.save(image, path_of(folder, "t2"))


def with_air(folder: Path, images: Images) -> None:
    air = np.random.default_rng(0).uniform(1, 20, SHAPE).astype(np.float32)
    for role in ("t1", "t1gd", "t2", "flair"):
        write(path_of(folder, role), np.where(images[role] > 0, images[role], air))


def whole_head(folder: Path, images: Images) -> None:
    # A ball of fat around the brain, and black air around that.
    axes = np.meshgrid(*[np.linspace(-1, 1, side + 8) for side in SHAPE], indexing="ij")
    inside = np.sqrt(sum(axis**2 for axis in axes)) < 1.0
    for role, data in images.items():
        head = np.pad(data, 4)
        if role != "seg":
            head = head + np.where(inside & (head == 0), np.float32(300), 0) * (1 + axes[0])
        write(path_of(folder, role), head.astype(data.dtype), scaled(5.9, 5.9, 5.9))


def all_black(folder: Path, images: Images) -> None:
    for role in ("t1", "t1gd", "t2", "flair"):
        write(path_of(folder, role), images[role] * 0)


def one_image_twice(folder: Path, images: Images) -> None:
    write(path_of(folder, "t1gd"), images["t1"])


def a_neighbours_file(folder: Path, _: Images) -> None:
    write(path_of(folder, "t2"), patient(GOOD)["t2"])


def a_neighbours_images(folder: Path, _: Images) -> None:
    brats(folder, patient(GOOD))


def a_neighbour_exported_anew(folder: Path, _: Images) -> None:
    noise = np.random.default_rng(0)
    again = {
        role: data
        if role == "seg"
        else np.where(data > 0, data * 1.3 + noise.normal(0, 10, SHAPE), 0).astype(np.float32)
        for role, data in patient(GOOD).items()
    }
    brats(folder, again)


def nothing_left(folder: Path, _: Images) -> None:
    for path in folder.iterdir():
        path.unlink()


def mirrored_map(folder: Path, images: Images) -> None:
    empty = np.zeros(SHAPE, dtype=np.uint8)
    empty[:4, :4, :4] = 1
    write(path_of(folder, "seg"), empty)


def z_score(data: NDArray[np.float32]) -> NDArray[np.float32]:
    inside = data > 0
    return np.where(inside, (data - data[inside].mean()) / data[inside].std(), 0)


def with_voxel(value: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    def change(data: NDArray[np.float32]) -> NDArray[np.float32]:
        data[12, 12, 12] = value
        return data

    return change


DEFECTS: dict[str, tuple[Plant, set[Found]]] = {
    "no-t1": (without("t1"), {("error", "missing-file", "t1")}),
    "no-t1gd": (without("t1gd"), {("error", "missing-file", "t1gd")}),
    "no-t2": (without("t2"), {("error", "missing-file", "t2")}),
    "no-flair": (without("flair"), {("error", "missing-file", "flair")}),
    "no-seg": (without("seg"), {("error", "missing-file", "tumour")}),
    "nothing": (
        nothing_left,
        {("error", "missing-file", r) for r in ("t1", "t1gd", "t2", "flair", "tumour")},
    ),
    "two-flairs": (second_flair, {("error", "several-files", "flair")}),
    "text": (content("t1", lambda _: b"no image"), {("error", "unreadable", "t1")}),
    "zero-bytes": (content("t2", lambda _: b""), {("error", "unreadable", "t2")}),
    "cut": (content("flair", lambda c: c[:-40]), {("error", "unreadable", "flair")}),
    "cut-in-header": (content("flair", lambda c: c[:60]), {("error", "unreadable", "flair")}),
    "damaged": (
        content("t1", lambda c: c[:2000] + b"\0\0\0\0" + c[2004:]),
        {("error", "unreadable", "t1")},
    ),
    "packed-text": (
        content("t1gd", lambda _: gzip.compress(b"not a volume" * 100)),
        {("error", "unreadable", "t1gd")},
    ),
    "fewer-voxels": (
        content("seg", lambda c: gzip.compress(gzip.decompress(c)[:-100])),
        {("error", "unreadable", "tumour")},
    ),
    "complex": (another_kind(np.complex64), {("error", "unreadable", "t2")}),
    "flat-affine": (flat_affine, {("error", "unreadable", "t1")}),
    "4d": (four_volumes, {("error", "not-3d", "t1")}),
    "other-size": (changed("t2", lambda d: d[:-1]), {("error", "other-grid", "t2")}),
    "other-place": (moved(shifted(9), "flair"), {("error", "other-grid", "flair")}),
    "other-spacing": (moved(scaled(5, 5, 5.9), "t1"), {("error", "other-grid", "t1")}),
    "map-on-other-grid": (moved(shifted(30), "seg"), {("error", "other-grid", "tumour")}),
    "metres": (moved(scaled(0.005, 0.005, 0.005)), {("error", "scale", "t1")}),
    "thick-slices": (moved(scaled(5, 5, 7)), {("warning", "thick-slices", "t1")}),
    "anisotropic": (moved(scaled(1, 1, 5)), {("warning", "anisotropic", "t1")}),
    "oblique": (
        moved(turned(30)),
        {("warning", "oblique", r) for r in ("t1", "t1gd", "t2", "flair", "tumour")},
    ),
    "no-forms": (
        moved(np.diag([5.0, 5, 5, 1]), forms=False),
        {("warning", "no-orientation", r) for r in ("t1", "t1gd", "t2", "flair", "tumour")},
    ),
    "two-orientations": (two_orientations, {("warning", "two-orientations", "t2")}),
    "nan": (changed("t1", with_voxel(np.nan)), {("error", "not-finite", "t1")}),
    "infinite": (changed("t1gd", with_voxel(np.inf)), {("error", "not-finite", "t1gd")}),
    "z-score": (changed("flair", z_score), {("error", "negative", "flair")}),
    "ct": (
        changed("t2", lambda d: np.where(d > 0, d / 20, np.float32(-1024))),
        {("error", "negative", "t2")},
    ),
    "clipped": (
        changed("t2", lambda d: np.minimum(d, np.percentile(d[d > 0], 90))),
        {("warning", "saturated", "t2")},
    ),
    "binary": (changed("t1", lambda d: d > 0), {("error", "constant", "t1")}),
    "black": (changed("t1gd", lambda d: d * 0), {("error", "constant", "t1gd")}),
    "all-black": (all_black, {("error", "no-brain", "")}),
    "with-air": (with_air, {("warning", "not-stripped", "")}),
    "whole-head": (whole_head, {("warning", "not-stripped", "")}),
    "value-7": (changed("seg", lambda d: d // 4 * 7), {("error", "unknown-label", "tumour")}),
    "half-values": (changed("seg", lambda d: d / 2), {("error", "unknown-label", "tumour")}),
    "empty-map": (changed("seg", lambda d: d * 0), {("error", "empty-map", "tumour")}),
    "image-as-map": (
        lambda folder, images: write(path_of(folder, "seg"), images["flair"]),
        {("error", "unknown-label", "tumour")},
    ),
    "map-outside": (mirrored_map, {("warning", "map-outside", "tumour")}),
    "one-image-twice": (one_image_twice, {("error", "same-image", "")}),
    "zz-neighbours-file": (a_neighbours_file, {("error", "same-image", "t2")}),
    "zz-neighbour": (a_neighbours_images, {("error", "same-patient", "")}),
    "zz-neighbour-again": (a_neighbour_exported_anew, {("warning", "near-copy", "")}),
}


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Examination:
    """A data set of one defect a patient, and a few patients without any."""
    root = tmp_path_factory.mktemp("planted")
    for seed, (name, (plant, _)) in enumerate(DEFECTS.items()):
        plant(brats(root / f"site-{seed % 2}" / name, patient(seed)), patient(seed))
    for seed in range(GOOD, GOOD + 4):
        brats(root / "site-0" / f"good-{seed}", patient(seed))
    (root / "site-2").mkdir()
    return examine(find_patients(root, DataConfig()), DataConfig())


def found_of(examined: Examination, name: str) -> set[Found]:
    return {
        (finding.level, finding.kind, finding.role)
        for finding in examined.findings
        if finding.patient.endswith(f"/{name}") and finding.level is not Level.NOTE
    }


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found_and_named(examined: Examination, name: str) -> None:
    assert found_of(examined, name) == DEFECTS[name][1]


def test_there_are_enough_of_them() -> None:
    assert len(DEFECTS) >= 40


def test_patients_without_a_defect_are_not_blamed(examined: Examination) -> None:
    for seed in range(GOOD, GOOD + 4):
        assert found_of(examined, f"good-{seed}") == set()
    rest = [one for one in examined.findings if not one.patient]
    assert [str(one.problem) for one in rest] == [
        "site site-2: got no patient, wanted at least one"
    ]


def test_every_finding_says_what_is_wanted(examined: Examination) -> None:
    for finding in examined.findings:
        assert finding.problem.value
        assert finding.problem.wanted
