"""`medsynth-client`: the hospital's command line. Heavy imports wait until a command needs them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medsynth_common import __version__
from medsynth_common.command_line import run as run_command_line

if TYPE_CHECKING:
    from medsynth_common.errors import Problem

app = typer.Typer(
    name="medsynth-client",
    help="The hospital's side: trains on its own patients; only privatised weights leave.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


privacy = typer.Typer(help="What a site's patients have spent.", no_args_is_help=True)
audit = typer.Typer(help="What left a site.", no_args_is_help=True)
app.add_typer(privacy, name="privacy")
app.add_typer(audit, name="audit")

Format = Annotated[Literal["text", "json"], typer.Option(help="text or json.")]
NewFolder = Annotated[Path, typer.Argument(help="The folder to make.")]
SiteFolder = Annotated[Path, typer.Argument(help="A site's folder.")]
WatchParent = Annotated[
    bool, typer.Option(help="Stop when standard input closes, as it does when a parent dies.")
]
LogFormat = Annotated[Literal["text", "json"], typer.Option(help="How log lines are written.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medsynth-client {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train on a hospital's own patients; only privatised weights leave."""


@app.command()
def trainer(
    site: Annotated[
        list[Path],
        typer.Option(help="A site's folder, holding its site.toml. Repeat for several sites."),
    ],
    socket: Annotated[Path, typer.Option(help="The Unix socket to serve on.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of this process.")] = 1,
    watch_parent: WatchParent = False,
    isolate: Annotated[
        bool, typer.Option(help="Leave the network, where the system allows it.")
    ] = False,
    log_format: LogFormat | None = None,
) -> None:
    """Hold a site's patients and carry out plans that arrive on a Unix socket.

    Example: medsynth-client trainer --site /srv/medsynth/site-a --socket /run/medsynth/a.sock
    """
    if log_format is not None:
        from medsynth_client.logs import start_logging

        start_logging(site[0], "trainer", format=log_format)
    if isolate:  # before anything that starts threads
        from medsynth_client.isolation import isolate_trainer

        isolate_trainer(site[0])
    from medsynth_client.trainer import run_trainer

    run_trainer(site, socket, device=device, threads=threads, watch_parent=watch_parent)


@app.command()
def init(
    folder: NewFolder,
    name: Annotated[str, typer.Option(help="The site's name, in every plan and record.")],
    coordinator: Annotated[Path, typer.Option(help="The card that the coordinator sent.")],
    data: Annotated[Path, typer.Option(help="The folder whose folders are the patients.")],
    declared_patients: Annotated[
        int | None, typer.Option(min=1, help="The site's public size; not the true count.")
    ] = None,
    format: Format = "text",
) -> None:
    """Make a site's folder: keys, a site.toml to edit, and the card to send to the coordinator.

    Example: medsynth-client init /srv/medsynth --name site-a --coordinator coordinator.card
    --data /data/brains
    """
    from medsynth_client.enrolment import enrol

    made = enrol(folder, name=name, card=coordinator, data=data, declared=declared_patients)
    if format == "json":
        typer.echo(json.dumps(made.facts(), indent=2))
    else:
        typer.echo(made.text())


@app.command()
def run(
    site: SiteFolder,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the trainer.")] = 1,
    watch_parent: WatchParent = False,
    log_format: LogFormat = "text",
) -> None:
    """Take part: connect to the coordinator, carry out its plans, until stopped.

    Example: medsynth-client run /srv/medsynth/site-a
    """
    from medsynth_client.logs import start_logging
    from medsynth_client.supervisor import run_site
    from medsynth_client.watching import end_with_parent

    start_logging(site, "run", format=log_format)
    if watch_parent:
        end_with_parent()
    run_site(site, device=device, threads=threads, log_format=log_format)


@app.command()
def node(
    site: SiteFolder,
    socket: Annotated[Path, typer.Option(help="The trainer's Unix socket.")],
    watch_parent: WatchParent = False,
    keep_trying: Annotated[
        bool, typer.Option(help="Go on for ever, also when the first connection fails.")
    ] = False,
    log_format: LogFormat = "text",
) -> None:
    """Be the site's half that talks to the coordinator; `run` starts it beside a trainer.

    Example: medsynth-client node /srv/medsynth/site-a --socket /run/medsynth/a.sock
    """
    from medsynth_client.logs import start_logging
    from medsynth_client.node import run_node

    start_logging(site, "node", format=log_format)
    run_node(site, socket, keep_trying=keep_trying, watch_parent=watch_parent)


@app.command()
def doctor(site: SiteFolder, format: Format = "text") -> None:
    """Look for what stands in the way of a run: network, clock, keys, disk, data. Exit 0, 2 or 4.

    Example: medsynth-client doctor /srv/medsynth/site-a
    """
    from medsynth_client.doctor import examine, exit_code

    findings = []
    for one in examine(site):
        findings.append(one)
        if format == "text":
            mend = f"\n        {one.mend}" if one.mend else ""
            typer.echo(f"{one.verdict:>7} {one.name}: {one.found}{mend}")
    if format == "json":
        typer.echo(json.dumps([one.facts() for one in findings], indent=2))
    raise typer.Exit(exit_code(findings))


@app.command()
def status(site: SiteFolder, format: Format = "text") -> None:
    """Show what a site is doing, what its patients have spent, and what left today.

    Example: medsynth-client status /srv/medsynth/site-a
    """
    from medsynth_client.status_command import site_status, status_text

    facts = site_status(site)
    typer.echo(json.dumps(facts, indent=2) if format == "json" else status_text(facts))


@app.command()
def check(site: SiteFolder, format: Format = "text") -> None:
    """Read every patient of site.toml and tell all problems at once. Exit 4 when there are any.

    Example: medsynth-client check /srv/medsynth/site-a
    """
    from medsynth_client.data_check import check_data
    from medsynth_common.errors import BadData

    found = check_data(site)
    if format == "json":
        typer.echo(json.dumps(found.facts(), indent=2))
        raise typer.Exit(BadData.exit_code if found.problems else 0)
    if found.unlisted:
        typer.echo(f"not in site.toml: {', '.join(found.unlisted)}", err=True)
    if found.problems:
        raise BadData(found.problems)
    typer.echo(f"{found.site}: {found.patients} patients can be trained on")


@privacy.command("status")
def privacy_status(
    site: Annotated[list[Path], typer.Argument(help="A site's folder, or several.")],
    format: Format = "text",
) -> None:
    """Show what a site's patients have spent, its cap, and what is left.

    Example: medsynth-client privacy status /srv/medsynth/site-a
    """
    from medsynth_client.privacy_command import status

    statuses = [status(folder) for folder in site]
    if format == "json":
        typer.echo(json.dumps(statuses, indent=2))
        return
    for one in statuses:
        spent = "unbounded (no privacy)" if one["epsilon"] is None else f"{one['epsilon']:.3f}"
        cap = "none" if one["cap"] is None else f"{one['cap']:g}"
        typer.echo(
            f"{one['site']}: epsilon {spent} of {cap} at delta {one['delta']:g}, unit: patient"
        )
        for line in one["mechanisms"]:
            alone = "-" if line["epsilon_alone"] is None else f"{line['epsilon_alone']:.3f}"
            typer.echo(
                f"  {line['project']} {line['name']}: noise {line['noise_multiplier']:.3f}, "
                f"rate {line['sampling_rate']:g}, {line['steps']} steps in "
                f"{line['releases']} releases; alone epsilon {alone}"
            )


@privacy.command("verify")
def privacy_verify(site: SiteFolder) -> None:
    """Check a site's ledger: its chain, its guards, its arithmetic. Exit 1 when it is not sound.

    Example: medsynth-client privacy verify /srv/medsynth/site-a
    """
    from medsynth_client.privacy_command import verify_ledger

    _tell(verify_ledger(site), sound="the ledger is sound")


@audit.command("show")
def audit_show(site: SiteFolder, format: Format = "text") -> None:
    """List what left a site, and what was refused.

    Example: medsynth-client audit show /srv/medsynth/site-a
    """
    from medsynth_client.privacy_command import read_audit

    for event in read_audit(site):
        if format == "json":
            typer.echo(event.model_dump_json())
        else:
            what = event.error or f"{event.bytes} bytes, SHA-256 {event.sha256[:16]}"
            typer.echo(
                f"{event.when} {event.outcome} {event.project} {event.stage} "
                f"round {event.round}: {what}"
            )


@audit.command("verify")
def audit_verify(site: SiteFolder) -> None:
    """Check that no line of a site's audit log was changed, removed or moved.

    Example: medsynth-client audit verify /srv/medsynth/site-a
    """
    from medsynth_client.privacy_command import verify_audit

    _tell(verify_audit(site), sound="the audit log is sound")


def _tell(problems: "Sequence[Problem]", *, sound: str) -> None:
    for problem in problems:
        typer.echo(str(problem), err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(sound)


def main() -> None:
    """Run the command line."""
    run_command_line(app)
