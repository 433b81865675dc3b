"""A run told to the log: one line an event, for a file that rotates and for who collects logs."""

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)


class LoggedProgress:
    """Logs what a run tells; stage and round stand beside each line, for those who filter.

    An epsilon is only whole with its delta, unit and mechanisms: `accounting` says them once.
    """

    def __init__(self, accounting: str) -> None:
        self._accounting = accounting
        self._place: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._accounting:  # empty without privacy
            self._say("epsilon is for %s", self._accounting)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._say("stopped by %s", kind.__name__, error=kind.__name__)

    def stage(self, name: str, rounds: int) -> None:
        """Log that a stage begins."""
        self._place = {"stage": name, "round": 0}
        self._say("%s: %d rounds", name, rounds)

    def round_started(self, n: int) -> None:
        """Log that a round begins."""
        self._place |= {"round": n}
        self._say("round %d begins", n)

    def site_asked(self, site: str, *, size: int) -> None:
        """Log what goes to a site."""
        self._say("%s: asked", site, site=site, bytes=size)

    def site_done(
        self,
        site: str,
        *,
        seconds: float,
        epsilon: float | None,
        cap: float | None,
        error: str | None,
        size: int = 0,
    ) -> None:
        """Log a site's answer, or its error's name as a warning."""
        beside = {"site": site, "seconds": round(seconds, 3), "bytes": size}
        if error is None:
            known = {"epsilon": epsilon, "cap": cap}
            self._say("%s: answered in %.1f s", site, seconds, **beside, **known)
        else:
            extra = {**self._place, **beside, "error": error}
            log.warning("%s: %s", site, error, extra=extra)

    def round_done(self, n: int, losses: Mapping[str, float]) -> None:
        """Log that a round is combined; `losses` are public ones."""
        words = "".join(f", {name} {loss:.4g}" for name, loss in losses.items())
        self._say("round %d combined%s", n, words)

    def note(self, text: str) -> None:
        """Log a note."""
        self._say("%s", text)

    def finished(self) -> None:
        """Log the end."""
        self._say("finished")

    def _say(self, message: str, *values: object, **beside: Any) -> None:
        log.info(message, *values, extra={**self._place, **beside})
