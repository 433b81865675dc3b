"""`medsynth-client release-check`: a hospital compares a synthetic set with its own patients.

The result is made of patients' data without any noise, so it stays at the site: it is written
beside the site's records, and a line in the audit log says what was checked, with what outcome.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from medsynth_client.audit import AuditEvent, AuditLog
from medsynth_client.hash_chain import utc_now
from medsynth_client.holding_out import Patients, patients_of
from medsynth_client.retention import PREPARED
from medsynth_client.site_file import SiteFile
from medsynth_common.dataset import (
    DataConfig,
    PatientFiles,
    check_patients,
    checked_patients,
    prepare,
)
from medsynth_common.dataset.source import FolderSource, Source, files_in
from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadData, Problem
from medsynth_common.learning.volumes import Volume
from medsynth_common.release_check import ReleaseCheck, Verdict, check_release
from medsynth_common.release_check.decision import checked_reason, override
from medsynth_common.synthetic_set import read_synthetic_set

RESULT: Final = "release-check.json"
_STAGE: Final = "release-check"


def run_release_check(
    folder: Path, synthetic: Path, *, held_out: Path | None, reason: str
) -> ReleaseCheck:
    """Check the set in `synthetic` against the patients of the site in `folder`.

    Args:
        folder: the site's, with its site.toml.
        synthetic: a synthetic set, with its dataset.json.
        held_out: patients that nothing was trained on, a folder each, named as the site's own;
            None for those of the site's own that site.toml does not train on: `held_out`, and
            whoever else is in its data folder.
        reason: why the set may leave even if it does not pass; empty for none.

    Raises:
        BadInput: site.toml, the set, a patient or the reason cannot be used.
        StorageFailed: the audit log cannot be written; then the result is not, either.

    """
    reason = checked_reason(reason, flag="--override")
    site = SiteFile.load(folder / "site.toml")
    patients = patients_of(site, folder)
    audit = AuditLog(folder / "audit.jsonl")
    volumes = read_synthetic_set(synthetic)
    identity = _Identity.of(synthetic)
    grid = tuple(next(iter(volumes.values())).labels.shape)
    training = patients.load_training(grid, cache=folder / PREPARED)
    others = _held_out(patients, grid, given=held_out, cache=folder / PREPARED)
    check = check_release(
        volumes,
        training=training,
        held_out=others if held_out is None else _none_of(training, others, held_out),
        seed=int(identity.sha256[:12], 16),
    )
    if reason and check.verdict is not Verdict.PASSED:
        check = override(check, reason)
    content = check.encoded()
    # First the log: a result without its line could be shown for another set.
    for event in _events(identity, check, hashlib.sha256(content).hexdigest()):
        audit.append(event)
    write_bytes(folder / RESULT, content)
    return check


def may_leave(check: ReleaseCheck) -> bool:
    """Whether the site lets the set out: only when it passed, or a person takes it on himself.

    What cannot be decided does not leave by default: here patients are at stake, and the site is
    the one who can supply held-out patients or give a reason.
    """
    return check.verdict is Verdict.PASSED or check.override is not None


@dataclass(frozen=True, kw_only=True)
class _Identity:
    """Which set this is: its folder's name, its size and the SHA-256 of all its files."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, folder: Path) -> "_Identity":
        digest, size = hashlib.sha256(), 0
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
            size += path.stat().st_size
        return cls(name=folder.resolve().name[:200], bytes=size, sha256=digest.hexdigest())


def _events(identity: _Identity, check: ReleaseCheck, result: str) -> Iterator[AuditEvent]:
    checked = AuditEvent(
        project=identity.name,
        stage=_STAGE,
        round=0,
        outcome="checked",
        error="" if check.verdict is Verdict.PASSED else str(check.verdict),
        bytes=identity.bytes,
        sha256=identity.sha256,
        plan_digest=result,
    )
    yield checked
    if check.override is not None:
        note = f"{check.override.who}: {check.override.reason}"
        changes = {"when": utc_now(), "outcome": "overridden", "error": "", "note": note}
        yield checked.model_copy(update=changes)


def _held_out(
    patients: Patients, grid: tuple[int, ...], *, given: Path | None, cache: Path
) -> Iterator[Volume]:
    source = patients.source
    data = source.data if isinstance(source, FolderSource) else DataConfig()
    shape = (grid[0], grid[1], grid[2])
    if given is None:
        yield from patients.load_held_out(grid, cache=cache)
    for files in _given(given, data) if given is not None else _left_over(source):
        ready = prepare(files, shape, data)
        yield Volume(image=torch.from_numpy(ready.image), labels=torch.from_numpy(ready.labels))


def _none_of(
    training: Iterable[Volume], others: Iterable[Volume], folder: Path
) -> Iterator[Volume]:
    """Pass on patients of a folder. Raises `BadData` at one that the site trains on.

    Who stands on both sides is told apart by no attack, and the set would pass.
    """
    known = {_content(volume) for volume in training}
    for number, volume in enumerate(others, start=1):
        if _content(volume) in known:
            raise BadData(
                Problem(
                    name=f"--held-out {folder}",
                    value=f"a patient, number {number} by name, whom the site trains on",
                    wanted="patients that nothing was trained on",
                    mend="leave --held-out out for those that site.toml holds out",
                )
            )
        yield volume


def _content(volume: Volume) -> bytes:
    digest = hashlib.sha256(volume.image.numpy().tobytes())
    digest.update(volume.labels.numpy().tobytes())
    return digest.digest()


def _given(folder: Path, data: DataConfig) -> list[PatientFiles]:
    flat = data.model_copy(update={"sites": None, "one_site_per_patient": True})
    found = checked_patients(folder, flat)
    return [files for patients in found.values() for files in patients]


def _left_over(source: Source) -> list[PatientFiles]:
    """The site's patients that it does not train on and whose files are whole."""
    if not isinstance(source, FolderSource):
        return []
    found = files_in(Path(source.root), source.data, source.site)
    others = [files for files in found if files.name not in source.patients]
    # One at a time: a damaged patient may be the very reason why it is not trained on.
    return [files for files in others if not check_patients({files.site: [files]}, source.data)]
