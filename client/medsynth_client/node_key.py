"""The key with which a site's node signs its requests: EC P-384 in OpenSSH form, as Flower wants.

It proves who connects, and no more: plans and updates are sealed with other keys.
"""

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)

from medsynth_common.errors import BadConfig, Problem
from medsynth_common.identity.keys import read_owned, write_private

NODE_KEY: Final = Path("keys") / "node.key"
#: The file, beside it, of the number under which the coordinator knew the node last.
NODE_ID: Final = "node_id"


def make_node_key(path: Path) -> EllipticCurvePrivateKey:
    """Make a key in a new file of mode 0600. Raises `BadConfig` when there is one already."""
    key = generate_private_key(SECP384R1())
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    write_private(path, content)
    return key


def load_node_key(path: Path) -> EllipticCurvePrivateKey:
    """Read the key. Raises `BadConfig` when others may read the file, or it holds no such key."""
    content = read_owned(path)
    try:
        key = serialization.load_ssh_private_key(content, None)
    except ValueError as error:
        raise _no_key(path, "no OpenSSH key") from error
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise _no_key(path, type(key).__name__)
    return key


def public_line(key: EllipticCurvePrivateKey) -> str:
    """The public half as one OpenSSH line, as it stands on a `SiteCard`."""
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return line.decode()


def _no_key(path: Path, value: str) -> BadConfig:
    wanted = "a private EC key on P-384 in OpenSSH form"
    return BadConfig(Problem(name=str(path), value=value, wanted=wanted))
