"""Step release: the synthetic set leaves only after it was compared with every site's patients.

The set is made in `unchecked/`, and appears by one rename: as `synthetic/`, or, when its check
failed, as `withheld/`. Every step can be repeated, so the run may die between any two of them.
"""

from collections.abc import Sequence
from typing import Any, Final

from medsynth_common.durable import write_bytes
from medsynth_common.release_check import ReleaseCheck, Verdict, check_release
from medsynth_common.release_check.decision import override
from medsynth_common.release_check.result import read_release_check
from medsynth_common.synthetic_set import add_to_dataset, read_synthetic_set
from medsynth_server.config import RunConfig
from medsynth_server.progress import Progress
from medsynth_server.record import Arm
from medsynth_server.run_folder import RunFolder
from medsynth_server.simulated_sites import SimulatedSite

_FACT: Final = "release_check"


def release_set(
    folder: RunFolder,
    sites: Sequence[SimulatedSite],
    config: RunConfig,
    *,
    seed: int,
    anyway: str,
    progress: Progress,
) -> None:
    """Check the set, or take the check that was made, and move the set where it belongs.

    Args:
        folder: the run's; its `unchecked` or `withheld` holds a whole set.
        sites: with their training and held-out patients.
        config: of the run.
        seed: of the check's own draws.
        anyway: a person's reason to release a set that failed; empty for none.
        progress: told of the outcome.

    """
    if folder.synthetic.exists():
        return
    check = read_release_check(folder.release_check)
    where = folder.withheld if folder.withheld.exists() else folder.unchecked
    if check is None:
        progress.note("checking the synthetic set against all patients")
        check = _check(folder, sites, config, seed=seed)
        _write(folder, check)
    if anyway and not check.released:
        check = override(check, anyway)
        _write(folder, check)  # the decision is on record before the set appears
    add_to_dataset(where, {_FACT: _told(check)})
    target = folder.synthetic if check.released else folder.withheld
    if where != target:
        where.rename(target)
        progress.note(_outcome(check))


def _check(
    folder: RunFolder, sites: Sequence[SimulatedSite], config: RunConfig, *, seed: int
) -> ReleaseCheck:
    kept = folder.sites(Arm.PRIVATE)
    return check_release(
        read_synthetic_set(folder.unchecked),
        training=(
            volume
            for site in sites
            for volume in site.load_training(config, cache=kept / site.name / "prepared")
        ),
        held_out=(volume for site in sites for volume in site.load_held_out(config)),
        seed=seed,
    )


def _write(folder: RunFolder, check: ReleaseCheck) -> None:
    write_bytes(folder.release_check, check.encoded())


def _told(check: ReleaseCheck) -> dict[str, Any]:
    """What travels with the set: the verdict, what speaks against it, and who overrode it."""
    facts: dict[str, Any] = {"verdict": str(check.verdict)}
    if check.verdict is not Verdict.PASSED:
        facts["reasons"] = list(check.reasons)
    if check.override is not None:
        facts["released_anyway"] = check.override.model_dump(mode="json")
    return facts


def _outcome(check: ReleaseCheck) -> str:
    if check.override is not None:
        return f"release check {check.verdict}, released anyway: {check.override.reason}"
    where = "synthetic" if check.released else "withheld"
    return f"release check {check.verdict}; the set is in {where}/"
