"""Patients' names as the ledger keeps them: keyed hashes that nobody outside can undo.

A patient is recognised by what is hashed: renamed, he is another patient, with a sum of his own.
"""

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadData, BadRecord, Problem, StorageFailed

_KEY_BYTES = 32
_FINGERPRINTED = "medsynth pseudonym key"


class Pseudonyms:
    """The site's own key, and what is made with it.

    The key is 32 random bytes in a file that only its owner can read. Without it the ledger's
    patients cannot be recognised any more; it must be backed up together with the ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._key = path.read_bytes()
        except FileNotFoundError as error:
            problem = Problem(
                name=path.name,
                value="no file",
                wanted="the key the ledger was begun with",
                mend="put it back from the backup",
            )
            raise BadRecord(problem) from error
        except OSError as error:
            raise StorageFailed(f"{path.name}: {error.strerror}") from error
        if len(self._key) != _KEY_BYTES:
            value = f"{len(self._key)} bytes"
            raise BadRecord(Problem(name=path.name, value=value, wanted=f"{_KEY_BYTES} bytes"))

    @classmethod
    def begin(cls, path: Path) -> "Pseudonyms":
        """Make a new key at `path`, or take the one that is there."""
        if not path.exists():
            write_bytes(path, os.urandom(_KEY_BYTES))  # made readable by its owner only
        return cls(path)

    @property
    def fingerprint(self) -> str:
        """Tells keys apart without telling the key."""
        return self._hashed("key", _FINGERPRINTED)

    def of(self, patients: Sequence[str]) -> list[str]:
        """Give the patients' pseudonyms, in order. Raises BadData when two are the same."""
        if not patients:
            raise BadData(Problem(name="data set", value="no patients", wanted="at least one"))
        doubled = len(patients) - len(set(patients))
        if doubled:
            value = f"{doubled} patients twice"
            raise BadData(Problem(name="data set", value=value, wanted="each patient once"))
        return sorted(self._hashed("patient", patient)[:32] for patient in patients)

    def place(self, patient: str) -> float:
        """Give a patient a place in 0..1 that depends on him and the key alone, to draw by."""
        return int(self._hashed("held out", patient)[:13], 16) / 16**13

    def dataset(self, pseudonyms: Sequence[str]) -> str:
        """Name a data set after its members."""
        return self._hashed("dataset", "\n".join(pseudonyms))[:32]

    def permission_problems(self) -> list[Problem]:
        """Tell whether others may read the key."""
        mode = self.path.stat().st_mode & 0o777
        if mode & 0o077 == 0:
            return []
        mend = f"chmod 600 {self.path.name}"
        return [Problem(name=self.path.name, value=f"mode {mode:o}", wanted="mode 600", mend=mend)]

    def _hashed(self, domain: str, text: str) -> str:
        message = f"{domain}\n{text}".encode("utf-8", "surrogateescape")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()
