"""What headers tell, before a voxel is read: grids, orientation, spacing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from medsynth_common.dataset.files import PatientFiles
from medsynth_common.dataset.finding import About, Finding, size
from medsynth_common.errors import BadData
from medsynth_common.volumes import Header, read_header

#: Grids agree when no corner is further off than this share of a voxel: headers round.
_CORNER_TOLERANCE: Final = 0.1
#: Thicker slices than this show a brain in twenty pictures; thinner voxels are no clinical MRI.
_THICK_MM: Final = 6.0
_FINE_MM: Final = 0.2
_ANISOTROPY: Final = 4.0
#: An axis may lean so far, in degrees, before an array axis stops being "right" or "up".
TILT: Final = 15.0
#: qform and sform that agree as well as they are stored, in millimetres.
_FORM_MM: Final = 0.5

Headers = Mapping[str, Header]


def check_headers(files: PatientFiles) -> tuple[Headers, list[Finding]]:
    """Read and compare the headers of a patient's files; return those that can be read."""
    headers, findings = _read(files)
    for check in (_grids, _orientation, _spacing):
        findings += check(files, headers)
    return headers, findings


def usual_grid(headers: Headers) -> str:
    """Return the first role whose grid most of a patient's volumes share."""
    company = {
        role: sum(not _difference(other, header) for other in headers.values())
        for role, header in headers.items()
    }
    return max(company, key=lambda role: company[role])


def _read(files: PatientFiles) -> tuple[dict[str, Header], list[Finding]]:
    headers: dict[str, Header] = {}
    findings: list[Finding] = []
    read: dict[Path, Header] = {}
    for role, found in files.matches.items():
        if len(found) != 1:
            continue
        try:
            if found[0] not in read:
                read[found[0]] = read_header(found[0])
        except BadData as error:
            findings += unreadable(files, role, error)
            continue
        if finding := _channels(files, role, read[found[0]]):
            findings.append(finding)
        else:
            headers[role] = read[found[0]]
    return headers, findings


def unreadable(files: PatientFiles, role: str, error: BadData) -> list[Finding]:
    """Say of a patient's file what the reader said of it."""
    name, about = files.path(role).name, About(files=files)
    return [
        about.error("unreadable", role, f"{name}: {bad.value}", bad.wanted, bad.mend)
        for bad in error.problems
    ]


def _channels(files: PatientFiles, role: str, header: Header) -> Finding | None:
    """Say that a file does not hold the one volume it should, or return None."""
    about, channel = About(files=files), files.channels.get(role)
    if channel is None and header.channels > 1:
        value, mend = f"{header.channels} volumes in one file", "split it, as fslsplit does"
        return about.error("not-3d", role, value, "one 3D volume", mend)
    if channel is not None and channel >= header.channels:
        value, wanted = f"{header.channels} volumes in the file", f"a channel {channel}"
        return about.error("not-3d", role, value, wanted, "correct dataset.json")
    return None


def _grids(files: PatientFiles, headers: Headers) -> Iterator[Finding]:
    if not headers:
        return
    usual = usual_grid(headers)
    for role, header in headers.items():
        if difference := _difference(header, headers[usual]):
            wanted = f"the grid of {usual}, {size(headers[usual].shape)}"
            mend = "register it and export it on that grid; if it lies right, --fix resamples it"
            yield About(files=files).error(
                "other-grid", role, difference, wanted, mend, mendable=True
            )


def _difference(header: Header, reference: Header) -> str:
    """Say how a grid differs from another; empty when it does not."""
    if header.shape != reference.shape:
        return size(header.shape)
    distance = float(np.abs(header.corners - reference.corners).max())
    if distance > _CORNER_TOLERANCE * min(reference.spacing):
        return f"an affine that puts a corner {distance:.3g} mm away"
    return ""


def _orientation(files: PatientFiles, headers: Headers) -> Iterator[Finding]:
    about = About(files=files)
    for role, header in headers.items():
        if not header.placed:
            wanted = "one of them, or left and right are a guess"
            yield about.warning("no-orientation", role, "no qform and no sform", wanted)
        elif header.forms_differ > _FORM_MM:
            value = f"qform and sform {header.forms_differ:.3g} mm apart"
            mend = "programs differ in which they believe; medsynth takes the sform"
            yield about.warning("two-orientations", role, value, "one orientation", mend)
        if header.tilt > TILT:
            value = f"axes {header.tilt:.0f} degrees off right, anterior, superior"
            mend = "--fix resamples it straight; as it is, the brain lies at a slant"
            yield about.warning("oblique", role, value, "straight axes", mend, mendable=True)
    stored = sorted({header.axes for header in headers.values()} - {"RAS"})
    if stored:
        yield about.note("turned", "", f"axes stored as {', '.join(stored)}", "turned to RAS")


def _spacing(files: PatientFiles, headers: Headers) -> Iterator[Finding]:
    told = set()
    for role, header in headers.items():
        spacing = header.spacing
        value = f"voxels of {' x '.join(f'{side:.3g}' for side in spacing)} mm"
        if value in told:
            continue
        told.add(value)  # once for each grid: what all files share is one thing to look at
        about = About(files=files)
        if min(spacing) < _FINE_MM or max(spacing) > 10 * _THICK_MM:
            mend = "a header in metres or micrometres? put it right where it was exported"
            yield about.error("scale", role, value, "a head's voxels, in millimetres", mend)
        elif max(spacing) > _THICK_MM:
            wanted = f"slices of at most {_THICK_MM:g} mm"
            mend = "small lesions may lie between slices"
            yield about.warning("thick-slices", role, value, wanted, mend)
        elif max(spacing) / min(spacing) > _ANISOTROPY:
            wanted = f"sides that differ by at most {_ANISOTROPY:g} times"
            yield about.warning("anisotropic", role, value, wanted, "it will look stretched")
