"""`medsynth-server synthesize`: a labelled data set of any size from a finished run.

    1. run       its generator and the sites' released styles; no patient's data is near
    2. labels    public label maps: drawn, or from a folder that says so
    3. edit      each map as asked, with parameters of its own
    4. paint     four contrasts, as one of the sites' scanners would have taken them
    5. describe  dataset.json, a data card, Croissant metadata

A volume depends on the seed and its own number alone, and is written before the next is made: the
same request gives the same bytes, whatever was killed in between, in memory that does not grow.
"""

import datetime
import hashlib
import itertools
import json
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from medsynth_common import __version__
from medsynth_common.editing import Edit, EditKind, apply_all, draw_edits
from medsynth_common.errors import BadConfig, BadData, BadInput, PolicyRefusal, Problem
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom.anatomy import Labels
from medsynth_common.set_layout import Layout, files_of, write_file
from medsynth_common.tensors import tensors_digest, unpack
from medsynth_server.arm import choose_device
from medsynth_server.config import RunConfig, load_config
from medsynth_server.label_source import FolderLabels, LabelSource, PhantomLabels
from medsynth_server.model import Model
from medsynth_server.progress_bar import counted
from medsynth_server.record import Arm, ArmPrivacy, PrivacyStatement, read_privacy
from medsynth_server.run_folder import RunFolder
from medsynth_server.set_description import Description, describe
from medsynth_server.set_folder import MadeVolume, Request, SetFolder, open_set
from medsynth_server.synthesis import Painter

MIX: Final = "mix"
PHANTOM: Final = "phantom"

#: Volumes painted at once, by device: on a CPU one; more were measured to be no faster there.
_BATCH: Final = {"cuda": 4}
#: What of a run's weights a set is painted with.
PAINTED_WITH: Final = ("generator", "styles", "variation")
#: Threads that compress and write: ISA-L lets others run meanwhile.
_WRITERS: Final = 4

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What is left of a run: enough to paint with, and what its training cost in privacy."""

    config: RunConfig
    model: Model
    sites: tuple[str, ...]
    privacy: ArmPrivacy
    statement: PrivacyStatement
    digest: str

    @classmethod
    def open(cls, path: Path) -> "FinishedRun":
        """Read a run's folder.

        Raises:
            BadData: it is no run's, the run is not finished, or its weights are damaged.
            PolicyRefusal: the run's own set failed its release check and is withheld.

        """
        folder = RunFolder(path)
        if folder.withheld.exists():
            problem = Problem(
                name=str(path),
                value="a run whose own synthetic set failed its release check",
                wanted="one whose set was released",
                mend="read the report; `simulate --release-anyway REASON` puts a reason on record",
            )
            raise PolicyRefusal(str(problem))
        weights = [folder.weights / f"{part}.safetensors" for part in PAINTED_WITH]
        wanted = (folder.config, folder.privacy, *weights)
        missing = [str(file.relative_to(path)) for file in wanted if not file.is_file()]
        if missing:
            raise BadData(
                Problem(
                    name=str(path),
                    value=f"no {', '.join(missing)}",
                    wanted="the folder of a finished run",
                    mend="give the --out of `simulate`, and let it finish",
                )
            )
        config = load_config(folder.config, {})
        tensors = {name: t for file in weights for name, t in unpack(file.read_bytes()).items()}
        statement = read_privacy(folder.privacy)
        assert statement is not None  # it is there
        run = cls(
            config=config,
            model=Model(networks=config.networks, tensors=tensors),
            sites=tuple(sorted({n.split(".")[1] for n in tensors if n.startswith("style.")})),
            privacy=statement.arms[Arm.PRIVATE],
            statement=statement,
            digest=tensors_digest(tensors).hex(),
        )
        run._check(path)
        return run

    def _check(self, path: Path) -> None:
        try:
            self.model.generator(torch.device("cpu"))
            self.model.variation  # noqa: B018 # asked for, to see that it is whole
            for site in self.sites:
                self.model.style(site)
        except (RuntimeError, KeyError) as error:
            raise BadData(
                Problem(
                    name=str(path / "weights"),
                    value="weights of other networks",
                    wanted="those that config.toml describes",
                    mend="give a run's folder as it was left",
                )
            ) from error


@dataclass(frozen=True, kw_only=True)
class Made:
    """A finished set."""

    folder: Path
    request: Request
    run: FinishedRun
    edits: Counter[str]

    def told(self, *, as_json: bool) -> str:
        """What the command says on standard output, as text or JSON."""
        request, privacy = self.request, Description.of(self.run.statement, self.run.privacy)
        edits = dict(sorted(self.edits.items()))
        if as_json:
            facts = {"folder": str(self.folder), "volumes": request.count, "seed": request.seed}
            facts |= {"layout": str(request.layout), "edits": edits}
            return json.dumps(facts | {"privacy": privacy.facts()}, indent=2)
        done = ", ".join(f"{kind} {number}" for kind, number in edits.items()) or "none"
        return (
            f"{request.count} volumes in {self.folder} ({request.layout}, seed {request.seed})\n"
            f"edits: {done}\nprivacy: {privacy.words().replace('**', '')}"
        )


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a person asks for; see `Request`."""

    count: int
    edits: tuple[EditKind, ...]
    style: str
    labels: Path | None
    layout: Layout
    licence: str
    seed: int | None


def synthesize(run_folder: Path, out: Path, wish: Wish) -> Made:
    """Make, or go on with, a set in the folder `out`.

    Raises:
        BadData: the run is not finished, or the label maps cannot be used.
        BadConfig: the wish cannot be kept, or `out` holds something else.
        PolicyRefusal: nobody says that the label maps are public.
        BadInput: no map can be edited as asked.

    """
    run = FinishedRun.open(run_folder)
    _check_style(wish.style, run.sites)
    device = choose_device(run.config.device)
    # Volumes are painted side by side, each on one thread: two threads on one hardly hasten it.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    request = _request(wish, run, device)
    x, y, z = run.config.grid
    # OpenBLAS' threads spin between products, on the cores that painters need.
    with threadpool_limits(1, user_api="blas"):
        folder_labels = FolderLabels.open(wish.labels, (x, y, z)) if wish.labels else None
        with open_set(out, request, new_seed=wish.seed is None) as folder:
            request = folder.request
            source = folder_labels or PhantomLabels(seed=request.seed, grid=(x, y, z))
            making = _Making(folder=folder, run=run, source=source, device=device)
            for volume in counted(making.rest(), "volumes", done=folder.done, total=request.count):
                folder.add(volume)
            describe(folder, run.statement, run.privacy, source.statement)
            edits = Counter(str(edit["kind"]) for made in folder.volumes() for edit in made.edits)
    return Made(folder=out, request=request, run=run, edits=edits)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Prepared:
    """A label map, edited and ready to be painted."""

    name: str
    style: str
    source: str
    edits: tuple[Edit, ...]
    labels: Labels
    affine: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Making:
    folder: SetFolder
    run: FinishedRun
    source: LabelSource
    device: torch.device

    def rest(self) -> Iterator[MadeVolume]:
        """Make the volumes that are not there yet, each when the one before it is on disk."""
        painter = Painter(
            self.run.model, self.run.sites, grid=self.run.config.grid, device=self.device
        )
        first, count = self.folder.done, self.folder.request.count
        size = _BATCH.get(self.device.type, 1)

        def painted(number: int) -> tuple[list[_Prepared], Tensor]:
            batch = self._prepare_batch(number, size)
            return batch, self._paint(painter, batch, number)

        # A batch is painted as it was before, whole, even if part of it is there.
        numbers = range(first // size, -(-count // size))
        hands = self.run.config.threads
        with ThreadPoolExecutor(_WRITERS) as pool, ThreadPoolExecutor(hands) as painters:
            pending: list[tuple[MadeVolume, list[Future[None]]]] = []
            for number, (batch, images) in zip(
                numbers, _ahead(painters, painted, numbers, depth=hands), strict=True
            ):
                yield from _written(pending)
                pending = [
                    self._write(pool, one, image)
                    for index, one, image in zip(
                        itertools.count(number * size), batch, images, strict=False
                    )
                    if index >= first
                ]
            yield from _written(pending)

    def _prepare_batch(self, number: int, size: int) -> list[_Prepared]:
        """Those of batch `number`; the last may be small, and there is nothing after it."""
        end = min((number + 1) * size, self.folder.request.count)
        return [self._prepare(index) for index in range(number * size, end)]

    def _prepare(self, index: int) -> _Prepared:
        request = self.folder.request
        digits = max(3, len(str(max(request.count - 1, 0))))
        reason = BadInput("no label map")
        for candidate in self.source.candidates(index):
            labels = candidate.labels
            edits: tuple[Edit, ...] = ()
            if request.edits:
                kind = EditKind(request.edits[index % len(request.edits)])
                rng = np.random.default_rng([*b"edits", request.seed, index])
                try:
                    edits = draw_edits(rng, labels, kind)
                except BadInput as error:
                    reason = error  # this map does not allow it; the next may
                    continue
                labels = apply_all(edits, labels)
            sites = self.run.sites if request.style == MIX else (request.style,)
            return _Prepared(
                name=f"synthetic-{index:0{digits}d}",
                style=sites[index % len(sites)],
                source=candidate.name,
                edits=edits,
                labels=labels,
                affine=candidate.affine,
            )
        raise reason

    def _paint(self, painter: Painter, batch: list[_Prepared], number: int) -> Tensor:
        labels = torch.from_numpy(np.stack([one.labels for one in batch]))
        seed = hashlib.sha256(f"paint {self.folder.request.seed} {number}".encode()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))
        return painter.paint(labels, [one.style for one in batch], draw).cpu()

    def _write(
        self, pool: ThreadPoolExecutor, one: _Prepared, image: Tensor
    ) -> tuple[MadeVolume, list[Future[None]]]:
        volume = Volume(image=image, labels=torch.from_numpy(one.labels))
        files = files_of(self.folder.request.layout, one.name, volume)
        made = MadeVolume(
            name=one.name,
            style=one.style,
            labels=one.source,
            edits=tuple(edit.model_dump(mode="json") for edit in one.edits),
            files=tuple(files),
        )
        writing = [
            pool.submit(write_file, self.folder.path, path, voxels, one.affine)
            for path, voxels in files.items()
        ]
        return made, writing


def _ahead(
    hands: ThreadPoolExecutor, work: Callable[[int], Result], numbers: Iterable[int], *, depth: int
) -> Iterator[Result]:
    """Do `work` on each number, `depth` of them at a time; gives results in the numbers' order."""
    waiting: deque[Future[Result]] = deque()
    for number in numbers:
        waiting.append(hands.submit(work, number))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _written(pending: list[tuple[MadeVolume, list[Future[None]]]]) -> Iterator[MadeVolume]:
    for made, writing in pending:
        for file in writing:
            file.result()
        yield made


def _check_style(style: str, sites: tuple[str, ...]) -> None:
    if style != MIX and style not in sites:
        wanted = f"{MIX}, or one of {', '.join(sites)}"
        raise BadConfig(Problem(name="--style", value=repr(style), wanted=wanted))


def _request(wish: Wish, run: FinishedRun, device: torch.device) -> Request:
    return Request(
        version=__version__,
        weights=run.digest,
        seed=secrets.randbits(40) if wish.seed is None else wish.seed,
        count=wish.count,
        edits=tuple(str(kind) for kind in wish.edits),
        style=wish.style,
        labels=PHANTOM if wish.labels is None else wish.labels.resolve().name,
        layout=wish.layout,
        licence=wish.licence,
        device=device.type,
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    )
