"""What two parties hand each other before a federation begins: public, and read out by telephone.

    a hospital    medsynth-client init   -> its SiteCard, a file to send to the coordinator
    coordinator   medsynth-server init   -> its CoordinatorCard, a file to send to every hospital

Neither holds a secret. What matters is that the right one arrives: each side reads the other's
`fingerprint` aloud from its own screen.
"""

import json
from pathlib import Path
from typing import Final, TypeVar

from pydantic import Field

from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadConfig, BadMessage, Problem
from medsynth_common.identity.keys import spoken
from medsynth_common.plan import Name, canonical_json, parse
from medsynth_common.privacy.mechanism import Value

_KEY = r"^ed25519:[0-9a-f]{64}$"
#: Host and port; an IPv6 host stands in brackets.
ADDRESS: Final = r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5}$"


class _Card(Value):
    @property
    def fingerprint(self) -> str:
        """128 bits of SHA-256 over everything on the card, in groups of four digits."""
        return spoken(canonical_json(self))

    def write(self, path: Path) -> None:
        """Write the card as JSON, whole or not at all."""
        write_bytes(path, (json.dumps(self.model_dump(mode="json"), indent=2) + "\n").encode())


class SiteCard(_Card):
    """A hospital's.

    Attributes:
        site: its name in the federation.
        node_key: with which its node signs requests to the coordinator; an OpenSSH public key
            of kind ecdsa-sha2-nistp384, as Flower wants it.
        signing_key: with which its trainer signs updates; `ed25519:` and hexadecimal digits.

    """

    site: Name
    node_key: str = Field(pattern=r"^ecdsa-sha2-nistp384 [A-Za-z0-9+/=]+$", max_length=1000)
    signing_key: str = Field(pattern=_KEY)


class CoordinatorCard(_Card):
    """The coordinator's.

    Attributes:
        federation: what it calls the federation.
        address: host and port that hospitals connect to.
        signing_key: with which it signs plans; `ed25519:` and hexadecimal digits.
        ca: the certificate authority of its server certificate, PEM; None where the operator's
            certificate is one that every system knows.

    """

    federation: Name
    address: str = Field(pattern=ADDRESS)
    signing_key: str = Field(pattern=_KEY)
    ca: str | None = Field(default=None, max_length=100_000)


_Kind = TypeVar("_Kind", bound=_Card)


def read_card(path: Path, kind: type[_Kind]) -> _Kind:
    """Read a card. Raises `BadConfig` with every problem in it."""
    try:
        return parse(kind, path.read_bytes(), name=str(path))
    except OSError as error:
        value = error.strerror or type(error).__name__
        problem = Problem(name=str(path), value=value, wanted=f"a {kind.__name__}")
        raise BadConfig(problem) from error
    except BadMessage as error:
        raise BadConfig(error.problems) from error
