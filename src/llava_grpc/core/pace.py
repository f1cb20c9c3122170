"""How fast slots come free and how long answers take, for those who wait."""

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


@dataclass(slots=True)
class ServicePace:
    """Moving averages over the answers of a model: seconds a token, waiting for the first one included, and tokens."""

    _seconds_a_token: float | None = None
    _tokens: float = 0.0

    def record(self, seconds: float, tokens: int) -> None:
        """An answer of so many tokens was complete so long after its dispatch."""
        if tokens < 1:
            return
        pace = seconds / tokens
        if self._seconds_a_token is None:
            self._seconds_a_token, self._tokens = pace, float(tokens)
        else:
            self._seconds_a_token += SMOOTHING * (pace - self._seconds_a_token)
            self._tokens += SMOOTHING * (tokens - self._tokens)

    def expected(self, most_tokens: int) -> float:
        """Seconds that an answer is expected to take which may have so many tokens (0: as many as it likes); 0 where
        nothing is known yet."""
        if self._seconds_a_token is None:
            return 0.0
        tokens = min(self._tokens, most_tokens) if most_tokens else self._tokens
        return tokens * self._seconds_a_token
