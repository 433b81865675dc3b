"""`medsynth-client doctor`: what stands between this site and a run, and what to do about each.

Looks, and changes nothing: a site that runs meanwhile goes on.
"""

import http.client
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from medsynth_client import probe
from medsynth_client.connection import clock_skew, fault_of, load_card, not_in_time, tls_context
from medsynth_client.credentials import SIGNING_KEY
from medsynth_client.isolation import cannot_isolate
from medsynth_client.node_key import NODE_ID, NODE_KEY, load_node_key
from medsynth_client.site_file import SiteFile
from medsynth_client.site_record import read_site
from medsynth_common.dataset.source import FolderSource, files_in
from medsynth_common.errors import (
    BadConfig,
    BadData,
    BadInput,
    ConnectionFailed,
    MedsynthError,
    Untrusted,
)
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard

_GIB: Final = 2**30
_TIGHT, _TOO_TIGHT = 5 * _GIB, _GIB

Verdict = Literal["ok", "warning", "bad"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        verdict: `ok`; `warning`: works, but worth a look; `bad`: no run is possible.
        found: what was found.
        mend: what to do about it; empty when all is well.
        exit_code: what a bad one ends the command with.

    """

    name: str
    verdict: Verdict
    found: str
    mend: str = ""
    exit_code: int = BadInput.exit_code

    def facts(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)


def examine(folder: Path) -> Iterator[Finding]:
    """Look at one thing after the other, the site's own first."""
    yield from _own_files(folder)
    yield _disk(folder)
    yield _gpu()
    yield _isolation()
    try:
        site, card = SiteFile.load(folder / "site.toml"), load_card(folder)
    except BadConfig:
        return  # told above; without them there is nobody to ask
    if problem := site.rehearsal_problem:
        yield Finding(name="simulation_seed", verdict="bad", found=str(problem))
    yield _records(folder)
    yield _data(site)
    yield from _way(folder, site, card)


def exit_code(findings: list[Finding]) -> int:
    """0 when a run is possible; 4 while the site's own part is wrong; else 2."""
    return max((one.exit_code for one in findings if one.verdict == "bad"), default=0)


def _own_files(folder: Path) -> Iterator[Finding]:
    looks: dict[str, Callable[[], object]] = {
        "site.toml": lambda: SiteFile.load(folder / "site.toml"),
        "coordinator.card": lambda: load_card(folder),
        str(SIGNING_KEY): lambda: SigningKey.load(folder / SIGNING_KEY),
        str(NODE_KEY): lambda: load_node_key(folder / NODE_KEY),
    }
    for name, look in looks.items():
        try:
            look()
        except BadInput as error:
            yield Finding(name=name, verdict="bad", found=str(error))
        else:
            yield Finding(name=name, verdict="ok", found="reads well")
    yield _permissions(folder)


def _records(folder: Path) -> Finding:
    """Ledger and audit log; `privacy verify` looks at them much more closely."""
    try:
        faults = [str(one) for one in read_site(folder).problems]
    except MedsynthError as error:
        faults = [str(error)]
    if not faults:
        return Finding(name="records", verdict="ok", found="ledger and audit log read well")
    return Finding(
        name="records",
        verdict="bad",
        found="; ".join(faults),
        mend="look closer with medsynth-client privacy verify; put them back from a backup",
    )


def _permissions(folder: Path) -> Finding:
    mode = folder.stat().st_mode & 0o777 if folder.is_dir() else 0
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        mend = f"run as the folder's owner, or chown -R {os.getuid()} {folder}"
        return Finding(name="permissions", verdict="bad", found="not writable", mend=mend)
    if mode & 0o077:
        found, mend = f"{folder} has mode {mode:04o}: others may look in", f"chmod 700 {folder}"
        return Finding(name="permissions", verdict="warning", found=found, mend=mend)
    return Finding(name="permissions", verdict="ok", found="the folder is its owner's alone")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    verdict: Verdict = "ok" if free >= _TIGHT else "warning" if free >= _TOO_TIGHT else "bad"
    mend = "" if verdict == "ok" else "make room: prepared patients and state are kept here"
    return Finding(name="disk", verdict=verdict, found=f"{free / _GIB:.1f} GiB free", mend=mend)


def _gpu() -> Finding:
    import torch  # seconds

    if torch.cuda.is_available():
        return Finding(name="gpu", verdict="ok", found=torch.cuda.get_device_name(0))
    mend = "if there is a GPU: is its driver loaded, and does this user see /dev/nvidia0?"
    return Finding(name="gpu", verdict="warning", found="none; the CPU trains", mend=mend)


def _isolation() -> Finding:
    if reason := cannot_isolate():
        mend = (
            "the trainer would keep this machine's network: allow user namespaces (sysctl "
            "kernel.unprivileged_userns_clone=1, user.max_user_namespaces>0), or give the service "
            "CAP_SYS_ADMIN, or run it in a container without a network"
        )
        return Finding(name="isolation", verdict="warning", found=reason, mend=mend)
    return Finding(name="isolation", verdict="ok", found="the trainer can do without a network")


def _data(site: SiteFile) -> Finding:
    if not isinstance(site.source, FolderSource):
        return Finding(name="data", verdict="ok", found=f"{len(site.source.names())} phantoms")
    try:
        found = files_in(Path(site.source.root), site.source.data, site.source.site)
    except (BadData, OSError) as error:
        mend = "correct source.root in site.toml, or mount the folder"
        return Finding(name="data", verdict="bad", found=str(error), mend=mend)
    here = {files.name: files for files in found}
    missing = [name for name in site.source.patients if name not in here]
    paths = [
        path
        for name in site.source.patients
        if name in here
        for matches in here[name].matches.values()
        for path in matches
    ]
    closed = [path for path in paths if not os.access(path, os.R_OK)]
    if missing or closed:
        found_text = f"{len(missing)} patients missing, {len(closed)} files not readable"
        mend = "`medsynth-client check` names each; let this user read them"
        return Finding(name="data", verdict="bad", found=found_text, mend=mend)
    text = f"{len(site.source.patients)} patients, {len(paths)} files; `check` reads them all"
    return Finding(name="data", verdict="ok", found=text)


def _way(folder: Path, site: SiteFile, card: CoordinatorCard) -> Iterator[Finding]:
    """The way to the coordinator, step by step; ends at the first that fails."""
    address = card.address
    host, _ = probe.split_address(address)
    proxy = probe.proxy_for(host)
    if proxy is not None:
        yield Finding(name="proxy", verdict="ok", found=f"{proxy.hostname}:{proxy.port}")
    try:
        if proxy is None:
            yield _good("dns", f"{host} is {', '.join(probe.resolve(host))}")
        probe.connect(address)
    except (OSError, http.client.HTTPException) as error:
        fault = fault_of(error, address)
        yield _bad("dns" if "DNS" in str(fault) else "tcp", fault)
        return
    yield _good("tcp", f"{address} answers")
    try:
        headers = probe.ask_health(address, tls_context(card, site.connection.extra_ca))
    except (OSError, http.client.HTTPException) as error:
        yield _tls(card, fault_of(error, address))
        return
    except BadConfig as error:
        yield Finding(name="tls", verdict="bad", found=str(error))
        return
    yield _good("tls", "the coordinator's certificate")
    yield _clock(headers.get("date"))
    yield _enrolled(folder, site, card)


def _tls(card: CoordinatorCard, fault: ConnectionFailed) -> Finding:
    if not isinstance(fault, Untrusted) or "without TLS" in str(fault):
        return _bad("tls", fault)
    try:
        shown = probe.shown_certificate(card.address)
    except OSError:
        return _bad("tls", fault)
    wanted = probe.subject_of(card.ca) if card.ca is not None else "an authority of this system"
    if card.ca is not None and shown.issuer != wanted:
        mend = (
            "a proxy that opens TLS stands between, or another server answers: have this address "
            "left out of TLS inspection, or name the proxy's authority in connection.extra_ca of "
            "site.toml"
        )
        found = f"{fault}; shown: {shown}, wanted: issued by {wanted}"
        return Finding(name="tls", verdict="bad", found=found, mend=mend, exit_code=2)
    return _bad("tls", fault, more=f"; shown: {shown}")


def _clock(date: str | None) -> Finding:
    now = time.time()
    if late := not_in_time(date, now=now):
        return _bad("clock", late)
    skew = clock_skew(date, now=now)
    if skew is None:
        mend = "a proxy may have taken the Date away; look at this machine's clock (NTP)"
        return Finding(name="clock", verdict="warning", found="no Date in the answer", mend=mend)
    return _good("clock", f"{abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}")


def _enrolled(folder: Path, site: SiteFile, card: CoordinatorCard) -> Finding:
    from medsynth_client.flower import Fleet  # Flower takes a second

    known = folder / NODE_ID
    node = int(known.read_text()) if known.exists() else 0
    context = tls_context(card, site.connection.extra_ca)
    try:
        with Fleet(card.address, key=load_node_key(folder / NODE_KEY), context=context) as fleet:
            fleet.require_enrolled(node)
    except MedsynthError as error:
        mend = "send site.card to the coordinator and compare its fingerprint by telephone"
        found = str(error)
        return Finding(name="key", verdict="bad", found=found, mend=mend, exit_code=2)
    return _good("key", "the coordinator knows this site's node key")


def _good(name: str, found: str) -> Finding:
    return Finding(name=name, verdict="ok", found=found)


def _bad(name: str, fault: ConnectionFailed, more: str = "") -> Finding:
    """A fault on the way, which says itself what to do."""
    return Finding(name=name, verdict="bad", found=f"{fault}{more}", exit_code=fault.exit_code)
