"""How fast slots come free, for telling those who wait how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

SMOOTHING = 0.1
"""Weight of the newest gap in the moving average."""


@dataclass(slots=True)
class ReleasePace:
    """The moving average of the time between two releases, in seconds."""

    _last: float | None = None
    _gap: float | None = None

    def record(self, now: float) -> None:
        """A slot came free."""
        if self._last is not None:
            gap = now - self._last
            self._gap = gap if self._gap is None else (1 - SMOOTHING) * self._gap + SMOOTHING * gap
        self._last = now

    def wait(self, position: int) -> float | None:
        """Seconds until a request with so many before it gets a slot; None where nothing is known yet."""
        return None if self._gap is None else (position + 1) * self._gap
