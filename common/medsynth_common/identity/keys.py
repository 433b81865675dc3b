"""Ed25519 keys (RFC 8032): the coordinator's signs plans, a site's signs updates."""

import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medsynth_common.errors import BadConfig, BadSignature, Problem

_RAW = serialization.Encoding.Raw, serialization.PublicFormat.Raw
#: 128 bits, as many as two people read to each other without a slip.
_SPOKEN = 32


class VerifyKey:
    """The public half; `text` is how it stands in files and sheets."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._key = Ed25519PublicKey.from_public_bytes(raw)

    @classmethod
    def parse(cls, text: str, *, name: str) -> "VerifyKey":
        """Read `ed25519:` and 64 hexadecimal digits. Raises `BadConfig`, which calls it `name`."""
        kind, _, digits = text.strip().partition(":")
        try:
            if kind != "ed25519":
                raise ValueError(kind)
            return cls(bytes.fromhex(digits))
        except ValueError as error:
            wanted = "ed25519: and 64 hexadecimal digits"
            raise BadConfig(Problem(name=name, value=text[:80], wanted=wanted)) from error

    @property
    def text(self) -> str:
        """The key in one line."""
        return f"ed25519:{self.raw.hex()}"

    @property
    def fingerprint(self) -> str:
        """The first 128 bits of the key's SHA-256, in eight groups to be read on the telephone."""
        return spoken(self.raw)

    def check(self, content: bytes, signature: bytes) -> None:
        """Raise `BadSignature` unless the private half signed `content`."""
        try:
            self._key.verify(signature, content)
        except InvalidSignature as error:
            raise BadSignature(f"not signed by the key {self.fingerprint}") from error


class SigningKey:
    """The private half. It is made where it is used, and never leaves."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = VerifyKey(key.public_key().public_bytes(*_RAW))

    @classmethod
    def generate(cls) -> "SigningKey":
        """Make a new key from the operating system's entropy."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """Read a key file. Raises `BadConfig` for one that others may read, or that is no key."""
        key = serialization.load_pem_private_key(read_private(path), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise _no_key(path, type(key).__name__)
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key to a new file that its owner alone may read; never over another."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_private(path, pem)

    def sign(self, content: bytes) -> bytes:
        """Sign; 64 bytes."""
        return self._key.sign(content)


def spoken(raw: bytes) -> str:
    """A fingerprint of any public bytes: SHA-256, its first 128 bits in groups of four digits."""
    digits = hashlib.sha256(raw).hexdigest()[:_SPOKEN]
    return " ".join(digits[start : start + 4] for start in range(0, _SPOKEN, 4))


def read_private(path: Path) -> bytes:
    """Read a private PEM file. Raises `BadConfig` when others may read it, or it is none."""
    content = read_owned(path)
    try:
        serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "no PEM") from error
    return content


def read_owned(path: Path) -> bytes:
    """Read a file that its owner alone may read. Raises `BadConfig` when others may."""
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise _no_key(path, error.strerror or type(error).__name__) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        problem = Problem(
            name=str(path),
            value=f"mode {stat.S_IMODE(mode):04o}",
            wanted="a file that its owner alone may read",
            mend=f"chmod 600 {path}; if others may have read it, make a new key",
        )
        raise BadConfig(problem)
    return content


def write_private(path: Path, content: bytes) -> None:
    """Write a new file of mode 0600, durably. Raises `BadConfig` when there is one already.

    A folder that is made for it is its owner's alone.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        problem = Problem(name=str(path), value="a file", wanted="none: a key is not overwritten")
        raise BadConfig(problem) from error
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _no_key(path: Path, value: str) -> BadConfig:
    return BadConfig(Problem(name=str(path), value=value, wanted="a private key in PEM"))
