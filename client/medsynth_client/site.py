"""The story of a round at a hospital, on one page.

1. seal    is it the coordinator's word, to this site, said once?
2. look    has this very plan been answered already? then give that answer again
3. check   is it a plan, of a round still to come, that the site's policy allows?
4. charge  write what it costs into the ledger, on disk, before any noise is drawn
5. train   on the patients, here
6. gate    check, and write into the audit log, what is about to leave
7. keep    answer and state, in one file, whole or not at all
8. confirm in the ledger that the release went out

Whatever ends a plan before the gate is written into the audit log too, by the error's name.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from medsynth_client.audit import AuditLog
from medsynth_client.credentials import load_credentials
from medsynth_client.gate import Gate
from medsynth_client.holding_out import LEDGER, patients_of
from medsynth_client.keeping import Keeping, Kept
from medsynth_client.ledger import Ledger, Receipt
from medsynth_client.order import Order, Outcome
from medsynth_client.policy import check_plan
from medsynth_client.retention import PREPARED, STATE
from medsynth_client.site_file import SiteFile
from medsynth_client.spending import epsilon_of
from medsynth_client.stages import WORK
from medsynth_client.status_file import StepsTold
from medsynth_common.errors import AlreadyAnswered, Problem, WrongAddress
from medsynth_common.learning.volumes import Volume
from medsynth_common.plan import RoundPlan
from medsynth_common.privacy.randomness import (
    Randomness,
    SimulatedRandomness,
    SystemRandomness,
)
from medsynth_common.tensors import pack
from medsynth_common.update import SiteUpdate, UpdateHeader
from medsynth_common.wire.forms import answered_weights, check_plan_form, expected_update
from medsynth_common.wire.parts import update_from_tensors, update_tensors
from medsynth_common.wire.rounding import restored, rounded

log = logging.getLogger(__name__)


class Site:
    """One hospital's half of the federation: its patients, ledger, gate and memory."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        self.file = SiteFile.load(folder / "site.toml")
        self._folder = folder
        self._device = device
        self._policy = self.file.policy
        self._ledger = Ledger(
            folder / LEDGER,
            cap=self._policy.epsilon_cap,
            delta=self._policy.delta,
            epsilon=epsilon_of,
        )
        self._members = patients_of(self.file, folder)
        self._ledger.register_dataset(self._members.people)
        self._gate = Gate(self._policy, AuditLog(folder / "audit.jsonl"), self._ledger)
        self._keeping = Keeping(folder / STATE)
        self._credentials = load_credentials(folder, self.file.coordinator_key)
        self._patients: dict[tuple[int, ...], Sequence[Volume]] = {}

    def carry(self, plan: RoundPlan) -> SiteUpdate:
        """Carry out one plan.

        Raises:
            BadMessage: the plan does not hold what its stage needs.
            WrongAddress: the plan is another site's.
            AlreadyAnswered: the site has answered that round, and this is not its last plan.
            PolicyRefusal: the site's policy forbids it.
            BudgetExhausted: it would pass the site's cap.
            BadSignature, Expired, Replayed: its seal does not hold.

        And what `Ledger.reserve_all` and `Gate.release` raise. Whatever is raised before the
        gate is written into the audit log, where that can be.

        """
        header, digest = plan.header, plan.digest()
        with self._gate.refusals(
            plan_digest=digest, stage=header.stage, round=header.round, project=header.run
        ):
            self._check_address(plan)
            seal_answer = self._credentials.take(plan)  # 1. seal
            kept = self._keeping.load(header.run, digest)
            if kept.plan_digest == digest and kept.header is not None:  # 2. look
                return seal_answer(update_from_tensors(kept.header, kept.update))
            self._check(plan)  # 3. check
            if header.grid not in self._patients:
                # How long that takes tells how many they are: not to a plan that costs too much.
                self._ledger.require_room(header.mechanisms)
            self.patients(header.grid)  # files that cannot be read are not paid for
            receipts = self._charge(plan, digest)  # 4. charge
            outcome = self._train(plan, digest, kept)  # 5. train
            update = self._update(plan, digest, outcome)
            tensors = update_tensors(update)
        released = self._gate.release(  # 6. gate
            pack(tensors),
            tensors,
            expected=expected_update(plan),
            receipts=receipts,
            plan_digest=digest,
            stage=header.stage,
            round=header.round,
            project=header.run,
            meant=_meant(plan, update),
        )
        self._keeping.store(  # 7. keep
            Kept(plan_digest=digest, header=update.header, update=tensors, state=outcome.state)
        )
        for receipt in receipts:  # 8. confirm
            self._ledger.confirm(receipt, release_sha256=released.sha256)
        return seal_answer(update)

    def refuse(self, error: Exception) -> None:
        """Write down a message that was no plan for any site."""
        self._gate.refuse(error, plan_digest="", stage="", round=0, project="")

    def _check_address(self, plan: RoundPlan) -> None:
        if plan.header.site != self.file.name:
            raise WrongAddress(
                str(Problem(name="plan: site", value=plan.header.site, wanted=self.file.name))
            )

    def _check(self, plan: RoundPlan) -> None:
        header = plan.header
        check_plan(
            self._policy,
            stage=header.stage,
            round=header.round,
            mechanisms=header.mechanisms,
            patients=self.file.declared_patients,
            grid=header.grid,
        )
        check_plan_form(plan)
        # A run's stage goes forward. An old plan would be charged again, and would train what
        # the site keeps (critic, optimizers) from weights that the run has left behind.
        answered = self._ledger.answered(project=header.run, stage=header.stage)
        if header.round <= answered:
            raise AlreadyAnswered(
                f"run {header.run}, stage {header.stage}: round {answered} was answered, "
                f"and this is another plan for round {header.round}"
            )

    def _charge(self, plan: RoundPlan, digest: str) -> list[Receipt]:
        return self._ledger.reserve_all(
            project=plan.header.run,
            stage=plan.header.stage,
            round=plan.header.round,
            plan_digest=digest,
            mechanisms=plan.header.mechanisms,
        )

    def _train(self, plan: RoundPlan, digest: str, kept: Kept) -> Outcome:
        with StepsTold(self._folder) as tell_step:
            return WORK[plan.header.stage](
                Order(
                    plan=plan.header,
                    weights=plan.weights,
                    patients=self.patients(plan.header.grid),
                    declared=self.file.declared_patients,
                    state=kept.state,
                    randomness=self._randomness(plan, digest),
                    device=self._device,
                    tell_step=tell_step,
                )
            )

    def patients(self, grid: tuple[int, ...]) -> Sequence[Volume]:
        """The site's training patients on this grid; prepared once and cached on disk.

        Those of one grid are held in memory, however many grids are asked for.
        """
        if grid not in self._patients:
            self._patients = {}
            cache = self._folder / PREPARED
            self._patients = {grid: self._members.load_training(grid, cache=cache)}
        return self._patients[grid]

    def _randomness(self, plan: RoundPlan, digest: str) -> Randomness:
        header = plan.header
        if self.file.simulation_seed is None:
            return SystemRandomness()
        # A rehearsal: replayable on purpose, and its report says so.
        return SimulatedRandomness(
            self.file.simulation_seed, header.run, header.site, header.stage, digest
        )

    def _update(self, plan: RoundPlan, digest: str, outcome: Outcome) -> SiteUpdate:
        spent = self._ledger.spent_on(plan.header.run)
        header = UpdateHeader(
            run=plan.header.run,
            site=self.file.name,
            stage=plan.header.stage,
            round=plan.header.round,
            plan_digest=digest,
            declared_patients=self.file.declared_patients,
            epsilon=spent if math.isfinite(spent) else None,
            cap=cap if math.isfinite(cap := self._policy.epsilon_cap) else None,
            delta=self._policy.delta,
            rehearsal=self.file.simulation_seed is not None,
        )
        weights = rounded(outcome.weights, answered_weights(plan), plan.header.update_bits)
        return SiteUpdate(header=header, weights=weights, own=outcome.own)


def _meant(plan: RoundPlan, update: SiteUpdate) -> dict[str, Tensor]:
    """The update's tensors as the coordinator will read them."""
    start = answered_weights(plan)
    return {**restored(update.weights, start, plan.header.update_bits), **update.own}
