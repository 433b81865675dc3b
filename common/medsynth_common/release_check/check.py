"""The release check: everything that is asked of a synthetic set before it may leave."""

from collections.abc import Iterable, Mapping

from medsynth_common.learning.volumes import Volume
from medsynth_common.release_check.membership import attack_membership, enough_to_attack
from medsynth_common.release_check.nearness import find_copies, find_duplicates
from medsynth_common.release_check.reference import public_reference
from medsynth_common.release_check.result import ReleaseCheck, overall
from medsynth_common.release_check.signature import describe


def check_release(
    synthetic: Mapping[str, Volume],
    *,
    training: Iterable[Volume],
    held_out: Iterable[Volume],
    seed: int,
) -> ReleaseCheck:
    """Compare a synthetic set with the patients it may have been learnt from.

    Patients are taken one by one, so that they need not all be in memory. Nothing is noised: the
    result is made of their data and stays where they are.

    Args:
        synthetic: the set by its volumes' names; at least one.
        training: all patients that were trained on; at least one.
        held_out: patients of the same kind that nothing was trained on; may be none.
        seed: of the reference phantoms and the resampling.

    """
    names = list(synthetic)
    grid = tuple(synthetic[names[0]].labels.shape)
    made, known, unknown = describe(synthetic.values()), describe(training), describe(held_out)
    attackable = enough_to_attack(known, unknown)
    reference = describe(public_reference(grid, seed=seed) if attackable else ())
    nearness = find_copies(names, made, known, unknown)
    duplicates = find_duplicates(names, made)
    attacks = attack_membership(made, known, unknown, reference, seed=seed)
    return ReleaseCheck(
        verdict=overall((*nearness, duplicates, *attacks)),
        seed=seed,
        training=len(known),
        held_out=len(unknown),
        synthetic=len(made),
        reference=len(reference),
        nearness=nearness,
        duplicates=duplicates,
        attacks=attacks,
    )
