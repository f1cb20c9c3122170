"""How many frames leave: on an idle system every one at once, under load joined ones.

A frame costs each node on its way a system call and a wake-up, however many tokens it carries; at thousands of frames
a second that is most of what a controller does. So frames are shaped where tokens are made.

Law: a frame waits only when more than `rate` of them left in a second, counted over all streams, and never longer than
`longest`. What comes for its stream meanwhile is joined to it. The first and the last frame of an answer do not ask.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class FrameBudget:
    """`rate` frames a second, `burst` of them at once. Times in seconds.

    The generic cell rate algorithm (ITU-T I.371): all that is kept is the time at which the budget is whole again.
    """

    rate: float = 500.0
    burst: float = 16.0
    longest: float = 0.05
    _whole_at: float = 0.0

    def reserve(self, now: float) -> float:
        """Take the next turn; the seconds until it comes, 0 where that is now."""
        tolerance = self.burst / self.rate
        whole_at = max(self._whole_at, now) + 1 / self.rate
        self._whole_at = min(whole_at, now + tolerance + self.longest)
        return max(0.0, self._whole_at - now - tolerance)
