"""Numbers and lists as a person reads them."""

import math
from collections.abc import Iterable

from medsynth_server.record import PrivacyStatement, SitePrivacy, epsilon_words


def two_decimals(value: float | None) -> str:
    """Write a score such as a Dice; a dash where nothing was measured."""
    return "-" if value is None else f"{value:.2f}"


def three_decimals(value: float) -> str:
    """Write a score that is compared with one that may be near it."""
    return f"{value:.3f}"


def in_bytes(count: int) -> str:
    """Write a size in the unit that suits it (1 kB is 1000 B)."""
    if count < 1000:
        return f"{count} B"
    power = min(int(math.log10(count)) // 3, 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def in_time(seconds: float) -> str:
    """Write a duration in the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def listed(things: Iterable[str]) -> str:
    """Join names as a sentence does."""
    *first, last = list(things) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def spelled(number: int) -> str:
    """Write a small number as a word."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number] if number < len(words) else str(number)


def bound_words(site: SitePrivacy, statement: PrivacyStatement) -> str:
    """Write an epsilon with all that it means nothing without: delta, unit, mechanisms."""
    mechanisms = ", ".join(mechanism.name for mechanism in site.mechanisms) or "none yet"
    return (
        f"ε = {epsilon_words(site.epsilon)} (δ = {site.delta:g}; unit: one {statement.unit}; "
        f"mechanisms: {mechanisms})"
    )
