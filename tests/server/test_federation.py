"""The loop against sites that answer, refuse, lie and break."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from medsynth_common.plan import RoundPlan, SegmentSettings, Stage
from medsynth_common.update import SiteUpdate, UpdateHeader
from medsynth_common.wire.records import plan_from_records, update_to_records
from medsynth_common.wire.rounding import STEPS, rounded
from medsynth_server import federation as federation_module
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.config import RunConfig
from medsynth_server.engines.by_messages import ByMessages
from medsynth_server.federation import Federation, NoAnswer, Stopped
from medsynth_server.flower import error_reply, reply, start_identity
from medsynth_server.model import Model
from medsynth_server.progress import LineProgress
from medsynth_server.record import Arm, NoteEvent, RoundEvent, RunLog, read_events
from medsynth_server.shelf import Shelf
from medsynth_server.stages.asking import Asking
from medsynth_server.strategies import Answer, Combiner
from tiny_run import tiny_config

START = {"segmenter.w": torch.zeros(3), "segmenter.n": torch.zeros(2, 2)}
Sites = Mapping[str, Callable[[Message, RoundPlan], Message]]


def honest(plan: RoundPlan, add: float = 1.0) -> SiteUpdate:
    header = UpdateHeader(
        run=plan.header.run,
        site=plan.header.site,
        stage=plan.header.stage,
        round=plan.header.round,
        plan_digest=plan.digest(),
        declared_patients=3,
        epsilon=0.5,
        cap=1.0,
        delta=1e-3,
    )
    return SiteUpdate(header=header, weights={k: t + add for k, t in plan.weights.items()}, own={})


def good(question: Message, plan: RoundPlan) -> Message:
    return reply(update_to_records(honest(plan)), question)


def failing(name: str) -> Callable[[Message, RoundPlan], Message]:
    return lambda question, plan: error_reply(name, question)


@dataclass
class Grid(ByMessages):
    """Sites as functions, in the order of their names."""

    sites: Sites
    asked: list[RoundPlan] = field(default_factory=list)

    def get_node_ids(self) -> Iterable[int]:
        return [1000 + index for index in range(len(self.sites))]

    def site_of(self, node: int) -> str:
        return sorted(self.sites)[node - 1000]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        for message in messages:
            plan = plan_from_records(message.content)
            self.asked.append(plan)
            yield self.sites[self.site_of(message.metadata.dst_node_id)](message, plan)


class Averaging:
    """A stage of two tensors and nothing else."""

    name = Stage.SEGMENT

    def __init__(self, rounds: int, config: RunConfig | None = None) -> None:
        self.rounds = rounds
        self._asking = Asking(run="test", config=config or tiny_config(), public_seed=1)
        self._combiner = Combiner("fedavg")

    def plan(self, model: Model, site: str, round: int) -> RoundPlan | None:
        return self._asking.plan(
            stage=self.name,
            round=round,
            site=site,
            settings=SegmentSettings(),
            mechanisms=[],
            weights=model.part("segmenter"),
        )

    def combine(self, model: Model, round: int, answers: Sequence[Answer]) -> Model:
        weights, _ = self._combiner.combine(
            model.part("segmenter"), answers, round=round, memory={}
        )
        return model.updated(weights)

    def after(self, model: Model, round: int) -> tuple[Model, Mapping[str, float]]:
        return model, {"public": float(round)}


@dataclass
class Bench:
    """A federation in a folder."""

    folder: Path

    def federation(self, sites: Sites, *, rounds: int = 1) -> Federation:
        start_identity(run_id=1)
        return Federation(
            arm=Arm.PRIVATE,
            stages=[Averaging(rounds)],
            grid=Grid(sites),
            checkpoint=Checkpoint(self.folder / "c.safetensors"),
            log=RunLog(self.folder / "metrics.jsonl"),
            progress=LineProgress(StringIO()),
            deadline=10.0,
        )

    def run(self, sites: Sites, *, rounds: int = 1) -> Mapping[str, Tensor]:
        start = Model(networks=tiny_config().networks, tensors=START)
        with (federation := self.federation(sites, rounds=rounds)).progress:
            return federation.run(start).tensors

    @property
    def rounds(self) -> list[RoundEvent]:
        return [e for e in read_events(self.folder / "metrics.jsonl") if isinstance(e, RoundEvent)]

    @property
    def notes(self) -> list[str]:
        events = read_events(self.folder / "metrics.jsonl")
        return [event.text for event in events if isinstance(event, NoteEvent)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def _sent(change: Callable[[SiteUpdate], SiteUpdate]) -> Callable[[Message, RoundPlan], Message]:
    return lambda question, plan: reply(update_to_records(change(honest(plan))), question)


def _weight(name: str, tensor: Tensor) -> Callable[[Message, RoundPlan], Message]:
    return _sent(lambda update: replace(update, weights={**update.weights, name: tensor}))


def _header(**changes: object) -> Callable[[Message, RoundPlan], Message]:
    return _sent(lambda update: replace(update, header=update.header.model_copy(update=changes)))


def _records(**records: object) -> Callable[[Message, RoundPlan], Message]:
    def answer(question: Message, plan: RoundPlan) -> Message:
        content = update_to_records(honest(plan))
        for name, record in records.items():
            content[name] = record
        return reply(content, question)

    return answer


def _array(**changes: object) -> ArrayRecord:
    given = {"dtype": "float32", "shape": (3,), "stype": "numpy.ndarray", "data": b""} | changes
    return ArrayRecord({"segmenter.w": Array(**given)})


def _archive() -> bytes:
    stream = BytesIO()
    np.savez(stream, a=np.zeros(3, dtype=np.float32))
    return stream.getvalue()


def _vast() -> bytes:
    stream = BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**55,)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


HOSTILE = {
    "not a number": _weight("segmenter.w", torch.tensor([0.0, float("nan"), 0.0])),
    "infinite": _weight("segmenter.w", torch.tensor([0.0, float("inf"), 0.0])),
    "huge": _weight("segmenter.w", torch.tensor([0.0, 1e30, 0.0])),
    "an unknown key": _weight("segmenter.x", torch.zeros(1)),
    "a missing key": _sent(lambda u: replace(u, weights={"segmenter.w": u.weights["segmenter.w"]})),
    "no weights": _sent(lambda u: replace(u, weights={})),
    "another shape": _weight("segmenter.w", torch.zeros(4)),
    "a shape that broadcasts": _weight("segmenter.w", torch.zeros(1)),
    "another type": _weight("segmenter.w", torch.zeros(3, dtype=torch.float64)),
    "a style that was not asked for": _sent(
        lambda u: replace(u, own={"style.code": START["segmenter.w"]})
    ),
    "another plan's digest": _header(plan_digest="0" * 64),
    "another site's name": _header(site="site-a"),
    "no records": lambda question, plan: reply(RecordDict(), question),
    "a header that is no JSON": _records(update=ConfigRecord({"header": b"\xff{"})),
    "a header with more in it": _records(update=ConfigRecord({"header": b'{"loss": 3}'})),
    "a header that is no bytes": _records(update=ConfigRecord({"header": "text"})),
    "an empty array": _records(weights=_array()),
    "an array of rubbish": _records(weights=_array(data=b"\x93NUMPY\x01\x00rubbish")),
    "a broken archive": _records(weights=_array(data=b"PK\x03\x04rubbish")),
    "an archive": _records(weights=_array(data=_archive())),
    "more than memory holds": _records(weights=_array(data=_vast())),
    "a pickle": _records(weights=_array(data=b"\x80\x04N.")),
    "an array of another library": _records(weights=_array(stype="torch.tensor")),
}


@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_a_hostile_answer_is_refused_by_name_and_the_round_goes_on(bench: Bench, what: str) -> None:
    found = bench.run({"site-a": good, "site-b": HOSTILE[what], "site-c": good})
    (event,) = bench.rounds
    assert event.refused == {"site-b": "BadMessage"}
    assert event.sites == ("site-a", "site-c")
    for name, tensor in START.items():
        torch.testing.assert_close(found[name], tensor + 1)


def rounding(question: Message, plan: RoundPlan) -> Message:
    update = honest(plan, add=-0.5)
    weights = rounded(update.weights, plan.weights, plan.header.update_bits)
    return reply(update_to_records(replace(update, weights=weights)), question)


def far_off(question: Message, plan: RoundPlan) -> Message:
    update = honest(plan)
    weights = rounded(update.weights, plan.weights, plan.header.update_bits)
    weights["segmenter.w"].fill_(0xFF)
    weights[STEPS].fill_(9e3)
    return reply(update_to_records(replace(update, weights=weights)), question)


def test_rounded_answers_are_restored_before_they_are_combined(bench: Bench) -> None:
    federation = bench.federation({"site-a": rounding, "site-b": far_off, "site-c": good})
    config = tiny_config({"federation": {"update_bits": 4}})
    federation = replace(federation, stages=[Averaging(1, config)])
    start = Model(networks=config.networks, tensors=START)
    with federation.progress:
        found = federation.run(start).tensors
    (event,) = bench.rounds
    # One that steers, and one that sends weights as they are where steps were asked for.
    assert event.refused == {"site-b": "BadMessage", "site-c": "BadMessage"}
    assert event.bytes_up == 2 + 2 + 2 * 4
    for name, tensor in START.items():
        torch.testing.assert_close(found[name], tensor - 0.5)


def adding(much: float) -> Callable[[Message, RoundPlan], Message]:
    return lambda question, plan: reply(update_to_records(honest(plan, add=much)), question)


@pytest.mark.parametrize("room", [0, 40, 1 << 20])
def test_answers_beyond_the_room_in_memory_wait_on_disk_and_count_all_the_same(
    room: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sum(tensor.numel() * tensor.element_size() for tensor in START.values())
    shelved: list[int] = []

    class Looking(Averaging):
        def combine(self, model: Model, round: int, answers: Sequence[Answer]) -> Model:
            shelved.append(sum(isinstance(a.update.weights, Shelf) for a in answers))
            return super().combine(model, round, answers)

    monkeypatch.setattr(federation_module, "_IN_MEMORY", room)
    sites = {f"site-{number}": adding(number) for number in range(5)}
    federation = replace(bench.federation(sites), stages=[Looking(2)])
    start = Model(networks=tiny_config().networks, tensors=START)
    with federation.progress:
        found = federation.run(start).tensors
    assert shelved == [max(0, 5 - room // one)] * 2
    for name, tensor in START.items():
        torch.testing.assert_close(found[name], tensor + 2 * 2.0)
    assert not [path for path in bench.folder.iterdir() if path.name.startswith(".")]


def test_a_sites_error_reaches_the_record_by_its_name(bench: Bench) -> None:
    bench.run({"site-a": good, "site-b": failing("PolicyRefusal" * 20)})
    (event,) = bench.rounds
    assert event.refused == {"site-b": ("PolicyRefusal" * 20)[:64]}


def test_the_record_tells_rounds_sites_losses_and_bytes(bench: Bench) -> None:
    bench.run({"site-a": good, "site-b": good}, rounds=2)
    assert [event.round for event in bench.rounds] == [1, 2]
    first = bench.rounds[0]
    assert first.losses == {"public": 1.0}
    assert first.sites == ("site-a", "site-b")
    assert (first.bytes_up, first.bytes_down) == (2 * 7 * 4, 2 * 7 * 4)


def test_no_answer_at_all_ends_the_run_and_says_why(bench: Bench) -> None:
    with pytest.raises(NoAnswer, match=r"segment round 1: .*\(site-a: TimedOut, site-b: BadMess"):
        bench.run({"site-a": failing("TimedOut"), "site-b": HOSTILE["huge"]})
    assert bench.rounds == []


def test_when_every_budget_is_spent_the_stage_ends_early_and_the_record_says_so(
    bench: Bench,
) -> None:
    def for_one_round(question: Message, plan: RoundPlan) -> Message:
        spent = plan.header.round > 1
        return error_reply("BudgetExhausted", question) if spent else good(question, plan)

    found = bench.run({"site-a": for_one_round, "site-b": for_one_round}, rounds=5)
    assert [event.round for event in bench.rounds] == [1]
    torch.testing.assert_close(found["segmenter.w"], START["segmenter.w"] + 1)
    (note,) = bench.notes
    assert "segment ended before round 2 of 5" in note
    assert "budget" in note
    # Asked again, the stage counts as finished.
    again = bench.run({"site-a": good, "site-b": good}, rounds=5)
    torch.testing.assert_close(again["segmenter.w"], START["segmenter.w"] + 1)
    assert bench.notes == [note]


def test_one_spent_budget_does_not_end_the_stage(bench: Bench) -> None:
    bench.run({"site-a": good, "site-b": failing("BudgetExhausted")}, rounds=2)
    assert [event.refused for event in bench.rounds] == [{"site-b": "BudgetExhausted"}] * 2
    assert bench.notes == []


def test_spent_budgets_beside_broken_sites_are_no_early_end(bench: Bench) -> None:
    with pytest.raises(NoAnswer):
        bench.run({"site-a": failing("BudgetExhausted"), "site-b": failing("TimedOut")})


def sometimes(*outcomes: str) -> Callable[[Message, RoundPlan], Message]:
    """A site that fails by these names in turn, and then answers."""
    left = list(outcomes)

    def say(question: Message, plan: RoundPlan) -> Message:
        return error_reply(left.pop(0), question) if left else good(question, plan)

    return say


def with_quorum(bench: Bench, sites: Sites, *, repeats: int = 2) -> list[RoundPlan]:
    """Train with a quorum of two; what was asked, in order."""
    federation = replace(bench.federation(sites), quorum=2, repeats=repeats)
    try:
        federation.run(Model(networks=tiny_config().networks, tensors=START))
    finally:
        assert isinstance(federation.grid, Grid)
    return federation.grid.asked


def test_a_round_without_a_quorum_is_asked_again_of_those_who_are_missing(bench: Bench) -> None:
    asked = with_quorum(bench, {"site-a": good, "site-b": sometimes("TimedOut", "NodeLost")})
    assert [plan.header.site for plan in asked] == ["site-a", "site-b", "site-b", "site-b"]
    assert len({plan.digest() for plan in asked if plan.header.site == "site-b"}) == 1
    (event,) = bench.rounds
    assert event.sites == ("site-a", "site-b")
    assert event.refused == {}
    assert event.bytes_up == 2 * 7 * 4
    assert event.bytes_down == 4 * 7 * 4
    assert event.told["site-a"].epsilon == 0.5


def test_a_round_that_never_has_a_quorum_ends_the_run(bench: Bench) -> None:
    with pytest.raises(NoAnswer, match=r"1 of 2 .*\(site-b: TimedOut\); 2 are needed") as told:
        with_quorum(bench, {"site-a": good, "site-b": failing("TimedOut")}, repeats=1)
    assert told.value.exit_code == 3
    assert bench.rounds == []


def test_budgets_that_leave_no_quorum_end_the_stage_and_nobody_is_asked_again(
    bench: Bench,
) -> None:
    asked = with_quorum(bench, {"site-a": good, "site-b": failing("BudgetExhausted")})
    assert len(asked) == 2
    (note,) = bench.notes
    assert "budget" in note


def test_the_weights_of_a_round_are_hashed_once_for_all_sites(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = bench.federation({"site-a": good, "site-b": good, "site-c": good})
    model = Model(networks=tiny_config().networks, tensors=START)
    first, *others = federation._plans(federation.stages[0], model, 1).values()
    digests = {first.digest()}
    monkeypatch.setattr("medsynth_common.tensors.bytes_of", lambda _: pytest.fail("hashed again"))
    assert len(digests | {plan.digest() for plan in others}) == 3


def test_answers_are_combined_in_the_order_of_names_whoever_was_first(bench: Bench) -> None:
    with_quorum(bench, {"site-a": sometimes("TimedOut"), "site-b": good})
    assert bench.rounds[0].sites == ("site-a", "site-b")


def test_a_run_that_is_asked_to_stop_ends_after_its_round_and_goes_on_later(bench: Bench) -> None:
    sites = {"site-a": good, "site-b": good}
    start = Model(networks=tiny_config().networks, tensors=START)
    stopping = replace(bench.federation(sites, rounds=3), stopping=lambda: True)
    with pytest.raises(Stopped, match="segment round 1"):
        stopping.run(start)
    assert [event.round for event in bench.rounds] == [1]
    found = bench.run(sites, rounds=3)
    torch.testing.assert_close(found["segmenter.w"], START["segmenter.w"] + 3)


class Crash(Exception):
    """Stands for the process's end."""


@pytest.mark.parametrize("where", ["asking", "recording", "remembering"])
def test_a_crash_anywhere_in_a_round_loses_neither_the_round_nor_its_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    undisturbed = Bench(bench.folder / "undisturbed")
    undisturbed.folder.mkdir()
    wanted = undisturbed.run({"site-a": good}, rounds=3)

    def crash(*given: object, **more: object) -> None:
        raise Crash

    def dying(question: Message, plan: RoundPlan) -> Message:
        if plan.header.round == 2 and where == "asking":
            raise Crash
        return good(question, plan)

    with monkeypatch.context() as broken:
        original = Checkpoint.store

        def store(self: Checkpoint, model: Model, done: object) -> None:
            if done.rounds["segment"] == 2:  # type: ignore[attr-defined] # a Done
                raise Crash
            original(self, model, done)  # type: ignore[arg-type]

        if where == "recording":
            append = RunLog.append
            broken.setattr(
                RunLog,
                "append",
                lambda log, event: crash() if event.round == 2 else append(log, event),
            )
        if where == "remembering":
            broken.setattr(Checkpoint, "store", store)
        with pytest.raises(Crash):
            bench.run({"site-a": dying}, rounds=3)
    found = bench.run({"site-a": good}, rounds=3)
    assert [event.round for event in bench.rounds] == [1, 2, 3]
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor)


def test_a_finished_training_asks_nobody(bench: Bench) -> None:
    found = bench.run({"site-a": good}, rounds=2)
    again = bench.run({"site-a": failing("TimedOut")}, rounds=2)
    assert torch.equal(found["segmenter.w"], again["segmenter.w"])
