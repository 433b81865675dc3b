"""`medsynth-client init`: a site's folder, its keys, and the card that goes to the coordinator."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medsynth_client.connection import COORDINATOR_CARD
from medsynth_client.credentials import SIGNING_KEY
from medsynth_client.node_key import NODE_KEY, make_node_key, public_line
from medsynth_client.site_file import SiteFile
from medsynth_common.dataset import DataConfig
from medsynth_common.dataset.source import files_in
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard, SiteCard, read_card
from medsynth_common.plan import SITE_NAME

SITE_CARD: Final = "site.card"
#: A public size is the count rounded down to a multiple of this: the count itself is private.
_ROUNDING: Final = 5

_SITE_FILE: Final = """\
# This site's own file. The coordinator can neither read nor change it.
# Edit it, then run `medsynth-client check` and `medsynth-client doctor`.

name = {name}
# The site's public size: the denominator of private means, the weight in averages. The
# coordinator sees it. Not the true count, which one patient more or less would change.
declared_patients = {declared}
# Whose plans this site carries out. Compare it by telephone; see coordinator.card.
coordinator_key = {coordinator_key}
# Patients that are never trained on: a share, which this site's key draws, or a list of names.
# `medsynth-client evaluate` measures a segmenter on them, and its figures stay here.
# held_out = 0.2

[source]
kind = "folder"
# Each folder in here is one patient (all visits of a person in one folder).
root = {root}
# Only these are trained on. A patient's name here is what the ledger knows the patient by.
patients = [
{patients}
]

[source.data]
# How files are named, where they are not named as in BraTS; see docs/data.md.
# contrasts = {{ t1 = "*_t1.nii.gz", t1gd = "*_t1ce.nii.gz", t2 = "*_t2.nii.gz" }}
# tumour = "*_seg.nii.gz"

[policy]
# What one patient may spend here for life, over all runs and coordinators. Strict.
epsilon_cap = 8.0
delta = {delta:g}
# Strike out a stage, and plans of that kind are refused.
stages = ["moments", "segment", "adversarial"]
minimum_patients = {minimum}
# No stage asks for images yet; one that does is refused where this is false.
synthetic_may_leave = false
# Largest single release, bytes, and the longest run.
maximum_bytes = 268435456
maximum_rounds = 200
maximum_steps = 1000
# Least noise a plan may ask for, over clip.
minimum_noise_multiplier = 0.5
retention_days = 365

# [connection]
# Where a proxy opens TLS, its certificate authority, PEM. It can then read what passes (privatised
# weights), and change nothing, since plans and updates are sealed. Proxies: set HTTPS_PROXY.
# extra_ca = "/etc/ssl/certs/hospital-proxy.pem"
"""


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What `init` made, and what two people must now read to each other."""

    folder: Path
    site: SiteCard
    coordinator: CoordinatorCard
    patients: int
    declared: int

    def facts(self) -> dict[str, Any]:
        """For a program."""
        return {
            "folder": str(self.folder),
            "site": self.site.site,
            "site_card": str(self.folder / SITE_CARD),
            "site_fingerprint": self.site.fingerprint,
            "federation": self.coordinator.federation,
            "address": self.coordinator.address,
            "coordinator_fingerprint": self.coordinator.fingerprint,
            "patients": self.patients,
            "declared_patients": self.declared,
        }

    def text(self) -> str:
        """For a person."""
        return f"""\
{self.folder}: site {self.site.site} of federation {self.coordinator.federation}
{self.patients} patients found; the coordinator will see the size {self.declared}

1. Send {self.folder / SITE_CARD} to the coordinator. It holds no secret.
2. Call the coordinator, on a number you know. Read this to them:
       this site's card:        {self.site.fingerprint}
   and let them read theirs to you; it must be
       the coordinator's card:  {self.coordinator.fingerprint}
3. Look at {self.folder / "site.toml"}: what you allow stands under [policy].
4. medsynth-client check {self.folder}
   medsynth-client doctor {self.folder}
   medsynth-client run {self.folder}

The keys in {self.folder / "keys"} never leave this machine."""


def enrol(folder: Path, *, name: str, card: Path, data: Path, declared: int | None) -> Enrolled:
    """Make a site in a new or empty `folder`, whole or not at all; nothing is overwritten.

    Raises:
        BadConfig: with every problem of the arguments.
        BadData: `data` holds no patients.

    """
    coordinator = read_card(card, CoordinatorCard)
    root = data.expanduser().resolve()
    patients = [files.name for files in files_in(root, DataConfig(), None)]
    size = declared if declared is not None else len(patients) // _ROUNDING * _ROUNDING
    problems = _problems(folder, name, patients, size)
    if problems:
        raise BadConfig(problems)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".medsynth-init-", dir=folder.parent))
    try:
        site = _make_keys(made, name)
        site.write(made / SITE_CARD)
        coordinator.write(made / COORDINATOR_CARD)
        text = _site_file(name, size, coordinator, root, patients)
        _write_private(made / "site.toml", text)
        SiteFile.load(made / "site.toml")
        made.replace(folder)  # an empty folder gives way, a full one does not
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return Enrolled(
        folder=folder, site=site, coordinator=coordinator, patients=len(patients), declared=size
    )


def _problems(folder: Path, name: str, patients: Sequence[str], size: int) -> list[Problem]:
    problems = []
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        wanted = "a new or empty folder: no key, ledger or setting is overwritten"
        problems.append(Problem(name=str(folder), value="something there already", wanted=wanted))
    if not SITE_NAME.fullmatch(name):
        wanted = "at most 64 letters, digits, '.', '_' and '-', not beginning with a sign"
        problems.append(Problem(name="--name", value=repr(name), wanted=wanted))
    if not 1 <= size <= len(patients):
        problems.append(
            Problem(
                name="--declared-patients",
                value=str(size),
                wanted=f"1 to {len(patients)}, as many as there are patients",
                mend="" if size else f"fewer than {_ROUNDING} are not rounded: say it yourself",
            )
        )
    return problems


def _make_keys(folder: Path, name: str) -> SiteCard:
    signing = SigningKey.generate()
    signing.save(folder / SIGNING_KEY)
    node = make_node_key(folder / NODE_KEY)
    return SiteCard(site=name, node_key=public_line(node), signing_key=signing.public.text)


def _site_file(
    name: str, declared: int, coordinator: CoordinatorCard, root: Path, patients: Sequence[str]
) -> str:
    # A JSON string is a TOML string.
    return _SITE_FILE.format(
        name=json.dumps(name),
        declared=declared,
        coordinator_key=json.dumps(coordinator.signing_key),
        root=json.dumps(str(root), ensure_ascii=False),
        patients="\n".join(f"    {json.dumps(one, ensure_ascii=False)}," for one in patients),
        # At most a tenth of one over the size, as is usual.
        delta=min(1e-3, 0.1 / declared),
        minimum=min(20, declared),
    )


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
