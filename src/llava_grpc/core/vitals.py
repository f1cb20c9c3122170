"""A stream's signs of life: when its silence is worth a question, and when it is the end.

A broken connection tells of itself. A stopped process, a black-holed link and a hung device do not: their streams just
say nothing. How long a healthy stream may say nothing is known by that stream best.

Laws:
1. A stream that was silent for longer than ASK_FACTOR of its own longest gap (and ASK_AFTER at least) has its worker
   asked; the question costs the worker nothing, and nobody is suspected for being slow.
2. An answer excuses the silence: the same stream asks again only once it has lasted twice as long.
3. A worker that answers but whose stream stays silent past HUNG_FACTOR of its longest gap (and HUNG_AFTER at least) is
   given up: an event loop answers though the device behind it hangs.
4. Time in which this controller itself did not run counts for no silence: see `Watch`.
"""

from __future__ import annotations

from dataclasses import dataclass

ASK_AFTER, ASK_FACTOR = 0.4, 3.0
"""Seconds, and the multiple of the longest gap between two frames of the same answer."""
FIRST_ASK_AFTER = 0.8
"""Seconds before the first frame, which comes before anything is computed; and from there to the first token."""
HUNG_AFTER, HUNG_FACTOR = 30.0, 20.0
"""Likewise, once tokens come."""
FIRST_HUNG_AFTER = 300.0
"""Seconds to the first token: reading a long prompt on a slow device takes its time."""
LOOK_EVERY = 0.1
"""Seconds between two looks at the streams."""
MOST_A_LOOK = 0.3
"""A look that comes later than that after the one before it tells of a controller that did not run."""


@dataclass(slots=True)
class Watch:
    """The watcher's own clock: time that passes while it looks. A stall of the controller does not move it."""

    _seen: float | None = None
    awake: float = 0.0

    def look(self, now: float) -> float:
        """Time awake, at `now`. To be called every LOOK_EVERY."""
        if self._seen is not None:
            self.awake += min(now - self._seen, MOST_A_LOOK)
        self._seen = now
        return self.awake


@dataclass(slots=True)
class Vitals:
    """One stream's. Its reader counts its `frames`, and says when the answer has `begun`.

    `longest`: the longest gap in the answer so far. `since`: the time awake at the look that saw its last frame.
    """

    frames: int = 0
    begun: bool = False
    longest: float = 0.0
    since: float = 0.0
    _seen: int = 0
    _had_begun: bool = False
    _excused: float = 0.0

    def look(self, awake: float) -> float:
        """Seconds of silence so far, as far as looks can tell."""
        if self.frames != self._seen:
            if self._had_begun:
                self.longest = max(self.longest, awake - self.since - LOOK_EVERY)
            self._had_begun = self.begun
            self._seen, self.since, self._excused = self.frames, awake, 0.0
        return awake - self.since

    def worth_asking(self, silence: float) -> bool:
        """Law 1 and 2."""
        patience = max(ASK_AFTER, ASK_FACTOR * self.longest) if self.begun else FIRST_ASK_AFTER
        return silence > max(patience, 2 * self._excused)

    def excuse(self, silence: float) -> None:
        """The worker answered."""
        self._excused = silence

    def is_hung(self, silence: float) -> bool:
        """Law 3."""
        return silence > (max(HUNG_AFTER, HUNG_FACTOR * self.longest) if self.begun else FIRST_HUNG_AFTER)
