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
Rehearsal = Annotated[bool, typer.Option(hidden=True, help="Allow noise that can be repeated.")]
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
    socket_group: Annotated[
        str | None,
        typer.Option(help="A group whose members may call, for a node that is another user's."),
    ] = None,
    shared: Annotated[
        bool, typer.Option(help="Hold a site for one plan at a time: other trainers may share it.")
    ] = False,
    rehearsal: Rehearsal = False,
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
    from medsynth_client.trainer import group_of, run_trainer

    run_trainer(
        site,
        socket,
        device=device,
        threads=threads,
        watch_parent=watch_parent,
        group=None if socket_group is None else group_of(socket_group),
        shared=shared,
        rehearsal=rehearsal,
    )


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
        typer.Option(help=r"A TOML file whose \[data] says how files are named and labelled."),
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


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="A folder for each patient, with its series.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    t1: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="The SeriesDescription of T1.")
    ] = None,
    t1gd: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Of T1 after gadolinium.")
    ] = None,
    t2: Annotated[str | None, typer.Option(metavar="PATTERN", help="Of T2.")] = None,
    flair: Annotated[str | None, typer.Option(metavar="PATTERN", help="Of FLAIR.")] = None,
    format: Format = "text",
) -> None:
    """Turn patients' DICOM series into NIfTI: axial slices at equal steps, without gaps.

    All else is refused, series by series, and is for dcm2niix; then exit 4. Nothing that a file
    says of its patient is copied. Wants the extra `dicom`.

    Example: medsynth-client convert /data/dicom --out /data/mri --t1gd "t1*nach km*"
    """
    from medsynth_client.convert_command import convert_folder
    from medsynth_common.labels import Contrast

    given = {Contrast.T1: t1, Contrast.T1GD: t1gd, Contrast.T2: t2, Contrast.FLAIR: flair}
    converted = convert_folder(folder, out, given)
    if format == "json":
        typer.echo(json.dumps(converted.values(), indent=2))
    else:
        typer.echo(converted.told())
    if converted.refused:
        raise typer.Exit(4)


@app.command()
def evidence(
    site: SiteFolder,
    out: Annotated[
        Path | None, typer.Option(help="The page to write; evidence.html in the site's folder.")
    ] = None,
    format: Format = "text",
) -> None:
    """Write one page, and the same as JSON, for whoever must answer for the site.

    What left, what was refused, what it cost, the policy in force, and whether the record holds;
    made from the record. Exit 1 when it does not hold: the page then says so.

    Example: medsynth-client evidence /srv/medsynth/site-a --out /srv/reports/site-a.html
    """
    from medsynth_client.evidence import make_evidence

    page = site / "evidence.html" if out is None else out
    found = make_evidence(site, page)
    if format == "json":
        told = {"page": str(page), "data": str(page.with_suffix(".json")), "sound": found.sound}
        typer.echo(json.dumps(told))
    else:
        typer.echo(str(page))
    _fail_for(found.problems)


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
    rehearsal: Rehearsal = False,
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
    run_site(site, device=device, threads=threads, log_format=log_format, rehearsal=rehearsal)


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


@privacy.command("status")
def privacy_status(
    site: Annotated[list[Path], typer.Argument(help="A site's folder, or several.")],
    plan: Annotated[
        Path | None, typer.Option(help="A plan's header (JSON): what would it cost?")
    ] = None,
    format: Format = "text",
) -> None:
    """Show what a site's patients have spent, its cap, what is left, and what a plan would cost.

    Example: medsynth-client privacy status /srv/medsynth/site-a --plan next-plan.json
    """
    from medsynth_client.privacy_command import read_plan, status
    from medsynth_client.status_table import show_status

    asked = None if plan is None else read_plan(plan)
    statuses = [status(folder, asked) for folder in site]
    if format == "json":
        typer.echo(json.dumps(statuses, indent=2))
        return
    for one in statuses:
        show_status(one)


@privacy.command("verify")
def privacy_verify(site: SiteFolder, format: Format = "text") -> None:
    """Check a site's records by themselves and against each other. Exit 1 when they are not sound.

    Epsilon is worked out anew from the ledger, by two accountants where dp-accounting is installed.

    Example: medsynth-client privacy verify /srv/medsynth/site-a
    """
    from medsynth_client.verification import verify_site

    found = verify_site(site)
    if format == "json":
        typer.echo(json.dumps(found.facts(), indent=2))
    elif found.sound:
        typer.echo(found.summary())
    _fail_for(found.problems)


@privacy.command("tidy")
def privacy_tidy(site: SiteFolder, format: Format = "text") -> None:
    """Remove prepared patients and training state that the policy's retention_days keep no longer.

    A trainer does so when it starts; this is for a site whose trainer is started no more. Ledger
    and audit log stay.

    Example: medsynth-client privacy tidy /srv/medsynth/site-a
    """
    from medsynth_client.privacy_command import tidy_site

    removed = [str(path.relative_to(site)) for path in tidy_site(site)]
    if format == "json":
        typer.echo(json.dumps({"removed": removed}))
    else:
        typer.echo("\n".join(f"removed {path}" for path in removed) or "nothing to remove")


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
            what = event.error or event.note or f"{event.bytes} bytes, SHA-256 {event.sha256[:16]}"
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

    _fail_for(verify_audit(site))
    typer.echo("the audit log is sound")


@app.command("release-check")
def release_check(
    site: SiteFolder,
    synthetic: Annotated[Path, typer.Argument(help="A synthetic set, with its dataset.json.")],
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="Patients never trained on, a folder each; default: those that site.toml holds "
            "out or does not name."
        ),
    ] = None,
    override: Annotated[
        str,
        typer.Option(
            metavar="REASON",
            help="Let a set out that did not pass; who, when and why go into the audit log.",
        ),
    ] = "",
    format: Format = "text",
) -> None:
    """Compare a synthetic set with a site's own patients: copies, and signs of who took part.

    The result stays at the site, as release-check.json. Exit 0 when the set passed or is let out by
    --override, 5 when it failed or too few patients are held out to decide.

    Example: medsynth-client release-check /srv/medsynth/site-a /srv/incoming/synthetic
    """
    from medsynth_client.release_command import may_leave, run_release_check

    check = run_release_check(site, synthetic, held_out=held_out, reason=override)
    if format == "json":
        typer.echo(check.model_dump_json(indent=2))
    else:
        typer.echo(
            f"{check.verdict}: {check.synthetic} synthetic volumes, {check.training} training and "
            f"{check.held_out} held-out patients"
        )
        for finding in check.findings:
            typer.echo(f"  {finding.verdict}: {finding.reason}")
        if check.override is not None:
            typer.echo(f"released anyway by {check.override.who}: {check.override.reason}")
    if not may_leave(check):
        raise typer.Exit(5)


@app.command()
def evaluate(
    site: SiteFolder,
    weights: Annotated[Path, typer.Argument(help="A federation's weights/segmenter.safetensors.")],
    settings: Annotated[
        Path | None, typer.Option(help="That run's config.toml; default: beside weights/.")
    ] = None,
    format: Format = "text",
) -> None:
    """Measure a segmenter on the site's own held-out patients (held_out in site.toml).

    The scores stay at the site: evaluation.json, which its owner alone can read, and a line in the
    audit log. Nothing is sent.

    Example: medsynth-client evaluate /srv/medsynth/site-a results/weights/segmenter.safetensors
    """
    from medsynth_client.evaluate_command import evaluate_here

    found = evaluate_here(site, weights, settings=settings)
    typer.echo(found.model_dump_json(indent=2) if format == "json" else found.told())


def _fail_for(problems: "Sequence[Problem]") -> None:
    for problem in problems:
        typer.echo(str(problem), err=True)
    if problems:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    run_command_line(app)
