"""The seal of a plan or an update, as it travels."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What was sealed, by whom it can be checked; see `sealing` for both.

    Attributes:
        header: canonical JSON of a `sealing.Sealed`.
        signature: Ed25519 over it (RFC 8032), 64 bytes.

    """

    header: bytes
    signature: bytes
