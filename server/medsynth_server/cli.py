"""`medsynth-server`: the coordinator's command line. Heavy imports wait until needed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medsynth_common import __version__
from medsynth_common.command_line import run
from medsynth_common.edit_kind import EditKind
from medsynth_server.federation_commands import commands
from medsynth_server.pretrain_commands import pretrain

app = typer.Typer(
    name="medsynth-server",
    help="The coordinator's side: federated training and synthetic brain MRI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


Format = Annotated[Literal["text", "json"], typer.Option(help="text or json.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medsynth-server {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train a generator and a segmenter across hospitals, and make synthetic brain MRI."""


@app.command()
def simulate(
    config: Annotated[
        Path | None, typer.Argument(help="Settings in TOML; the defaults are the demo.")
    ] = None,
    out: Annotated[
        Path, typer.Option(envvar="MEDSYNTH_OUT", help="The run's folder; new, or one to resume.")
    ] = Path("runs/simulation"),
    data: Annotated[
        Path | None,
        typer.Option(envvar="MEDSYNTH_DATA_DIR", help="Real patients; default: phantoms."),
    ] = None,
    sites: Annotated[
        int | None, typer.Option(envvar="MEDSYNTH_SITES", help="Simulated hospitals.")
    ] = None,
    patients: Annotated[
        int | None, typer.Option(envvar="MEDSYNTH_PATIENTS", help="Phantoms a hospital.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(envvar="MEDSYNTH_ROUNDS", help="Rounds of stage segment.")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(envvar="MEDSYNTH_EPSILON", help="Privacy budget a patient, all stages."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            envvar="MEDSYNTH_SEED",
            help="Makes a run repeatable, noise included: a rehearsal, and the report says so.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(envvar="MEDSYNTH_WORKERS", help="Trainer processes.")
    ] = None,
    release_anyway: Annotated[
        str,
        typer.Option(
            metavar="REASON",
            help="Release a synthetic set that failed its check, now or on going on; recorded.",
        ),
    ] = "",
    engine: Annotated[
        Literal["local", "flower", "ray"],
        typer.Option(
            envvar="MEDSYNTH_ENGINE",
            help="local: trainers alone; flower: whole hospitals, over loopback; ray: a cluster.",
        ),
    ] = "local",
    format: Format = "text",
) -> None:
    """Run a whole private federation on this machine, from nothing to a report.

    Stopped at any moment, the same command goes on from the last finished round. The synthetic set
    is compared with all patients before it appears as OUT/synthetic; one that fails stays in
    OUT/withheld.

    Example: medsynth-server simulate --out runs/first --sites 3 --epsilon 8
    """
    from medsynth_server.config import load_config
    from medsynth_server.simulate import simulate as run_simulation
    from medsynth_server.summary import summarise

    flags: dict[str, Any] = {
        "federation.sites": sites,
        "federation.patients": patients,
        "segment.rounds": rounds,
        "privacy.epsilon": epsilon,
        "seed": seed,
        "workers": workers,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    settings = load_config(config, given)
    finished = run_simulation(
        settings, out, data=data, engine=engine, release_anyway=release_anyway
    )
    typer.echo(summarise(finished.folder, finished.report, as_json=format == "json"))


@app.command()
def evaluate(
    what: Annotated[
        Path, typer.Argument(help="A finished simulation's folder, or settings to simulate first.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="With settings: the run's folder; new, or one to resume.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="With settings: real patients; default: phantoms.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of every cell.")] = None,
    architectures: Annotated[
        str | None, typer.Option(help="unet, segresnet, or both with a comma.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of every cell.")] = None,
    format: Format = "text",
) -> None:
    """Measure what a simulation's synthetic volumes are worth, as Shin et al. 2018 did.

    Segmenters are trained on real patients, on synthetic volumes, on both, and on synthetic ones
    and then a tenth of the real; each with and without augmentation, all on held-out patients.
    Then how near synthetic volumes are to real ones. Stopped at any moment, the same command goes
    on. The results are in OUT/evaluation and in the report.

    Example: medsynth-server evaluate deploy/examples/paper-table.toml --out runs/table
    """
    from medsynth_server.evaluate import Wish
    from medsynth_server.evaluate import evaluate as run_evaluation

    wish = Wish(
        seeds=seeds,
        architectures=None if architectures is None else tuple(architectures.split(",")),
        steps=steps,
    )
    evaluated = run_evaluation(what, out, data=data, wish=wish)
    typer.echo(evaluated.told(as_json=format == "json"))


@app.command()
def synthesize(
    run_folder: Annotated[Path, typer.Argument(help="A finished run, or an exported one.")],
    out: Annotated[Path, typer.Option(help="The set's folder; new, or one to go on with.")],
    count: Annotated[int, typer.Option(min=1, max=10_000_000, help="Volumes.")],
    edit: Annotated[
        list[EditKind] | None,
        typer.Option(help="Edit the label maps; several take turns. Default: as they are."),
    ] = None,
    style: Annotated[str, typer.Option(help="A training site's scanner, or mix: in turn.")] = "mix",
    labels: Annotated[
        str,
        typer.Option(help="phantom, or a folder of maps that its LABELS.toml says are public."),
    ] = "phantom",
    layout: Annotated[
        Literal["brats", "bids", "msd"], typer.Option(help="Names and label values.")
    ] = "brats",
    licence: Annotated[str, typer.Option(help="Of the set, for its data card.")] = "not stated",
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**62 - 1, help="The same seed, the same bytes.")
    ] = None,
    format: Annotated[Literal["text", "json"], typer.Option(help="text or json.")] = "text",
) -> None:
    """Make a labelled synthetic data set of any size from a finished run.

    Stopped at any moment, the same command goes on from the last finished volume.

    Example: medsynth-server synthesize runs/first --out sets/a --count 500 --edit larger
    """
    from medsynth_common.set_layout import Layout
    from medsynth_server.synthesize import Wish
    from medsynth_server.synthesize import synthesize as make_set

    wish = Wish(
        count=count,
        edits=tuple(edit or ()),
        style=style,
        labels=None if labels == "phantom" else Path(labels),
        layout=Layout(layout),
        licence=licence,
        seed=seed,
    )
    typer.echo(make_set(run_folder, out, wish).told(as_json=format == "json"))


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    licence: Annotated[str, typer.Option(help="Of the weights, for the card.")] = "not stated",
    format: Format = "text",
) -> None:
    """Put a finished run's model into one folder: generator, styles, segmenter, privacy, a card.

    Another machine can synthesize from it; it holds nothing else of the run.

    Example: medsynth-server export runs/first --out models/first --licence CC-BY-4.0
    """
    from medsynth_server.export import export as export_model

    exported = export_model(run_folder, out, licence=licence)
    typer.echo(exported.told(as_json=format == "json"))


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(help="A run's folder.")],
) -> None:
    """Write a run's report.html anew from its record.

    Example: medsynth-server report runs/first
    """
    from medsynth_common.errors import BadData, Problem
    from medsynth_server.report import build_report
    from medsynth_server.run_folder import RunFolder

    if run_folder.is_dir() and not RunFolder(run_folder).begun:
        value, wanted = f"{run_folder}, which holds none", "the folder of a run"
        raise BadData(Problem(name="run", value=value, wanted=wanted))
    typer.echo(build_report(run_folder))


@app.command(name="audit-dp")
def audit_dp(
    what: Annotated[
        Literal["all", "segmenter", "critic", "moments"],
        typer.Option(help="Whose private steps to audit."),
    ] = "all",
    runs: Annotated[int, typer.Option(help="Small trainings of each; more show more.")] = 300,
    epsilon: Annotated[float, typer.Option(help="The claim to be tested.")] = 3.0,
    delta: Annotated[float, typer.Option(help="The claim's delta.")] = 1e-3,
    confidence: Annotated[
        float, typer.Option(help="With which all lower bounds hold together.")
    ] = 0.95,
    seed: Annotated[
        int | None, typer.Option(help="Makes the audit repeatable; default: real noise.")
    ] = None,
    format: Annotated[Literal["text", "json"], typer.Option(help="text or json.")] = "text",
) -> None:
    """Attack small trainings made of the private steps, and compare with the claimed epsilon.

    Trains many times with and without one more patient, the canary, and tells from every
    released step which it was. Ends with 1 when a lower bound on epsilon passes the claim.

    Example: medsynth-server audit-dp --what critic --epsilon 3 --runs 300
    """
    import torch

    from medsynth_server.audit_dp import AuditSettings, Target, progress_bars, run_audit, tell

    torch.set_num_threads(1)  # more only get in each other's way on networks this small
    settings = AuditSettings(
        targets=tuple(Target) if what == "all" else (Target(what),),
        runs=runs,
        epsilon=epsilon,
        delta=delta,
        confidence=confidence,
        seed=seed,
    )
    with progress_bars() as progress:
        audit = run_audit(settings, progress)
    typer.echo(tell(audit, as_json=format == "json"))
    if audit.violated:
        raise typer.Exit(1)


app.add_typer(commands)  # without a name: they stand beside the others
app.add_typer(pretrain, name="pretrain")


def main() -> None:
    """Run the command line."""
    run(app)
