"""A run's folder: where everything lies, whose it is, and that only one process writes to it."""

import fcntl
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medsynth_common.durable import is_part, sweep, write_bytes, write_json
from medsynth_common.errors import BadConfig, BadData, BadInput, Problem
from medsynth_server.config import RunConfig, dump_config, load_config

_MARK = "run.json"


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run.

    config.toml  metrics.jsonl  privacy.json  report.html  samples.safetensors
    release-check.json  weights/  synthetic/  checkpoints/  sites/ARM/SITE/  logs/  evaluation/
    """

    path: Path

    @property
    def begun(self) -> bool:
        """Whether a run has begun here; a folder of something else is none."""
        return (self.path / _MARK).exists()

    @property
    def config(self) -> Path:
        """The settings, as given."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """The run's record."""
        return self.path / "metrics.jsonl"

    @property
    def privacy(self) -> Path:
        """What was spent."""
        return self.path / "privacy.json"

    @property
    def samples(self) -> Path:
        """Volumes for the report to picture."""
        return self.path / "samples.safetensors"

    @property
    def synthetic(self) -> Path:
        """The synthetic data set; it appears whole, and after its release check."""
        return self.path / "synthetic"

    @property
    def unchecked(self) -> Path:
        """The set while it is being made and checked."""
        return self.path / "unchecked"

    @property
    def withheld(self) -> Path:
        """The set when it failed its release check."""
        return self.path / "withheld"

    @property
    def release_check(self) -> Path:
        """What the release check found."""
        return self.path / "release-check.json"

    @property
    def evaluation(self) -> Path:
        """What `evaluate` measured."""
        return self.path / "evaluation"

    @property
    def weights(self) -> Path:
        """Final weights."""
        return self.path / "weights"

    @property
    def logs(self) -> Path:
        """What trainer processes print."""
        return self.path / "logs"

    def checkpoint(self, name: str) -> Path:
        """Where a training remembers its last round."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def sites(self, arm: str) -> Path:
        """Where the simulated sites of an arm keep what is theirs."""
        return self.path / "sites" / arm if arm != "private" else self.path / "sites"

    def finished(self, step: str) -> bool:
        """Whether a step that is done once has been done."""
        return (self.path / "checkpoints" / f"{step}.done").exists()

    def finish(self, step: str) -> None:
        """Remember that a step is done."""
        write_bytes(self.path / "checkpoints" / f"{step}.done", b"")


@contextmanager
def open_run(path: Path, config: RunConfig) -> Iterator[tuple[RunFolder, int]]:
    """Begin a run, or go on with the one in the folder; also gives the run's public seed.

    Raises:
        BadConfig: the folder holds something else, or a run with other settings.
        BadData: the run's mark is damaged.
        BadInput: another process is working in it.

    """
    folder = RunFolder(path)
    _check(folder, config)
    with locked(path):
        _check(folder, config)
        sweep(path)
        if not (path / _MARK).exists():
            seed = config.seed if config.seed is not None else secrets.randbits(40)
            write_bytes(folder.config, dump_config(config).encode())
            # Last, because it says that the folder is a run's: a crash before is a fresh start.
            write_json(path / _MARK, {"public_seed": seed})
        yield folder, _public_seed(path / _MARK)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make a folder, and keep other processes out of it until the block ends.

    Raises:
        BadInput: another process is working in it.

    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                Problem(name=str(path), value="in use by another process", wanted="a free folder")
            ) from error
        yield


def _check(folder: RunFolder, config: RunConfig) -> None:
    if not folder.path.exists():
        return
    if not folder.path.is_dir():
        raise BadConfig(Problem(name=str(folder.path), value="a file", wanted="a folder"))
    if not (folder.path / _MARK).exists():
        found = {entry.name for entry in folder.path.iterdir() if not is_part(entry)}
        strangers = sorted(found - _ours(folder, config))
        if strangers:
            raise BadConfig(
                Problem(
                    name=str(folder.path),
                    value=f"a folder that holds {strangers[0]!r}",
                    wanted="an empty or new folder, or a run to go on with",
                    mend="give another --out",
                )
            )
        return
    old = load_config(folder.config, {})
    if old != config:
        raise BadConfig(
            Problem(
                name=str(folder.path),
                value=f"a run with other settings ({_differences(old, config)})",
                wanted="the same settings, to go on with it",
                mend="give another --out",
            )
        )


def _ours(folder: RunFolder, config: RunConfig) -> set[str]:
    """Files of a run that had only just begun; other settings of that name are somebody else's."""
    begun = folder.config.is_file() and folder.config.read_bytes() == dump_config(config).encode()
    return {".lock", folder.config.name} if begun else {".lock"}


def _public_seed(mark: Path) -> int:
    try:
        return int(json.loads(mark.read_bytes())["public_seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(
            Problem(
                name=str(mark),
                value="a damaged file",
                wanted="the run's public seed",
                mend="put it back from a backup; without it the run cannot go on",
            )
        ) from error


def _differences(old: RunConfig, new: RunConfig) -> str:
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    names = [key for key in after if before.get(key) != after[key]]
    return ", ".join(names[:5])
