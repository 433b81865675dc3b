"""What a site remembers between rounds: its last answer and its training state, in one file.

One file, because they must be true together: after a crash the site either has answered a plan
and moved on, or has done neither.
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
    """A site's memory.

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

    def state_of(self, run: str) -> Mapping[str, Tensor]:
        """Training state, where it is this run's.

        Another run's would be of networks of other sizes, and its releases would enter this run's
        weights, which the ledger tells apart.
        """
        return self.state if self.header is not None and self.header.run == run else {}


class Keeping:
    """The file that holds a site's memory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, asked: str | None = None) -> Kept:
        """Read the memory; a site that has none yet has an empty one.

        Where the digest of the plan that is asked is given, an answer to another is not read.
        """
        if not self._path.exists():
            return Kept()
        try:
            with safe_open(self._path, framework="pt") as stored:
                metadata = stored.metadata() or {}
                plan_digest = metadata["plan_digest"]
                names = [
                    name
                    for name in stored.keys()  # noqa: SIM118 - no mapping
                    if asked in (None, plan_digest) or not name.startswith("update.")
                ]
                tensors = {name: stored.get_tensor(name) for name in names}
            return Kept(
                plan_digest=plan_digest,
                header=parse(UpdateHeader, metadata["header"], name=str(self._path)),
                update=under("update", tensors),
                state=under("state", tensors),
            )
        except (SafetensorError, KeyError, BadMessage) as error:
            raise BadData(
                Problem(
                    name=str(self._path),
                    value="an unreadable file",
                    wanted="the site's memory as it was written",
                    mend="restore it from a backup, or remove it to start this site afresh",
                )
            ) from error

    def store(self, kept: Kept) -> None:
        """Replace the memory, whole or not at all."""
        assert kept.header is not None
        tensors = {**with_prefix("update", kept.update), **with_prefix("state", kept.state)}
        metadata = {
            "plan_digest": kept.plan_digest,
            "header": canonical_json(kept.header).decode(),
        }
        write_pieces(self._path, pieces(tensors, metadata))
