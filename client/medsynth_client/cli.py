"""`medsynth-client`: the hospital's command line. Heavy imports wait until a command needs them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medsynth_common import __version__
from medsynth_common.command_line import run

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
SiteFolder = Annotated[Path, typer.Argument(help="A site's folder.")]


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
    watch_parent: Annotated[
        bool, typer.Option(help="Stop when standard input closes, as it does when a parent dies.")
    ] = False,
) -> None:
    """Hold a site's patients and carry out plans that arrive on a Unix socket.

    Example: medsynth-client trainer --site /srv/medsynth/site-a --socket /run/medsynth/a.sock
    """
    from medsynth_client.trainer import run_trainer

    run_trainer(site, socket, device=device, threads=threads, watch_parent=watch_parent)


@app.command()
def check(
    folder: Annotated[
        Path, typer.Argument(help="A data folder, or a site's folder with its site.toml.")
    ],
    layout: Annotated[
        Literal["auto", "sites", "patients", "files", "bids", "msd"] | None,
        typer.Option(help="How the data folder is laid out; found out when left out."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file whose [data] says how files are named and labelled."),
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a copy with all mended that can be.")
    ] = None,
    format: Format = "text",
) -> None:
    """Look at every patient's files and tell every problem, with what to do about it.

    Exit 4 when there are errors. With --fix the data is not touched: the copy goes to OUT, and
    patients that cannot be mended are left out of it.

    Example: medsynth-client check /data/mri --fix /data/mri-prepared
    """
    from medsynth_client.check_command import as_values, check_folder, told
    from medsynth_common.dataset.finding import Level

    examination, prepared = check_folder(folder, layout=layout, settings=config, fix=fix)
    if format == "json":
        typer.echo(json.dumps(as_values(examination, prepared), indent=2))
    else:
        typer.echo(told(examination, prepared))
    if examination.of(Level.ERROR):
        raise typer.Exit(4)


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
    run(app)
