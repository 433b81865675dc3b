"""Where noise and sampling get their randomness: a cipher's stream, keyed by the operating system.

Differential privacy holds only against someone who cannot guess the noise. A statistical
generator such as torch's Mersenne Twister can be reconstructed from its outputs; AES-256 in
counter mode cannot. Normals are float64 and their radius comes from 63 bits, so the tail
reaches 9.4 standard deviations before it ends.
"""

import hashlib
import json
import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, NoReturn, Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

#: So many normals are made at a time: they stay in a core's cache (16384 pairs: half a megabyte).
#: Below torch's threading grain, so the number of threads cannot change a value.
BLOCK: Final = 2 * 16384
#: Its key stream is what these become when they are encrypted.
_ZEROS: Final = bytes(8 * BLOCK)
#: Blocks are whole vector registers long: an odd tail would be computed by other instructions.
_LANES: Final = 64
_CIPHER_BLOCK: Final = 16
#: All bits of a word but its sign.
_LOW_BITS: Final = 2**63 - 1


class Randomness(Protocol):
    """A source of uniform and normal numbers."""

    @property
    def seeded(self) -> bool:
        """Whether the numbers can be repeated; a report has to say so."""
        ...

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Draw (n,) numbers from [0, 1), each with 53 random bits."""
        ...

    def normal(self, shape: Sequence[int], std: float) -> Tensor:
        """Draw a float64 tensor on the CPU from N(0, std^2)."""
        ...


class _CipherRandomness(ABC):
    """Uniform and normal numbers from a stream cipher's key stream."""

    @abstractmethod
    def _key_stream(self, length: int) -> bytearray:
        """Give the next `length` bytes of the stream, and at least a cipher block of slack."""

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Draw (n,) numbers from [0, 1), each with 53 random bits."""
        words = np.frombuffer(self._key_stream(8 * n), dtype="<u8", count=n)
        numbers: NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64)
        return numbers * 2.0**-53

    def normal(self, shape: Sequence[int], std: float) -> Tensor:
        """Draw a float64 tensor on the CPU from N(0, std^2), by the Box-Muller transform."""
        count = math.prod(shape)
        drawn = torch.empty(_round_up(count, 2 * _LANES), dtype=torch.float64)
        scratch = torch.empty(3, min(BLOCK, len(drawn)) // 2, dtype=torch.float64)
        for block in torch.split(drawn, BLOCK):
            self._fill_normal(block, std, scratch[:, : len(block) // 2])
        return drawn[:count].reshape(tuple(shape))

    def _fill_normal(self, block: Tensor, std: float, scratch: Tensor) -> None:
        pairs = len(block) // 2
        radius, angle, wave = scratch
        # Signed words: unsigned ones become floats by a branch that is wrong every other time.
        stream = self._key_stream(8 * 2 * pairs)
        words = torch.from_numpy(np.frombuffer(stream, dtype=np.int64, count=2 * pairs))
        radius.copy_(words[:pairs].bitwise_and_(_LOW_BITS))
        # The half keeps the logarithm finite at the word 0.
        radius.add_(0.5).mul_(2.0**-63).log_().mul_(-2 * std * std).sqrt_()
        angle.copy_(words[pairs:]).mul_(2 * math.pi * 2.0**-64)  # from -pi to pi
        # torch's vectorised log, sin and cos take a third of numpy's time.
        torch.mul(torch.cos(angle, out=wave), radius, out=block[:pairs])
        torch.mul(torch.sin(angle, out=wave), radius, out=block[pairs:])

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a key and cannot be copied or stored")


class SystemRandomness(_CipherRandomness):
    """Randomness for real releases: keyed by the operating system, never repeatable.

    It has no seed and cannot be pickled or copied. A forked child takes a new key at its first
    draw: a shared stream would give two releases the same noise, and their difference none.
    """

    def __init__(self) -> None:
        self._rekey()

    @property
    def seeded(self) -> bool:
        """Never."""
        return False

    def _rekey(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._cipher = _stream_cipher(os.urandom(32))

    def _key_stream(self, length: int) -> bytearray:
        # Before the lock: a child may have been forked while another thread held it.
        if os.getpid() != self._owner:
            self._rekey()
        with self._lock:
            return _next_bytes(self._cipher, length)


class SimulatedRandomness(_CipherRandomness):
    """The same stream with a key that `material` decides, for simulations that say so.

    Whoever knows the material knows the noise, so its releases protect nobody. Different
    material (1 and "1" too) gives unrelated streams.
    """

    def __init__(self, *material: str | int) -> None:
        canonical = json.dumps(["medsynth simulated randomness", *material]).encode()
        self._lock = threading.Lock()
        self._cipher = _stream_cipher(hashlib.sha256(canonical).digest())

    @property
    def seeded(self) -> bool:
        """Always."""
        return True

    def _key_stream(self, length: int) -> bytearray:
        with self._lock:
            return _next_bytes(self._cipher, length)


def _stream_cipher(key: bytes) -> CipherContext:
    # The counter may start at zero because no key is used for two streams.
    return Cipher(algorithms.AES(key), modes.CTR(bytes(_CIPHER_BLOCK))).encryptor()


def _next_bytes(cipher: CipherContext, length: int) -> bytearray:
    stream = bytearray(length + _CIPHER_BLOCK)
    zeros = _ZEROS if length == len(_ZEROS) else bytes(length)
    cipher.update_into(zeros, stream)
    return stream


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
