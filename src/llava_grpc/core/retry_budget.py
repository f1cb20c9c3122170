"""How many retries a controller may send: a share of its traffic, and a reserve for quiet times.

Without a bound, a fleet in trouble is asked several times for each request, just when it can bear it least. The share
is of the requests of the last while; the reserve lets a quiet fleet lose a worker with all that it was reading. As
Finagle's RetryBudget has it (Twitter, 2016).

Law: over any time t there are no more than `share` of the requests, plus `reserve`, plus `refill` a second, retries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MEMORY = 10.0
"""Seconds after which an unused share has fallen to 1/e."""


@dataclass(slots=True, kw_only=True)
class RetryBudget:
    """See the module. Times in seconds on the clock that `now` is of."""

    share: float = 0.1
    reserve: float = 100.0
    refill: float = 10.0
    _earned: float = 0.0
    _left: float = field(init=False)
    _at: float = 0.0

    def __post_init__(self) -> None:
        self._left = self.reserve

    def request(self, now: float) -> None:
        """A request came."""
        self._pass_to(now)
        self._earned += self.share

    def retry(self, now: float) -> bool:
        """Whether one more retry may be sent; if so, it counts."""
        self._pass_to(now)
        if self._earned >= 1.0:
            self._earned -= 1.0
        elif self._left >= 1.0:
            self._left -= 1.0
        else:
            return False
        return True

    def _pass_to(self, now: float) -> None:
        passed, self._at = max(0.0, now - self._at), max(now, self._at)
        self._earned *= math.exp(-passed / MEMORY)
        self._left = min(self.reserve, self._left + self.refill * passed)
