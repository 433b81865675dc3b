"""A second opinion on epsilon: Google's dp-accounting, by privacy loss distributions.

Another method and another code than the project's accountant (Doroshenko et al., PoPETs 2022).
Nothing is charged by it; it only checks. The package comes with the extra `verify`.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

#: Two honest accountants differ by less on the same record, in epsilon.
TOLERANCE: Final = 0.02


def available() -> bool:
    """Whether dp-accounting is installed."""
    return find_spec("dp_accounting") is not None


def pld_epsilon(history: Mapping[tuple[float, float], int], delta: float) -> float:
    """Give epsilon of (noise multiplier, sampling rate) -> steps; 0 for none.

    There must be noise everywhere. Neighbours differ by one patient added or removed.
    Raises ImportError where dp-accounting is not installed.
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for (noise_multiplier, sampling_rate), steps in history.items():
        step = GaussianDpEvent(noise_multiplier)
        if sampling_rate < 1:
            step = PoissonSampledDpEvent(sampling_rate, step)
        accountant.compose(step, steps)
    return float(accountant.get_epsilon(delta))
