"""An observer on the trainer's socket, and on all that a coordinator keeps, finds no patient.

Every byte between engine and trainer is recorded while `simulate --data` runs on three hospitals,
one of which has a file that goes bad; then the bytes, and every file outside the sites' own
folders, are searched. The report's pictures of real patients are a simulation's own and are not
made here. The tests after it plant a leak of each kind, and it is found.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tomli_w
import torch

from federation.secrets_of_patients import Secrets, secrets_of, unpacked
from federation.socket_observer import (
    Connection,
    Exchange,
    ObservedClient,
    SocketObserver,
    exchanges,
)
from federation.test_finished_run import command
from medsynth_client import trainer as trainer_file
from medsynth_client.audit import AuditLog
from medsynth_client.gate import Gate, Release
from medsynth_client.order import Order, Outcome
from medsynth_client.stages import WORK
from medsynth_client.trainer import Trainer
from medsynth_common.dataset import DataConfig
from medsynth_common.dataset.source import FolderSource, load_patients
from medsynth_common.errors import BadData
from medsynth_common.learning.volumes import Volume
from medsynth_common.plan import RoundPlan, Stage
from medsynth_common.update import SiteUpdate
from medsynth_common.volumes import read_volume, write_volume
from medsynth_common.wire import trainer_rpc
from medsynth_common.wire.parts import (
    plan_from_parts,
    plan_parts,
    update_from_parts,
    update_parts,
)
from medsynth_common.wire.site_pb2 import UpdatePart
from medsynth_common.wire.trainer_rpc import TrainerClient, serve
from medsynth_server.arm import ArmTraining
from medsynth_server.engines import local
from medsynth_server.measure import Measuring
from medsynth_server.model import Model
from medsynth_server.simulated_arm import SimulatedArm
from small_patients import BRATS_OLD, write_patient
from tiny import GRID, plan
from tiny_run import write_settings

#: Patients by their hospital; the last hospital's only patient has a file that goes bad.
HOSPITALS = {
    "hospital-a": ("anna-1970-03-02", "berta-1955-11-30"),
    "hospital-b": ("carl-1981-07-19",),
    "hospital-c": ("dora-1990-01-08",),
}
DATES = ("1970-03-02", "1955-11-30", "1981-07-19", "1990-01-08")
NAMES = ("anna", "berta", "carl-", "dora")
#: The real volumes' files, by the BraTS names under which the test shows them.
REAL = {
    "t1": "T1_*_brain_*.nii.gz",
    "t1gd": "T1POST_*_brain_*.nii.gz",
    "t2": "T2_*_brain_*.nii.gz",
    "flair": "FLAIR_*_brain_*.nii.gz",
    "seg": "GOLD_STANDARD_*.nii.gz",
}


def phantoms(root: Path) -> Path:
    """Hospitals of phantoms, as folders of NIfTI."""
    for seed, (hospital, name) in enumerate(_everyone()):
        write_patient(root / hospital / name, seed=seed)
    return root


def real_patients(root: Path, volumes: Path) -> Path:
    """The same hospitals, of real volumes under other names, as many as there are patients.

    Fewer volumes than patients are used again as other people, their left and right exchanged.
    """
    found = sorted(path for path in volumes.iterdir() if path.is_dir())
    for number, (hospital, name) in enumerate(_everyone()):
        (root / hospital / name).mkdir(parents=True)
        again, chosen = divmod(number, len(found))
        for role, glob in REAL.items():
            (file,) = found[chosen].glob(glob)
            shown = root / hospital / name / f"{name}{BRATS_OLD[role]}.nii.gz"
            if again:
                volume = read_volume(file)
                mirrored = np.ascontiguousarray(volume.data[::-1])
                write_volume(shown, mirrored, volume.affine, description="mirrored")
            else:
                shown.write_bytes(file.read_bytes())
    return root


def _everyone() -> list[tuple[str, str]]:
    return [(hospital, name) for hospital, names in HOSPITALS.items() for name in names]


def secrets(data: Path, prepared: Sequence[Volume]) -> Secrets:
    """What the data folder and the prepared patients hold."""
    files = sorted(data.rglob("*.nii.gz"))
    return secrets_of(
        [*NAMES, *DATES, str(data), *(file.name for file in files)],
        originals=[read_volume(file).data for file in files if "_seg" not in file.name],
        prepared=[image.numpy() for volume in prepared for image in volume.image],
        labels=[volume.labels.numpy() for volume in prepared],
    )


def stored_patients(sites: Path) -> list[Volume]:
    """What the trainers of a run prepared."""
    stored = map(safetensors.torch.load_file, sorted(sites.glob("*/prepared/*/*.safetensors")))
    return [Volume(image=one["image"], labels=one["labels"]) for one in stored]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What an observer saw of a run.

    Attributes:
        connections: to the trainers.
        sites: their folders, which are their own.
        outside: every file that is not.

    """

    connections: Sequence[Connection]
    sites: Sequence[Path]
    outside: Sequence[Path] = ()

    @property
    def exchanges(self) -> list[Exchange]:
        """Every plan and what came back for it."""
        return [one for connection in self.connections for one in exchanges(connection)]

    def faults(self, secrets: Secrets) -> list[str]:
        """Everything that should not have been seen, and every message without its line."""
        found = [
            f"socket: {what}"
            for connection in self.connections
            for content in (connection.up, connection.down)
            for what in secrets.found_in(bytes(content))
        ]
        for exchange in self.exchanges:  # once more without the frames in between
            content = b"".join(part.chunk for part in exchange.answer)
            found += [f"message: {what}" for what in secrets.found_in(content)]
        for file in self.outside:
            found += [f"{file.name}: {what}" for what in secrets.found_in(unpacked(file))]
        return sorted({*found, *self._unaudited()})

    def _unaudited(self) -> Iterator[str]:
        sent = Counter(_told_by(one) for one in self.exchanges if one.answer)
        told = Counter[tuple[Any, ...]]()
        for site in self.sites:
            for event in AuditLog(site / "audit.jsonl").read():
                line = (event.error,) if event.error else (event.sha256, event.bytes)
                told[(*line, event.plan_digest)] += 1
        yield from (f"no line in an audit log for {what}" for what in sent - told)
        yield from (f"no message for a line in an audit log: {what}" for what in told - sent)


def _told_by(exchange: Exchange) -> tuple[Any, ...]:
    """What the audit log must tell of an exchange: error, or SHA-256 and bytes; and the plan."""
    digest = plan_from_parts(exchange.plan).digest()
    answer = update_from_parts(exchange.answer)
    if isinstance(answer, str):
        return answer, digest
    assert answer.header.plan_digest == digest
    content = b"".join(part.chunk for part in exchange.answer)
    return hashlib.sha256(content).hexdigest(), len(content), digest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["phantoms", "ms_lesions"])
def test_an_observer_of_a_whole_run_sees_no_patient(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, volumes_folder: Path
) -> None:
    data = tmp_path / "archive-of-the-clinic"
    volumes = volumes_folder / "ms_lesions"
    if kind == "phantoms":
        if volumes.is_dir():
            pytest.skip("real patients are here to be looked for instead")
        phantoms(data)
    else:
        if not volumes.is_dir():
            pytest.skip(f"{kind} is absent from {volumes.parent}")
        real_patients(data, volumes)

    bad = sorted((data / "hospital-c").rglob("*_flair.nii.gz"))[0]
    good = bad.read_bytes()
    write_sites = SimulatedArm.write_sites

    def then_a_file_goes_bad(arm: SimulatedArm) -> None:
        write_sites(arm)
        bad.write_bytes(good[:-100])

    train = ArmTraining.run

    def then_it_is_mended(training: ArmTraining, public: Model) -> Model:
        trained = train(training, public)
        bad.write_bytes(good)  # the release check reads every patient
        return trained

    observers: list[SocketObserver] = []
    monkeypatch.setattr(ObservedClient, "observers", observers, raising=False)
    monkeypatch.setattr(local, "TrainerClient", ObservedClient)
    monkeypatch.setattr(SimulatedArm, "write_sites", then_a_file_goes_bad)
    monkeypatch.setattr(ArmTraining, "run", then_it_is_mended)
    monkeypatch.setattr(Measuring, "run", lambda *_: None)  # it pictures patients, on purpose
    settings, run = write_settings(tmp_path), tmp_path / "run"
    assert command(monkeypatch, "simulate", settings, "--data", data, "--out", run) == 0

    sites = sorted((run / "sites").iterdir())
    assert [site.name for site in sites] == sorted(HOSPITALS)
    seen = Seen(
        connections=[one for observer in observers for one in observer.connections],
        sites=sites,
        outside=[
            path
            for path in run.rglob("*")
            if path.is_file() and not path.is_relative_to(run / "sites")
        ],
    )
    # There was something to see: every round of every hospital, and the error of the bad file.
    names = {path.name for path in seen.outside}
    assert {"private.safetensors", "metrics.jsonl", "trainer-0.log", "report.html"} <= names
    answers = [update_from_parts(one.answer) for one in seen.exchanges]
    sent = Counter(one if isinstance(one, str) else one.header.site for one in answers)
    assert sent == {"hospital-a": 6, "hospital-b": 6, "BadData": 6}
    prepared = stored_patients(run / "sites")
    assert len(prepared) == 4
    assert seen.faults(secrets(data, prepared)) == []


# Planted leaks: the same observer, on a trainer in this process.


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Secrets]:
    """A hospital's folder with its patients prepared, and what must not leave it."""
    root = tmp_path_factory.mktemp("clinic")
    data = phantoms(root / "archive-of-the-clinic")
    site = root / "hospital-a"
    source = FolderSource(
        root=str(data), data=DataConfig(), site="hospital-a", patients=HOSPITALS["hospital-a"]
    )
    patients = load_patients(source, GRID, cache=site / "prepared")
    values = {
        "name": "hospital-a",
        "declared_patients": 2,
        "policy": {
            "epsilon_cap": 50.0,
            "delta": 1e-5,
            "stages": ["moments", "segment"],
            "minimum_patients": 1,
        },
        "source": source.model_dump(mode="json", exclude_none=True),
    }
    (site / "site.toml").write_text(tomli_w.dumps(values))
    return site, secrets(data, patients)


@pytest.fixture
def faults(clinic: tuple[Path, Secrets], tmp_path: Path, socket: Path) -> Callable[..., list[str]]:
    """Asks the clinic's trainer over an observed socket; gives what the observer finds."""

    def ask(*plans: RoundPlan, files: Sequence[Path] = ()) -> list[str]:
        site, known = clinic
        kept = (*site.glob("ledger*"), *site.glob("audit*"), *site.glob("state/*"))
        for record in kept:
            record.unlink()
        server = serve(Trainer([site], device=torch.device("cpu")), socket)
        observer = SocketObserver(socket)
        caller = TrainerClient(observer.socket)
        caller.describe(timeout=60)
        for asked in plans:
            try:
                list(caller.carry(plan_parts(asked), timeout=60))
            except Exception as error:
                logging.getLogger(__name__).info("the call ended: %s", type(error).__name__)
        caller.close()
        server.stop(grace=None).wait()
        observer.close()
        seen = Seen(connections=observer.connections, sites=[site], outside=files)
        return seen.faults(known)

    return ask


LEVEL, SEGMENT = plan(site="hospital-a"), plan(Stage.SEGMENT, site="hospital-a")


def test_a_trainer_that_leaks_nothing_passes(faults: Callable[..., list[str]]) -> None:
    assert faults(LEVEL, SEGMENT, replace(SEGMENT, weights={})) == []


def test_a_patient_s_name_in_an_error_is_found(
    faults: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(_: Order) -> Outcome:
        raise BadData("anna-1970-03-02: t1 is damaged")

    monkeypatch.setitem(WORK, Stage.MOMENTS, bad)
    assert faults(LEVEL) == []  # the name of the error alone

    def told(error: Exception) -> Any:
        return UpdatePart(failure={"name": f"{type(error).__name__}: {error}"})

    monkeypatch.setattr(trainer_file, "failure_part", told)
    found = faults(LEVEL)
    assert "socket: the text 'anna'" in found
    assert "socket: the text '1970-03-02'" in found


def test_a_patient_s_name_in_grpc_s_own_words_is_found(
    faults: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left alone, gRPC puts the text of whatever a handler raises into the trailers."""

    def raises(*_: object) -> Iterator[UpdatePart]:
        raise ValueError("anna-1970-03-02")
        yield

    monkeypatch.setattr(Trainer, "carry", raises)
    assert faults(LEVEL) == []
    monkeypatch.setattr(trainer_rpc, "_name_of", str)
    assert "socket: the text '1970-03-02'" in faults(LEVEL)


def _first_patient(order: Order) -> Volume:
    return order.patients[0]


LEAKS: dict[str, tuple[Callable[[Order], torch.Tensor], str]] = {
    "an image": (lambda order: _first_patient(order).image[1].flatten(), "voxels as <f4"),
    "a label map": (lambda order: _first_patient(order).labels.float().flatten(), "labels as <f4"),
    "bytes in floats": (
        lambda order: _first_patient(order).labels.flatten()[: 24**3 // 4 * 4].view(torch.float32),
        "labels as u1",
    ),
}


@pytest.mark.parametrize("what", LEAKS)
def test_voxels_in_a_tensor_are_found(
    faults: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    make, sign = LEAKS[what]
    honest = WORK[Stage.SEGMENT]

    def leaks(order: Order) -> Outcome:
        outcome = honest(order)
        name = max(outcome.weights, key=lambda name: outcome.weights[name].numel())
        weight = outcome.weights[name]
        everything = make(order)
        voxels = everything[len(everything) // 2 :][: weight.numel()]
        return replace(outcome, weights={**outcome.weights, name: voxels.view(weight.shape)})

    monkeypatch.setitem(WORK, Stage.SEGMENT, leaks)
    found = faults(SEGMENT)
    assert any(line.startswith("message: ") and sign in line for line in found), found


def test_a_message_without_its_line_is_found(
    faults: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_door(_: Gate, content: bytes, *_args: object, **_asked: object) -> Release:
        return Release(content=content, sha256=hashlib.sha256(content).hexdigest())

    monkeypatch.setattr(Gate, "release", open_door)
    (found,) = faults(LEVEL)
    assert found.startswith("no line in an audit log for ")


def test_a_message_of_other_bytes_than_its_line_is_found(
    faults: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(update: SiteUpdate) -> Iterator[UpdatePart]:
        own = {name: tensor + 1 for name, tensor in update.own.items()}
        return update_parts(replace(update, own=own))

    monkeypatch.setattr(trainer_file, "update_parts", other)
    assert len(faults(LEVEL)) == 2  # a message without a line, a line without its message


def test_a_patient_in_a_coordinator_s_file_is_found(
    faults: Callable[..., list[str]], clinic: tuple[Path, Secrets], tmp_path: Path
) -> None:
    log, picture = tmp_path / "trainer-0.log", tmp_path / "slice.bin"
    log.write_text("could not read berta_t1.nii.gz")
    (volume,) = (clinic[0].glob("prepared/*/volume.safetensors"),)
    image = safetensors.torch.load_file(sorted(volume)[0])["image"]
    picture.write_bytes(b"x" + image[0, :, :, 12].numpy().tobytes())
    found = faults(LEVEL, files=(log, picture))
    assert "trainer-0.log: the text 'berta'" in found
    assert any(line.startswith("slice.bin: ") and "voxels as <f4" in line for line in found)


def test_an_update_is_seen_as_it_was_sent(clinic: tuple[Path, Secrets], socket: Path) -> None:
    """A large message is cut into many frames; the observer puts it together again."""
    site, _ = clinic
    server = serve(Trainer([site], device=torch.device("cpu")), socket)
    observer = SocketObserver(socket)
    caller = TrainerClient(observer.socket)
    large = replace(SEGMENT, weights={"large": torch.rand(600_000)})
    got = update_from_parts(caller.carry(plan_parts(large), timeout=60))
    caller.close()
    server.stop(grace=None).wait()
    observer.close()
    (exchange,) = Seen(connections=observer.connections, sites=[site]).exchanges
    assert plan_from_parts(exchange.plan).digest() == large.digest()
    assert not isinstance(got, SiteUpdate)
    assert update_from_parts(exchange.answer) == got
