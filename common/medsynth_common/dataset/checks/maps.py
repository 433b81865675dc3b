"""What label maps tell: unknown values, empty maps, lesions outside the brain."""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.files import ANATOMY_MAP, TUMOUR_MAP, PatientFiles
from medsynth_common.dataset.finding import About, Finding
from medsynth_common.labels import TUMOUR, Tissue
from medsynth_common.volumes import Volume

#: So many of a map's unknown values are named; an image taken for a map has thousands.
_NAMED_VALUES: Final = 5
#: Share of a tumour that may lie outside the brain: masks are drawn generously.
_OUTSIDE: Final = 0.2


def check_maps(
    files: PatientFiles,
    volumes: Mapping[str, Volume],
    config: DataConfig,
    brain: NDArray[np.bool_] | None,
) -> Iterator[Finding]:
    """Check the tumour map and, where there is one, the anatomy map of a patient."""
    known = {TUMOUR_MAP: files.tumour_values, ANATOMY_MAP: config.anatomy_values}
    for role, values in known.items():
        if role in volumes:
            yield from _values(files, role, volumes[role].data, values)
    if TUMOUR_MAP in volumes and brain is not None and brain.any():
        yield from _place(files, volumes[TUMOUR_MAP].data, brain)


def no_tumour(files: PatientFiles, config: DataConfig) -> Finding:
    """Say that a patient has no tumour: where none may, or where none of all has one."""
    about = About(files=files)
    if config.allow_no_tumour:
        value, wanted = "no tumour, as in all patients", "a tumour in some"
        return about.error("no-tumour", TUMOUR_MAP, value, wanted)
    mend = "if patients may be healthy, set allow_no_tumour = true"
    return about.error("empty-map", TUMOUR_MAP, "an empty map", "labelled voxels", mend)


def _values(
    files: PatientFiles, role: str, data: NDArray[np.float32], values: Mapping[int, Tissue]
) -> Iterator[Finding]:
    about = About(files=files)
    found = np.unique(data)
    unknown = [value for value in found if value not in (0, *values)]
    if unknown:
        named = ", ".join(f"{value:g}" for value in unknown[:_NAMED_VALUES])
        more = f" and {len(unknown) - _NAMED_VALUES} more" if len(unknown) > _NAMED_VALUES else ""
        wanted = ", ".join(map(str, sorted({0, *values})))
        mend = f"say what it means in {role}_values"
        if len(unknown) > _NAMED_VALUES:
            mend = f"another kind of map, or an image? name the {role} map by the pattern {role}"
        yield about.error("unknown-label", role, f"label value {named}{more}", wanted, mend)
    elif not found.any() and role == ANATOMY_MAP:
        yield about.error("empty-map", role, "an empty map", "labelled voxels")


def _place(
    files: PatientFiles, data: NDArray[np.float32], brain: NDArray[np.bool_]
) -> Iterator[Finding]:
    marked = np.isin(data, [v for v, tissue in files.tumour_values.items() if tissue in TUMOUR])
    if marked.shape != brain.shape or not marked.any():
        return
    outside = float((marked & ~brain).sum() / marked.sum())
    if outside > _OUTSIDE:
        value = f"{outside:.0%} of it outside the brain"
        mend = "another patient's map, or one on another grid, turned or mirrored?"
        yield About(files=files).warning("map-outside", TUMOUR_MAP, value, "inside the brain", mend)
