"""Is this a data set one can train on? Every problem of every patient, told at once.

1. names       who is at which site, which files are there
2. headers     grids, orientation, spacing: seconds, whatever the volumes' size
3. voxels      intensities, label maps, whether the skull was stripped
4. patients    compared with each other: the same one twice
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from medsynth_common.dataset.checks.copies import copies
from medsynth_common.dataset.checks.headers import check_headers
from medsynth_common.dataset.checks.maps import no_tumour
from medsynth_common.dataset.checks.names import Sites, files_of, membership
from medsynth_common.dataset.checks.voxels import Examined, check_voxels
from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.files import PatientFiles
from medsynth_common.dataset.finding import Examination, Finding, Level
from medsynth_common.dataset.layout import find_patients
from medsynth_common.errors import Problem

#: Told while it goes on: what is being looked at, how many patients are done, of how many.
Progress = Callable[[str, int, int], None]

#: A patient of four contrasts takes half a gigabyte while it is looked at.
_MOST_WORKERS: Final = 4

_Result = TypeVar("_Result")


def checked_patients(root: Path, config: DataConfig) -> dict[str, list[PatientFiles]]:
    """Find the patients below `root` and check them all; raise BadData with every error."""
    sites = find_patients(root, config)
    examine(sites, config).raise_errors()
    return sites


def check_patients(sites: Sites, config: DataConfig) -> list[Problem]:
    """Return every error of every patient, in the order of the sites; empty when all is well."""
    return [finding.problem for finding in examine(sites, config).of(Level.ERROR)]


def examine(
    sites: Sites, config: DataConfig, *, progress: Progress = lambda *_: None
) -> Examination:
    """Look at every patient and return all that was found, in the order of the sites.

    Threads share the work: reading and decompressing leave Python's lock alone.
    """
    everyone = {(files.folder, files.name): files for site in sites.values() for files in site}
    patients = list(everyone.values())
    named = [[*files_of(files)] for files in patients]
    headers = _each(check_headers, patients, "headers", progress)

    def look(index: int) -> Examined:
        files, readable = patients[index], set(headers[index][0])
        return check_voxels(files, config, readable)

    seen = _each(look, range(len(patients)), "voxels", progress)
    findings: list[Finding] = [*membership(sites)]
    for names, (_, header_findings), examined in zip(named, headers, seen, strict=True):
        findings += [*names, *header_findings, *examined.findings]
    findings += copies([one.fingerprint for one in seen if one.fingerprint is not None])
    tumour_free = [one for one, found in zip(patients, seen, strict=True) if found.tumour is False]
    if len(tumour_free) == len(patients) or not config.allow_no_tumour:
        findings += [no_tumour(files, config) for files in tumour_free]
    return Examination(
        patients={site: list(members) for site, members in sites.items()}, findings=findings
    )


def _each(
    look: Callable[..., _Result], items: Sequence[object], what: str, progress: Progress
) -> list[_Result]:
    """Look at every item in threads; the results are in the items' order."""
    results = []
    progress(what, 0, len(items))
    with ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1)) as workers:
        for done, result in enumerate(workers.map(look, items), start=1):
            results.append(result)
            progress(what, done, len(items))
    return results
