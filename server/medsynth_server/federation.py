"""The one thing: a round. Plans go down, updates come up, the coordinator makes one step.

`Federation.run` is the whole loop; a stage says what to ask and what to make of the answers.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, runtime_checkable

from torch import Tensor

from medsynth_common.errors import BadMessage, BudgetExhausted, MedsynthError, Problem, TimedOut
from medsynth_common.plan import RoundPlan, Stage
from medsynth_common.tensors import HashedTensors, under
from medsynth_common.update import SiteUpdate, check_tensors
from medsynth_common.wire.forms import answered_weights, expected_update
from medsynth_common.wire.rounding import restored
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.model import Model
from medsynth_server.progress import Progress
from medsynth_server.record import Arm, NoisedMetric, NoteEvent, RoundEvent, RunLog, Told
from medsynth_server.shelf import Shelf, Shelves
from medsynth_server.strategies import Answer

#: So many bytes of a round's answers wait in memory to be combined; all others, on disk.
_IN_MEMORY: Final = 16 << 20


class FederatedStage(Protocol):
    """One part of a run."""

    name: Stage
    rounds: int

    def plan(self, model: Model, site: str, round: int) -> RoundPlan | None:
        """What to ask of a site; None when the round is the coordinator's alone."""

    def combine(self, model: Model, round: int, answers: Sequence[Answer]) -> Model:
        """Make one step of the answers, of which there is at least one."""

    def after(self, model: Model, round: int) -> tuple[Model, Mapping[str, float]]:
        """Do the coordinator's own part of the round; also gives losses, public ones.

        After the last round this puts the stage's result in its place, and so it does for a stage
        that ends early, where it is called for `rounds` without that round's answers.
        """


@runtime_checkable
class MeasuringStage(Protocol):
    """A stage that only measures: it may go unanswered, and a run does not depend on it."""

    def site_metrics(self, model: Model) -> Mapping[str, NoisedMetric]:
        """What the sites released about their own patients, with its noise."""


class SiteGrid(Protocol):
    """What the loop needs of an engine: plans go to nodes, updates come back.

    The engines carry them as Flower's messages; the loop does not see those, since one that holds
    a plan's weights for every site at once would need as much memory as there are sites.
    """

    def get_node_ids(self) -> Iterable[int]:
        """Every site's node."""

    def site_of(self, node: int) -> str:
        """The name of a node's site."""

    def ask(
        self, plans: Mapping[int, RoundPlan], *, timeout: float
    ) -> Iterator[tuple[int, SiteUpdate | str]]:
        """Ask nodes; gives each one's update, or the name of an error, as they come."""


class NoAnswer(TimedOut):
    """Too few sites gave a usable answer, and not because their budgets were spent."""


class Stopped(MedsynthError):
    """The operator asked the run to end; the same command goes on with it."""


@dataclass(kw_only=True)
class Round:
    """What became of one round's questions; `shelves` takes what is too much for memory."""

    shelves: Shelves
    questions: int = 0
    answers: list[Answer] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    _in_memory: int = 0

    def take(self, update: SiteUpdate) -> None:
        """Add a site's checked update: in memory the first few, however many sites there are."""
        if not isinstance(update.weights, Shelf):
            self._in_memory += (size := _size(update.weights))
            if self._in_memory > _IN_MEMORY:
                self._in_memory -= size
                update = replace(update, weights=self.shelves.put(update.weights))
        self.answers.append(Answer(update=update))

    @property
    def shortfall(self) -> str:
        """How many answered, and why the others did not."""
        told = ", ".join(f"{site}: {name}" for site, name in sorted(self.refused.items()))
        return f"{len(self.answers)} of {self.questions} sites gave a usable answer ({told})"

    def spent(self, quorum: int) -> bool:
        """Whether so many sites refused for a spent privacy budget that no quorum is left."""
        exhausted = list(self.refused.values()).count(BudgetExhausted.__name__)
        others = len(self.answers) + len(self.refused) - exhausted
        return exhausted > 0 and others < quorum

    def require(self, quorum: int, stage: str, round: int) -> None:
        """Raise `NoAnswer` unless so many sites answered."""
        if len(self.answers) >= quorum:
            return
        raise NoAnswer(f"{stage} round {round}: {self.shortfall}; {quorum} are needed")


@dataclass(frozen=True, kw_only=True)
class Federation:
    """A training of one arm: stages, sites, and where it is recorded.

    Attributes:
        arm: which of the run's trainings this is.
        stages: in order.
        grid: where the sites are; None when no stage asks any.
        checkpoint: remembers the model after every round.
        log: the run's record.
        progress: what a person sees.
        deadline: seconds to wait for a round's answers.
        quorum: how many sites must answer a round.
        repeats: how often a round without a quorum is asked again. A site that has answered
            gives the same answer again, which costs no privacy.
        stopping: whether to end after the round.

    """

    arm: Arm
    stages: Sequence[FederatedStage]
    grid: SiteGrid | None
    checkpoint: Checkpoint
    log: RunLog
    progress: Progress
    deadline: float
    quorum: int = 1
    repeats: int = 0
    stopping: Callable[[], bool] = lambda: False

    def run(self, start: Model) -> Model:
        """Train from `start`, or go on from the last finished round; returns the final model.

        Raises:
            NoAnswer: a round had too few usable answers, every time it was asked.
            Stopped: the operator asked for it; all finished rounds are remembered.

        """
        model, done = self.checkpoint.load(start)
        del start  # else a caller that has let it go would have it in memory to the end
        for stage in self.stages:
            if done.covers(stage.name, stage.rounds):
                continue
            self.progress.stage(stage.name, stage.rounds)
            for number in range(done.next_round(stage.name), stage.rounds + 1):
                began = time.monotonic()
                self.progress.round_started(number)
                asked = self._ask_for_quorum(stage, model, number)  # 1. ask, and check answers
                measures = isinstance(stage, MeasuringStage)
                if asked.spent(self.quorum) or (measures and not asked.answers):
                    self._end_early(stage, number, asked)
                    # As after the last round: an average over rounds, for one, takes its place.
                    model, _ = stage.after(model, stage.rounds)
                    break
                if asked.questions:
                    asked.require(self.quorum, stage.name, number)
                    model = stage.combine(model, number, asked.answers)  # 2. combine
                model, losses = stage.after(model, number)  # 3. the coordinator's own part
                metrics = stage.site_metrics(model) if isinstance(stage, MeasuringStage) else {}
                # Recorded before it is remembered: a crash between the two repeats the round and
                # its line, of which the last counts; the other way round would lose the line.
                self.log.append(
                    RoundEvent(
                        arm=self.arm,
                        stage=stage.name,
                        round=number,
                        seconds=time.monotonic() - began,
                        losses=losses,
                        site_metrics=metrics,
                        sites=tuple(a.update.header.site for a in asked.answers),
                        told={a.update.header.site: _told(a.update) for a in asked.answers},
                        refused=asked.refused,
                        bytes_up=asked.bytes_up,
                        bytes_down=asked.bytes_down,
                    )
                )
                done = done.with_round(stage.name, number)
                self.checkpoint.store(model, done)  # 4. remember
                self.progress.round_done(number, losses)
                for name, metric in metrics.items():
                    self.progress.note(f"{self.arm} arm: {name}: {metric.words}")
                if self.stopping():
                    raise Stopped(f"stopped after {stage.name} round {number}")
            done = done.with_stage(stage.name, stage.rounds)
            self.checkpoint.store(model, done)
        return model

    def _plans(self, stage: FederatedStage, model: Model, round: int) -> dict[int, RoundPlan]:
        if self.grid is None:
            return {}
        asked = {
            n: stage.plan(model, self.grid.site_of(n), round) for n in self.grid.get_node_ids()
        }
        hashed = HashedTensors()  # of the weights that all are asked with
        return {n: replace(plan, hashed=hashed) for n, plan in asked.items() if plan is not None}

    def _ask_for_quorum(self, stage: FederatedStage, model: Model, number: int) -> Round:
        """Ask until enough sites have answered; those that have are not asked again."""
        asked = Round(shelves=Shelves(self.checkpoint.path.parent))
        for attempt in range(1 + self.repeats):
            if attempt:
                self.progress.note(f"{stage.name} round {number}: {asked.shortfall}; asking again")
            plans = self._plans(stage, model, number)
            self._ask(plans, asked)
            if len(asked.answers) >= self.quorum or asked.spent(self.quorum) or not plans:
                break
        # In the order of their names, whoever was first: a sum of floats depends on its order.
        asked.answers.sort(key=lambda answer: answer.update.header.site)
        return asked

    def _ask(self, plans: Mapping[int, RoundPlan], asked: Round) -> None:
        """Ask the sites that have not answered yet, and add what they say."""
        have = {answer.update.header.site for answer in asked.answers}
        plans = {node: plan for node, plan in plans.items() if plan.header.site not in have}
        asked.questions, asked.refused = len(have) + len(plans), {}
        if self.grid is None or not plans:
            return
        began = time.monotonic()
        for node, plan in plans.items():
            size = _size(plan.weights)
            asked.bytes_down += size
            self.progress.site_asked(self.grid.site_of(node), size=size)
        for node, said in self.grid.ask(plans, timeout=self.deadline):
            site = self.grid.site_of(node)
            answer = said if isinstance(said, str) else _checked(said, plans[node])
            error, size = (answer if isinstance(answer, str) else None), 0
            if isinstance(answer, str):
                asked.refused[site] = answer
            else:
                asked.take(answer)
                size = _size(expected_update(plans[node]))
                asked.bytes_up += size
            self.progress.site_done(
                site,
                seconds=time.monotonic() - began,
                epsilon=None if isinstance(answer, str) else answer.header.epsilon,
                cap=None if isinstance(answer, str) else answer.header.cap,
                error=error,
                size=size,
            )

    def _end_early(self, stage: FederatedStage, round: int, asked: Round) -> None:
        told = ", ".join(f"{site}: {name}" for site, name in sorted(asked.refused.items()))
        why = (
            "every site's privacy budget is spent"
            if asked.spent(self.quorum)
            else f"no site answered ({told})"
        )
        text = (
            f"{self.arm} arm: {stage.name} ended before round {round} of {stage.rounds}, "
            f"since {why}"
        )
        self.log.append(NoteEvent(text=text))
        self.progress.note(text)


def _checked(update: SiteUpdate, plan: RoundPlan) -> SiteUpdate | str:
    """Give the update when it answers this plan in the right form, else an error's name."""
    try:
        header, asked = update.header, plan.header
        said = (header.run, header.stage, header.round, header.site, header.plan_digest)
        if said != (asked.run, asked.stage, asked.round, asked.site, plan.digest()):
            raise BadMessage(
                Problem(name="update", value="another plan's answer", wanted="this plan's")
            )
        expected = expected_update(plan)
        # Apart, and so one tensor at a time: a large answer's weights are not in memory.
        check_tensors(update.weights, under("weights", expected))
        check_tensors(update.own, under("own", expected))
        if asked.update_bits == 32:
            return update
        start = answered_weights(plan)
        weights = restored(update.weights, start, asked.update_bits)
        check_tensors(weights, start)  # steps of an allowed size may add up to too much
    except BadMessage as error:
        return type(error).__name__
    return replace(update, weights=weights)


def _told(update: SiteUpdate) -> Told:
    header = update.header
    return Told(
        epsilon=header.epsilon,
        cap=header.cap,
        delta=header.delta,
        patients=header.declared_patients,
        rehearsal=header.rehearsal,
    )


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
