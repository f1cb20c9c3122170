"""When the controller itself was stalled (suspended, or starved of the processor): whose silence is it then?

A controller that slept has heard nobody, and the first to run when it wakes may be its own reaper. So the reaper ticks,
far more often than a stall takes to hurt, and a tick that comes late tells of a stall.

Laws:
1. A gap between two ticks of more than `tolerance` is a stall, whatever caused it. After one nobody is reaped for
   `grace`, and each further stall begins that time anew: whoever lives gets a whole interval to be heard in.
2. Graces do not add up to for ever. Of each gap up to `tolerance` counts as time awake, and who was silent through
   expiry, a stall and a whole grace of time awake is excused no longer, however many stalls follow.
3. Where no tick is late nothing is changed: who is silent is reaped exactly at expiry. What stays below `tolerance` is
   no stall, however often it happens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TICKS_AN_INTERVAL = 10
LONGEST_PERIOD = 1.0
"""Seconds between two ticks at most."""
TOLERATED_SHARE = 0.2
"""The longest gap that is no stall, as a share of the heartbeat interval: two ticks."""


def tick_period(interval: float) -> float:
    """Seconds between two ticks for a fleet with that heartbeat interval."""
    return min(interval / TICKS_AN_INTERVAL, LONGEST_PERIOD)


@dataclass(slots=True, kw_only=True)
class StallWatch:
    """See the module. Times are seconds on the clock that `now` is read from, which never goes back.

    By default no gap is a stall: for those whose `now` is nobody's clock.
    """

    tolerance: float = math.inf
    """The longest gap between two ticks that is no stall."""
    grace: float = 0.0
    """For how long nobody is reaped after a stall."""
    _grace_until: float = -math.inf
    _asleep: float = 0.0
    _last_tick: float | None = None

    @classmethod
    def of_interval(cls, interval: float) -> StallWatch:
        """The watch for a fleet that sends a heartbeat each `interval`."""
        return cls(tolerance=TOLERATED_SHARE * interval, grace=interval)

    def tick(self, now: float) -> float:
        """Still awake at `now`. Returns how long the stall was that has just ended, or 0."""
        gap = 0.0 if self._last_tick is None else now - self._last_tick
        overslept = self._overslept(now)
        self._last_tick = now
        if overslept == 0.0:
            return 0.0
        self._asleep += overslept
        self._grace_until = now + self.grace
        return gap

    def awake(self, now: float) -> float:
        """Time without what was lost in stalls, the present one included."""
        return now - self._asleep - self._overslept(now)

    def excused_until(self, awake: float) -> float:
        """Until when nobody is reaped whose time was up at `awake` (see that method), unless a further stall comes."""
        return min(self._grace_until, awake + self.tolerance + self.grace + self._asleep)

    def _overslept(self, now: float) -> float:
        return 0.0 if self._last_tick is None else max(0.0, now - self._last_tick - self.tolerance)
