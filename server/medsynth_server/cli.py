"""`medsynth-server`: the coordinator's command line. Heavy imports wait until needed."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medsynth_common import __version__
from medsynth_common.command_line import run
from medsynth_common.edit_kind import EditKind

app = typer.Typer(
    name="medsynth-server",
    help="The coordinator's side: federated training and synthetic brain MRI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


sites = typer.Typer(help="Which hospitals take part.", no_args_is_help=True)
app.add_typer(sites, name="sites")

Format = Annotated[Literal["text", "json"], typer.Option(help="text or json.")]
Federation = Annotated[Path, typer.Argument(help="A federation's folder.")]


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
        Literal["local", "flower"],
        typer.Option(
            envvar="MEDSYNTH_ENGINE",
            help="local: trainers alone; flower: whole hospitals, over loopback.",
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
def synthesize(
    run_folder: Annotated[Path, typer.Argument(help="A finished run's folder.")],
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
def report(
    run_folder: Annotated[Path, typer.Argument(help="A run's folder.")],
) -> None:
    """Write a run's report.html anew from its record.

    Example: medsynth-server report runs/first
    """
    from medsynth_server.report import build_report

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


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make; new or empty.")],
    address: Annotated[str, typer.Option(help="HOST:PORT that hospitals will connect to.")],
    name: Annotated[
        str | None, typer.Option(help="The federation's name; default: the folder's.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Your own server certificate, PEM, that systems know.")
    ] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    format: Format = "text",
) -> None:
    """Found a federation: settings, keys, certificates, and the card to send to hospitals.

    Example: medsynth-server init brain-study --address coordinator.example.org:8443
    """
    from medsynth_common.identity.cards import CoordinatorCard, read_card
    from medsynth_server.coordinator.founding import found

    made = found(folder, address=address, name=name, certificate=certificate, key=certificate_key)
    card = read_card(made.card, CoordinatorCard)
    if format == "json":
        facts = {"folder": str(folder), "card": str(made.card), "fingerprint": card.fingerprint}
        typer.echo(json.dumps(facts, indent=2))
    else:
        typer.echo(made.sheet.read_text(encoding="utf-8"), nl=False)


@sites.command("add")
def sites_add(
    folder: Federation,
    name: Annotated[str, typer.Argument(help="The hospital's name in the federation.")],
    card: Annotated[Path, typer.Option(help="The site.card that the hospital sent.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="As the hospital reads it aloud; must be the card's.")
    ] = None,
    format: Format = "text",
) -> None:
    """Enrol a hospital; a running coordinator lets it in at once.

    Example: medsynth-server sites add brain-study site-a --card site.card
    """
    from medsynth_server.coordinator.enrolment import add_site
    from medsynth_server.coordinator.folder import FederationFolder

    federation = FederationFolder(folder)
    federation.load()
    added = add_site(federation.sites, name, card, fingerprint=fingerprint)
    if format == "json":
        typer.echo(json.dumps({"site": name, "fingerprint": added.fingerprint}, indent=2))
    else:
        typer.echo(f"{name}: enrolled; its card's fingerprint: {added.fingerprint}")
        if fingerprint is None:
            typer.echo("Compare it with the hospital by telephone, or remove the site again.")


@sites.command("list")
def sites_list(folder: Federation, format: Format = "text") -> None:
    """List the enrolled hospitals and their cards' fingerprints.

    Example: medsynth-server sites list brain-study
    """
    from medsynth_server.coordinator.enrolment import read_cards
    from medsynth_server.coordinator.folder import FederationFolder

    federation = FederationFolder(folder)
    federation.load()
    enrolled = {site: card.fingerprint for site, card in read_cards(federation.sites).items()}
    if format == "json":
        typer.echo(json.dumps(enrolled, indent=2))
        return
    for site, shown in enrolled.items():
        typer.echo(f"{site}  {shown}")


@sites.command("remove")
def sites_remove(
    folder: Federation,
    name: Annotated[str, typer.Argument(help="The hospital's name in the federation.")],
) -> None:
    """Take a hospital out; a running coordinator turns it away at once.

    Example: medsynth-server sites remove brain-study site-a
    """
    from medsynth_server.coordinator.enrolment import remove_site
    from medsynth_server.coordinator.folder import FederationFolder

    federation = FederationFolder(folder)
    federation.load()
    remove_site(federation.sites, name)
    typer.echo(f"{name}: removed")


@app.command("run")
def run_command(folder: Federation, format: Format = "text") -> None:
    """Run a federation with real hospitals, or go on with it.

    Example: medsynth-server run brain-study
    """
    from medsynth_server.coordinator.run import run_federation
    from medsynth_server.federation import Stopped
    from medsynth_server.run_folder import RunFolder
    from medsynth_server.summary import summarise

    try:
        report = run_federation(folder)
    except Stopped as stopped:  # as was asked: no failure
        typer.echo(f"{stopped}; the same command goes on", err=True)
        return
    typer.echo(summarise(RunFolder(report.parent), report, as_json=format == "json"))


@app.command()
def status(folder: Federation, format: Format = "text") -> None:
    """Show where a federation stands, and every site in it.

    Example: medsynth-server status brain-study
    """
    import time

    from medsynth_server.coordinator.folder import FederationFolder
    from medsynth_server.coordinator.status import read_status, status_text

    federation = FederationFolder(folder)
    federation.load()
    found = read_status(federation)
    shown = json.dumps(found, indent=2) if format == "json" else status_text(found, now=time.time())
    typer.echo(shown)


@app.command()
def stop(folder: Federation) -> None:
    """Ask a running coordinator to end after its current round; `run` goes on later.

    Example: medsynth-server stop brain-study
    """
    from medsynth_server.coordinator.folder import FederationFolder
    from medsynth_server.coordinator.run import ask_to_stop

    federation = FederationFolder(folder)
    federation.load()
    asked = ask_to_stop(federation)
    typer.echo("it ends after its current round" if asked else "no coordinator runs there")


def main() -> None:
    """Run the command line."""
    run(app)
