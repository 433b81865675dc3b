"""`medsynth-server`: the coordinator's command line. Heavy imports wait until needed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medsynth_common import __version__
from medsynth_common.command_line import run

app = typer.Typer(
    name="medsynth-server",
    help="The coordinator's side: federated training and synthetic brain MRI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    format: Annotated[Literal["text", "json"], typer.Option(help="text or json.")] = "text",
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
    finished = run_simulation(settings, out, data=data, release_anyway=release_anyway)
    typer.echo(summarise(finished.folder, finished.report, as_json=format == "json"))


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(help="A run's folder.")],
) -> None:
    """Write a run's report.html anew from its record.

    Example: medsynth-server report runs/first
    """
    from medsynth_server.report import build_report

    typer.echo(build_report(run_folder))


def main() -> None:
    """Run the command line."""
    run(app)
