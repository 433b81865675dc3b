"""The commands of a federation with real hospitals: found it, enrol sites, run, look, stop."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

Format = Annotated[Literal["text", "json"], typer.Option(help="text or json.")]
Federation = Annotated[Path, typer.Argument(help="A federation's folder.")]

commands = typer.Typer()
sites = typer.Typer(help="Which hospitals take part.", no_args_is_help=True)
commands.add_typer(sites, name="sites")


@commands.command()
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
    settings: Annotated[
        Path | None, typer.Option(help="The run's settings, as `simulate` takes them.")
    ] = None,
    format: Format = "text",
) -> None:
    """Found a federation: settings, keys, certificates, and the card to send to hospitals.

    Example: medsynth-server init brain-study --address coordinator.example.org:8443
    """
    from medsynth_common.identity.cards import CoordinatorCard, read_card
    from medsynth_server.coordinator.founding import found

    made = found(
        folder,
        address=address,
        name=name,
        certificate=certificate,
        key=certificate_key,
        settings=settings,
    )
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


@commands.command("run")
def run_command(
    folder: Federation,
    format: Format = "text",
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(help="How log lines are written; json ones go to standard error too."),
    ] = "text",
) -> None:
    """Run a federation with real hospitals, or go on with it.

    What happens stands in the folder's logs/coordinator.log, which rotates.

    Example: medsynth-server run brain-study
    """
    from medsynth_server.coordinator.run import run_federation
    from medsynth_server.federation import Stopped
    from medsynth_server.run_folder import RunFolder
    from medsynth_server.summary import summarise

    try:
        report = run_federation(folder, log_format=log_format)
    except Stopped as stopped:  # as was asked: no failure
        typer.echo(f"{stopped}; the same command goes on", err=True)
        return
    typer.echo(summarise(RunFolder(report.parent), report, as_json=format == "json"))


@commands.command()
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


@commands.command()
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


@commands.command()
def phantoms(
    folder: Annotated[Path, typer.Argument(help="The folder to make; new or empty.")],
    sites: Annotated[int, typer.Option(min=1, max=10_000, help="Hospitals.")] = 2,
    patients: Annotated[int, typer.Option(min=1, max=10_000, help="Patients of each.")] = 6,
    side: Annotated[int, typer.Option(min=32, max=192, help="Voxels along each axis.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same bytes.")] = 1,
) -> None:
    """Write hospitals of phantoms as NIfTI, to practise with: patients who are nobody.

    Example: medsynth-server phantoms practice --sites 2 --patients 6
    """
    from medsynth_server.practice import write_hospitals

    made = write_hospitals(folder, sites=sites, patients=patients, side=side, seed=seed)
    count = sum(1 for _ in made)
    typer.echo(f"{folder}: {count} patients in {sites} hospitals")


@commands.command()
def renew(folder: Federation) -> None:
    """Renew the server's certificate; hospitals need do nothing, a running coordinator a restart.

    Example: medsynth-server renew brain-study
    """
    from medsynth_server.coordinator.folder import FederationFolder
    from medsynth_server.coordinator.renewal import renew as renew_certificate

    federation = FederationFolder(folder)
    until = renew_certificate(federation)
    typer.echo(f"{federation.server_certificate}: valid until {until:%Y-%m-%d}")
    if federation.running:
        typer.echo("The running coordinator shows the old one until it is stopped and run again.")
