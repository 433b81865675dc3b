"""The second look: what a node checks again before anything goes up.

The trainer's gate has looked already. The node is another process, without the patients, and
takes nobody's word for it.
"""

from medsynth_client.site_file import SiteFile
from medsynth_common.errors import BadMessage, MedsynthError, Problem, UnsafeRelease
from medsynth_common.plan import RoundPlan
from medsynth_common.update import SiteUpdate, check_tensors
from medsynth_common.wire.forms import expected_update
from medsynth_common.wire.parts import update_tensors


class TrainerRefused(MedsynthError):
    """The trainer answered with the name of an error; that `name` may go up, and no more."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the trainer answered {name}")
        self.name = name


def check_again(answer: SiteUpdate | str, plan: RoundPlan, site: SiteFile) -> SiteUpdate:
    """Give the update when it may go up as the answer to `plan`.

    Raises:
        TrainerRefused: there is none, but the name of an error.
        UnsafeRelease: it is another plan's, of another form, not finite, too large, or without
            the seal that this site's answers bear.

    """
    if isinstance(answer, str):
        # A class's name, and not a text that looks like one.
        raise TrainerRefused(answer if answer.isidentifier() else BadMessage.__name__)
    problems = [*_address_problems(answer, plan, site), *_form_problems(answer, plan, site)]
    if problems:
        raise UnsafeRelease("\n".join(map(str, problems)))
    return answer


def _address_problems(update: SiteUpdate, plan: RoundPlan, site: SiteFile) -> list[Problem]:
    wanted = {
        "plan_digest": plan.digest(),
        "run": plan.header.run,
        "stage": plan.header.stage,
        "round": plan.header.round,
        "site": site.name,
        "declared_patients": site.declared_patients,
    }
    return [
        Problem(name=f"update: {name}", value=str(found), wanted=str(value))
        for name, value in wanted.items()
        if (found := getattr(update.header, name)) != value
    ]


def _form_problems(update: SiteUpdate, plan: RoundPlan, site: SiteFile) -> list[Problem]:
    problems: list[Problem] = []
    tensors = update_tensors(update)
    try:
        check_tensors(tensors, expected_update(plan))
    except BadMessage as error:
        problems += error.problems
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > site.policy.maximum_bytes:
        wanted = f"at most {site.policy.maximum_bytes} bytes"
        problems.append(Problem(name="update: size", value=f"{size} bytes", wanted=wanted))
    if update.seal is None and site.coordinator_key is not None:
        problems.append(Problem(name="update: seal", value="none", wanted="this site's"))
    return problems
