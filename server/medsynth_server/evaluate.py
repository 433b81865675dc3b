"""`medsynth-server evaluate`: what synthetic volumes are worth, measured in a finished simulation.

    1. run       a finished simulation, or one that is simulated first
    2. volumes   held-out patients, and as many synthetic volumes of each generator as wanted
    3. table     segmenters trained on real patients, synthetic volumes and both (Shin et al. 2018)
    4. fidelity  how near synthetic volumes are to real ones, beside real ones to each other
    5. report

It reads patients without noise, which only the owner of all of them may: a simulation's researcher.
What was trained is remembered; the same command goes on.
"""

import json
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medsynth_common.errors import BadConfig, BadData, Problem
from medsynth_common.plan import problems_of
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.config import RunConfig, Table, load_config
from medsynth_server.fidelity.gather import measure_fidelity
from medsynth_server.model import Model
from medsynth_server.record import Arm, PrivacyStatement, read_privacy
from medsynth_server.report import build_report
from medsynth_server.run_folder import RunFolder, open_run
from medsynth_server.simulate import simulate
from medsynth_server.simulated_sites import SimulatedSite, folder_sites, phantom_sites
from medsynth_server.table.cohorts import Cache
from medsynth_server.table.fill import fill
from medsynth_server.table.results import TableResult
from medsynth_server.table.statistics import comparisons_of, results_of
from medsynth_server.table.telling import tell
from medsynth_server.table.work import Work, make_volumes


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a person asks for on the command line; None for what the run's settings say."""

    seeds: int | None = None
    architectures: Sequence[str] | None = None
    steps: int | None = None

    def over(self, settings: Table) -> Table:
        """Lay the wish over settings. Raises `BadConfig` for what is not allowed there."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        try:
            return Table.model_validate_json(json.dumps({**settings.model_dump(), **given}))
        except ValidationError as error:
            raise BadConfig(problems_of(error, name="evaluate")) from error


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Where the results are."""

    folder: RunFolder
    table: TableResult
    report: Path

    def told(self, *, as_json: bool) -> str:
        """What the command says on standard output, as text or JSON."""
        if as_json:
            facts = {"report": str(self.report), "table": self.table.model_dump(mode="json")}
            return json.dumps(facts, indent=2)
        return f"{tell(self.table)}\nreport: {self.report}"


def evaluate(what: Path, out: Path | None, *, data: Path | None, wish: Wish) -> Evaluated:
    """Evaluate a finished run, or the run of a settings file, which is simulated first.

    Args:
        what: a finished simulation's folder, or a settings file.
        out: with a settings file, the run's folder, new or one to go on with.
        data: with a settings file, real patients; None for phantoms.
        wish: what differs from the run's own settings of the table.

    Raises:
        BadConfig: `out` or `data` with a finished run.
        BadData: the run is no simulation, or is not finished.

    """
    if what.is_file():
        simulate(load_config(what, {}), out or Path("runs") / what.stem, data=data)
        folder = RunFolder(out or Path("runs") / what.stem)
    else:
        for name, given in (("--out", out), ("--data", data)):
            if given is not None:
                raise BadConfig(
                    Problem(
                        name=name,
                        value=str(given),
                        wanted="nothing: a finished run has its own folder and patients",
                        mend="give a settings file in the run's place, to simulate it first",
                    )
                )
        folder = RunFolder(what)
    _check(folder)
    config = load_config(folder.config, {})
    with open_run(folder.path, config) as (_, seed):
        table = _Evaluation(
            folder=folder, config=config, settings=wish.over(config.table), seed=seed
        ).run()
        return Evaluated(folder=folder, table=table, report=build_report(folder.path))


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    folder: RunFolder
    config: RunConfig
    settings: Table
    seed: int

    def run(self) -> TableResult:
        sites = _sites_of(self.folder, self.config, self.seed)
        statement = read_privacy(self.folder.privacy)
        assert statement is not None  # a finished run has one
        work = Work(
            config=self.config,
            settings=self.settings,
            sites=sites,
            models={arm: self._model(arm) for arm in statement.arms},
            seed=self.seed,
            prepared=self.folder.sites(Arm.PRIVATE),
            cache=Cache(self.folder.evaluation / "cache"),
        )
        make_volumes(work)
        scores = fill(work, self.folder.evaluation / "trainings")
        table = TableResult(
            steps=self.settings.steps,
            seeds=self.settings.seeds,
            real=work.real,
            few=sum(max(1, round(self.settings.real_share * site.declared)) for site in sites),
            synthetic=work.synthetic,
            held_out={site.name: len(site.held_out) for site in sites},
            phantoms=sites[0].source["kind"] == "phantom",
            epsilon={arm: _epsilon(statement, arm) for arm in statement.arms},
            cells=tuple(results_of(scores)),
            tests=tuple(comparisons_of(scores)),
            cpu_seconds=sum(one.cpu_seconds for one in scores),
        )
        table.write(self.folder.evaluation)
        fidelity = measure_fidelity(work, dict(table.epsilon), phantoms=table.phantoms)
        if fidelity is not None:
            fidelity.write(self.folder.evaluation)
        shutil.rmtree(work.cache.path)
        return table

    def _model(self, arm: Arm) -> Model:
        start = Model(networks=self.config.networks, tensors={})
        model, _ = Checkpoint(self.folder.checkpoint(arm)).load(start)
        return model


def _check(folder: RunFolder) -> None:
    if not folder.config.is_file() or not folder.finished("evaluate"):
        raise BadData(
            Problem(
                name=str(folder.path),
                value="no finished simulation",
                wanted="the folder of one, or a settings file to simulate first",
                mend="give the --out of `simulate`, and let it finish",
            )
        )


def _sites_of(folder: RunFolder, config: RunConfig, seed: int) -> list[SimulatedSite]:
    """Find the run's hospitals again: who was trained on, and who was held out.

    Raises:
        BadData: the data has changed since, so that a held-out patient may have been trained on;
            or nobody is held out.

    """
    said = {
        path.parent.name: tomllib.loads(path.read_text(encoding="utf-8"))["source"]
        for path in sorted(folder.sites(Arm.PRIVATE).glob("*/site.toml"))
    }
    roots = {source["root"] for source in said.values() if source["kind"] == "folder"}
    sites = folder_sites(Path(roots.pop()), config) if roots else phantom_sites(config, seed=seed)
    changed = sorted(site.name for site in sites if said.get(site.name) != _plain(site.source))
    if changed:
        raise BadData(
            Problem(
                name=str(folder.path),
                value=f"other patients at {', '.join(changed)} than the run trained on",
                wanted="the data as it was, or a held-out patient may have been trained on",
            )
        )
    if not any(site.held_out for site in sites):
        wanted = "a site of at least three patients, one of them held out"
        raise BadData(Problem(name=str(folder.path), value="nobody held out", wanted=wanted))
    return sites


def _plain(source: Any) -> Any:
    return json.loads(json.dumps(source))


def _epsilon(statement: PrivacyStatement, arm: Arm) -> float | None:
    """The largest epsilon of the arm's sites; None without privacy."""
    spent = [site.epsilon for site in statement.arms[arm].sites.values()]
    known = [epsilon for epsilon in spent if epsilon is not None]
    return max(known) if len(known) == len(spent) else None
