"""`[data]`: how a folder of patients is named, laid out and labelled."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    model_validator,
)

from medsynth_common.dataset.files import ANATOMY_MAP, SUFFIXES, TUMOUR_MAP
from medsynth_common.labels import ANATOMY, CONTRASTS, TUMOUR, Contrast, Tissue
from medsynth_common.weights.shipped import SUFFIX, shipped


def _ending(*stems: str) -> tuple[str, ...]:
    return tuple(f"*{stem}{suffix}" for stem, suffix in product(stems, SUFFIXES))


#: BraTS file names, until 2022 and since 2023.
_BRATS_CONTRASTS: Final = {
    Contrast.T1: _ending("_t1", "-t1n"),
    Contrast.T1GD: _ending("_t1ce", "-t1c"),
    Contrast.T2: _ending("_t2", "-t2w"),
    Contrast.FLAIR: _ending("_flair", "-t2f"),
}
_BRATS_TUMOUR: Final = _ending("_seg", "-seg")
#: Ways to find tissues that are named by a word.
NETWORK, CLUSTERING = TISSUE_WAYS = ("network", "clustering")


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _inside_the_folder(globs: tuple[str, ...]) -> tuple[str, ...]:
    for glob in globs:
        if not glob or PurePosixPath(glob).is_absolute() or ".." in PurePosixPath(glob).parts:
            raise ValueError(f"a pattern inside the patient's folder, got {glob!r}")
    if not globs:
        raise ValueError("at least one pattern")
    return globs


def _tissue(value: Any) -> Any:
    if isinstance(value, str):
        names = {tissue.name.lower(): tissue for tissue in Tissue}
        if value.lower() not in names:
            raise ValueError(f"one of {', '.join(names)}, got {value!r}")
        return names[value.lower()]
    return value


Globs = Annotated[
    tuple[str, ...], BeforeValidator(_one_or_many), AfterValidator(_inside_the_folder)
]
NamedTissue = Annotated[
    Tissue,
    BeforeValidator(_tissue),
    PlainSerializer(lambda tissue: tissue.name.lower(), return_type=str, when_used="json"),
]


def _way_to_tissues(value: str) -> str:
    weights = value.endswith(SUFFIX) and PurePath(value).is_absolute()
    if value not in TISSUE_WAYS and not weights:
        raise ValueError(
            f"network, clustering, or the absolute path of a .safetensors file, got {value!r}"
        )
    return value


Tissues = Annotated[str, AfterValidator(_way_to_tissues)]


class DataConfig(BaseModel):
    """How a folder of patients is to be read; the defaults read BraTS, BIDS and MSD.

    Attributes:
        layout: how the folder is laid out; `auto` looks. See `dataset/layout.py`.
        contrasts: a file pattern for each contrast, inside the patient's folder. A list of
            patterns is tried in order, the first that matches wins; a contrast left out keeps
            its default.
        tumour: the pattern(s) of the tumour map.
        anatomy: the pattern(s) of the anatomy map.
        tissues: what finds the tissues of patients without an anatomy map: `network`, the one that
            is shipped; `clustering` of intensities; or the absolute path of a `.safetensors` file
            that `medsynth-server pretrain anatomy` wrote.
        tumour_values: what the tumour map's values mean, `background` for one to pass over. 0 is
            always background. A value not named here is a problem of the data. Left out: what the
            data set says (MSD), or BraTS values.
        anatomy_values: the same for the anatomy map.
        sites: a CSV of `site,patient` rows (or FeTS' `Partition_ID,Subject_ID`), its path
            relative to the data folder. Left out: such a CSV in the data folder, if there is one.
        one_site_per_patient: every folder is one patient, and a site of its own.
        allow_no_tumour: a tumour map may be empty (a healthy patient), as long as not all are.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Literal["auto", "sites", "patients", "files", "bids", "msd"] = "auto"
    contrasts: Mapping[Contrast, Globs] = _BRATS_CONTRASTS
    tumour: Globs = _BRATS_TUMOUR
    anatomy: Globs | None = None
    tissues: Tissues = "network"
    tumour_values: Mapping[int, NamedTissue] | None = None
    anatomy_values: Mapping[int, NamedTissue] = {int(tissue): tissue for tissue in ANATOMY}
    sites: Path | None = None
    one_site_per_patient: bool = False
    allow_no_tumour: bool = False

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("contrasts"), Mapping):
            return {**given, "contrasts": {**_BRATS_CONTRASTS, **given["contrasts"]}}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_values("tumour_values", self.tumour_values or {}, (Tissue.BACKGROUND, *TUMOUR))
        _check_values("anatomy_values", self.anatomy_values, ANATOMY)
        if self.sites is not None and self.one_site_per_patient:
            raise ValueError("sites and one_site_per_patient exclude each other, got both")
        if self.layout == "sites" and (self.sites is not None or self.one_site_per_patient):
            raise ValueError("layout sites has the sites in its folders; leave the others out")
        return self

    @property
    def tissue_weights(self) -> Path | None:
        """The weights that find tissues; None where an anatomy map or clustering does."""
        if self.anatomy is not None or self.tissues == CLUSTERING:
            return None
        return shipped("anatomy") if self.tissues == NETWORK else Path(self.tissues)

    @property
    def patterns(self) -> dict[str, tuple[str, ...]]:
        """The patterns of every file a patient must have, by what the file is for."""
        maps = {TUMOUR_MAP: self.tumour, ANATOMY_MAP: self.anatomy}
        wanted = {contrast: self.contrasts[contrast] for contrast in CONTRASTS} | maps
        return {str(role): globs for role, globs in wanted.items() if globs is not None}


def _check_values(name: str, values: Mapping[int, Tissue], allowed: tuple[Tissue, ...]) -> None:
    for value, tissue in values.items():
        if tissue not in allowed:
            names = ", ".join(tissue.name.lower() for tissue in allowed)
            raise ValueError(f"{name}: {value} must mean one of {names}, got {tissue.name.lower()}")
    if values.get(0, Tissue.BACKGROUND) is not Tissue.BACKGROUND:
        raise ValueError(f"{name}: 0 must mean background, got {values[0].name.lower()}")
