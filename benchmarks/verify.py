"""What it takes to verify a site's record of ten thousand releases, beside reading its files.

`medsynth-client privacy verify` checks both hash chains, compares the records and works out
epsilon by two accountants. Python's start and imports are told apart from the work: they are the
same for a record of one release.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import tomli_w

from benchmarks import results
from benchmarks.results import Goal
from medsynth_client import hash_chain, spending
from medsynth_client.audit import AuditEvent
from medsynth_client.charge import Charge
from medsynth_client.ledger_file import LedgerFile, insert
from medsynth_client.ledger_record import (
    Confirmation,
    DataSet,
    LedgerRecord,
    Reservation,
    Row,
    make_row,
)
from medsynth_client.site_record import read_site
from medsynth_client.spending import EVERYONE, Spent, epsilon_of
from medsynth_client.verification import patient_histories, verify_record, verify_site
from medsynth_common.phantom import SITE_SCANNERS
from medsynth_common.privacy.pld import pld_epsilon

#: CPU seconds that verifying may take, Python's start and imports left out.
BAR: Final = 2.0
ROUNDS: Final = 5
RELEASES: Final = 10_000
PATIENTS: Final = 200
DELTA: Final = 1e-5
_DIGEST: Final = "c" * 64
_PROJECT_ROUNDS: Final = 500
_ALL: Final = "all, in a new process"
_WORK: Final = """
import sys, time
from pathlib import Path
from medsynth_client.verification import verify_site
import dp_accounting.pld
start = time.perf_counter()
found = verify_site(Path(sys.argv[1]))
print(time.perf_counter() - start)
sys.exit(not found.sound)
"""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One release: `steps` noisy sums."""

    noise_multiplier: float
    sampling_rate: float
    steps: int


#: In turn; ten thousand of them cost about epsilon 5.
KINDS: Final = (
    Kind(noise_multiplier=6.0, sampling_rate=0.05, steps=4),
    Kind(noise_multiplier=9.0, sampling_rate=0.1, steps=4),
    Kind(noise_multiplier=150.0, sampling_rate=1.0, steps=1),
    Kind(noise_multiplier=5.0, sampling_rate=0.02, steps=10),
)


def write_site(
    folder: Path, kinds: Sequence[Kind], *, releases: int, patients: int = PATIENTS
) -> None:
    """Write a site's folder as it stands after `releases`, without their waits for the disk."""
    made = list(islice(cycle(kinds), releases))
    write_site_file(folder, patients)
    at = datetime.now(UTC) - timedelta(days=1)
    file, record = LedgerFile(folder / "ledger.db"), LedgerRecord()
    file.begin(lambda: at)
    with file.held() as connection:
        file.catch_up(connection, record)
        pseudonyms = file.pseudonyms(record)
        members = pseudonyms.of([f"phantom-{number}" for number in range(patients)])
        everyone = DataSet(dataset=pseudonyms.dataset(members), patients=tuple(members))
        rows = [make_row(record.last, everyone, at)]
        events = []
        epsilon = epsilon_of([Spent(**vars(kind)) for kind in made], DELTA)
        for number, kind in enumerate(made):
            reserved = make_row(
                _head(rows), _reservation(number, kind, everyone.dataset, epsilon), at
            )
            release = f"{number:064x}"
            confirmation = Confirmation(reservation=reserved[0], release_sha256=release)
            rows += [reserved, make_row(_head([reserved]), confirmation, at)]
            events.append(_event(number, reserved[4], release, epsilon, at))
        insert(connection, rows)
        connection.execute("COMMIT")
    hash_chain.write_head(file.path, _head(rows))
    _write_audit(folder / "audit.jsonl", events)


def write_site_file(folder: Path, patients: int) -> None:
    """Write the `site.toml` of a site of phantoms."""
    folder.mkdir(parents=True)
    source = {
        "kind": "phantom",
        "scanner": SITE_SCANNERS[0].model_dump(mode="json"),
        "patients": patients,
        "seed": 0,
    }
    policy = {
        "epsilon_cap": 8.0,
        "delta": DELTA,
        "stages": ["moments", "segment", "adversarial"],
        "minimum_patients": 1,
    }
    values = {
        "name": "site-a",
        "declared_patients": patients,
        "source": source,
        "policy": policy,
    }
    (folder / "site.toml").write_text(tomli_w.dumps(values))


def _head(rows: Sequence[Row]) -> hash_chain.Head:
    return hash_chain.Head(count=rows[-1][0], digest=rows[-1][4])


def _reservation(number: int, kind: Kind, dataset: str, epsilon: float) -> Reservation:
    return Reservation(
        **_answered(number),
        dataset=dataset,
        charge=Charge(name="segmenter", clip=1.0, **vars(kind)),
        epsilon=epsilon,
        cap=None,
        delta=DELTA,
    )


def _event(number: int, receipt: str, sha256: str, epsilon: float, at: datetime) -> AuditEvent:
    return AuditEvent(
        when=at,
        **_answered(number),
        outcome="released",
        bytes=1_000_000,
        sha256=sha256,
        epsilon=epsilon,
        receipts=(receipt,),
    )


def _answered(number: int) -> dict[str, Any]:
    project, round = divmod(number, _PROJECT_ROUNDS)
    return {
        "project": f"run-{project}",
        "stage": "segment",
        "round": round,
        "plan_digest": _DIGEST,
    }


def _write_audit(path: Path, events: Sequence[AuditEvent]) -> None:
    head, lines = hash_chain.START, []
    for event in events:
        fields = event.model_dump(mode="json")
        head = hash_chain.extend(head, hash_chain.canonical(fields))
        line = {"number": head.count, "event": fields, "digest": head.digest}
        lines.append(hash_chain.canonical(line) + "\n")
    path.write_text("".join(lines))
    hash_chain.write_head(path, head)


def _read_plainly(folder: Path, times: int) -> None:
    for _ in range(times):
        for name in ("ledger.db", "audit.jsonl"):
            (folder / name).read_bytes()


def _timed(work: Callable[[], object]) -> float:
    """Median CPU seconds, of children too; nothing is remembered from round to round."""
    seconds = []
    for _ in range(ROUNDS):
        spending.forget()
        start = sum(os.times()[:4])
        work()
        seconds.append(sum(os.times()[:4]) - start)
    return statistics.median(seconds)


def _in_a_new_process(folder: Path) -> float:
    """Median seconds by the clock of all the work, each time in a process that holds nothing else.

    In one process the records of the other rows keep Python's garbage collector busy.
    """
    command = (sys.executable, "-c", _WORK, str(folder))
    return statistics.median(
        float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        for _ in range(ROUNDS)
    )


def _command(folder: Path) -> None:
    command = (sys.executable, "-m", "medsynth_client", "privacy", "verify", str(folder))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> bool:
    """Time verifying and its parts; True when the bar is met."""
    with tempfile.TemporaryDirectory(prefix="medsynth-verify-") as name:
        folder = Path(name) / "site-a"
        write_site(folder, KINDS, releases=RELEASES)
        found = verify_site(folder)
        if not found.sound:
            raise RuntimeError("\n".join(map(str, found.problems)))
        record = read_site(folder)
        [history] = patient_histories(record.rows)
        worst = partial(record.ledger.spending.worst, epsilon_of, DELTA, EVERYONE)
        seconds = {
            "plain read of both files": _timed(partial(_read_plainly, folder, 100)) / 100,
            "read, both chains checked": _timed(partial(read_site, folder)),
            "epsilon by PRV": _timed(worst),
            "epsilon by PLD": _timed(partial(pld_epsilon, history, DELTA)),
            "all but reading": _timed(partial(verify_record, record)),
            _ALL: _in_a_new_process(folder),
            "the command, with Python's start and imports": _timed(partial(_command, folder)),
        }
    plain = seconds["plain read of both files"]
    return results.record(
        "verify",
        title=f"Verifying a site's record of {RELEASES} releases",
        about="CPU seconds of `medsynth-client privacy verify` and its parts, beside reading the "
        f"files; all of it in seconds by the clock, as a person waits; medians of {ROUNDS}.",
        rows=[
            {"what": what, "seconds": taken, "plain reads": taken / plain}
            for what, taken in seconds.items()
        ],
        goals=[Goal(what="all, Python's start left out", figure=seconds[_ALL], bar=BAR, unit="s")],
    )
