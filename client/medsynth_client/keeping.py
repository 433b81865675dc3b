"""What a site remembers of each run between rounds: its last answer and its training state.

One file a run, because they must be true together: after a crash the site either has answered a
plan and moved on, or has done neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from medsynth_common.durable import write_pieces
from medsynth_common.errors import BadData, BadMessage, Problem
from medsynth_common.plan import canonical_json, parse
from medsynth_common.safetensors_writer import pieces
from medsynth_common.tensors import under, with_prefix
from medsynth_common.update import UpdateHeader


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A site's memory of one run.

    Attributes:
        plan_digest: of the plan that was answered last; empty before the first.
        header: of that answer.
        update: its tensors, already privatised, charged and audited.
        state: optimizers and critic. They never leave the site.

    """

    plan_digest: str = ""
    header: UpdateHeader | None = None
    update: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)


class Keeping:
    """The folder that holds a site's memory, a file for each run.

    No run sees another's training state: that may be of networks of other sizes, and its releases
    would enter this run's weights, which the ledger tells apart.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, run: str, asked: str) -> Kept:
        """Read the memory of a run; that of a new one is empty.

        An answer to another plan than that of the digest `asked` is left out.
        """
        path = self._path(run)
        if not path.exists():
            return Kept()
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata() or {}
                plan_digest = metadata["plan_digest"]
                header = parse(UpdateHeader, metadata["header"], name=str(path))
                if header.run != run:  # where a file's name may be in small letters or large ones
                    return Kept()
                names = [
                    name
                    for name in stored.keys()  # noqa: SIM118 - no mapping
                    if asked == plan_digest or not name.startswith("update.")
                ]
                tensors = {name: stored.get_tensor(name) for name in names}
            return Kept(
                plan_digest=plan_digest,
                header=header,
                update=under("update", tensors),
                state=under("state", tensors),
            )
        except (SafetensorError, KeyError, BadMessage) as error:
            raise BadData(
                Problem(
                    name=str(path),
                    value="an unreadable file",
                    wanted="the site's memory of a run as it was written",
                    mend="restore it from a backup, or remove it to start this run afresh",
                )
            ) from error

    def store(self, kept: Kept) -> None:
        """Replace the memory of the answer's run, whole or not at all."""
        assert kept.header is not None
        tensors = {**with_prefix("update", kept.update), **with_prefix("state", kept.state)}
        metadata = {
            "plan_digest": kept.plan_digest,
            "header": canonical_json(kept.header).decode(),
        }
        write_pieces(self._path(kept.header.run), pieces(tensors, metadata))

    def _path(self, run: str) -> Path:
        return self._folder / f"{run}.safetensors"
