"""When the echo engine's requests get their tokens: each at its own pace, or all of them at a batching engine's.

No clock, no thread: times (seconds) are handed in, and plans are handed out. Whoever drives it takes those whose turn
has come, makes a token for each, and says which of them go on.

Law of `Batching`: what follows on something is planned from the time at which that was planned to end, not from when
somebody woke up to see it. So lateness does not add up, and the times are those of `sim.service.Batch`.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from llava_grpc.sim.service import Costs

Key = TypeVar("Key")


class Timing(Protocol[Key]):
    """Plans turns. `take`, then `go_on` with those that go on, before the next `take`."""

    def add(self, key: Key, prompt_tokens: int, new_pictures: int, now: float) -> None:
        """A request has come; pictures are new whose features are not at hand."""

    def remove(self, key: Key) -> None:
        """Forget it, whatever was planned for it."""

    def due(self) -> float | None:
        """When there is something to take; None: not before something is added."""

    def take(self, now: float) -> Sequence[Key]:
        """Those who get a token now; nobody, where it is too early."""

    def go_on(self, keys: Sequence[Key], now: float) -> None:
        """Of those taken, the ones that want a further token. The others are forgotten."""


class Apart(Generic[Key]):
    """Every request at its own pace: the first token after `first`, then one every `interval` (seconds)."""

    def __init__(self, first: float, interval: float) -> None:
        self._first, self._interval = first, interval
        self._turns: list[tuple[float, int, Key]] = []
        self._order = itertools.count()

    def add(self, key: Key, prompt_tokens: int, new_pictures: int, now: float) -> None:
        self._plan(key, now + self._first)

    def remove(self, key: Key) -> None:
        self._turns = [turn for turn in self._turns if turn[2] != key]
        heapq.heapify(self._turns)

    def due(self) -> float | None:
        return self._turns[0][0] if self._turns else None

    def take(self, now: float) -> list[Key]:
        taken = []
        while self._turns and self._turns[0][0] <= now:
            taken.append(heapq.heappop(self._turns)[2])
        return taken

    def go_on(self, keys: Sequence[Key], now: float) -> None:
        for key in keys:
            self._plan(key, now + self._interval)

    def _plan(self, key: Key, due: float) -> None:
        heapq.heappush(self._turns, (due, next(self._order), key))


class Batching(Generic[Key]):
    """A batching engine: it reads prompts one after another, which holds everything else up, then makes one token for
    every running request in each step. The first token comes with the prompt."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._joining: deque[tuple[float, float, Key]] = deque()
        """When each came, and the seconds that reading it takes."""
        self._running: list[Key] = []
        self._under_way: list[Key] | None = None
        """Who gets a token at `_end`; None: nothing is under way."""
        self._reads = False
        self._out = False
        """Some were taken; `go_on` is to come."""
        self._end = 0.0
        """Of what is under way, or was last."""

    def add(self, key: Key, prompt_tokens: int, new_pictures: int, now: float) -> None:
        self._joining.append((now, self._costs.reading(prompt_tokens, new_pictures), key))
        if self._under_way is None and not self._out:
            self._plan()

    def remove(self, key: Key) -> None:
        self._joining = deque(one for one in self._joining if one[2] != key)
        self._running = [one for one in self._running if one != key]
        if self._under_way is not None:  # it takes as long as it would have: a step cannot be called back
            self._under_way = [one for one in self._under_way if one != key]

    def due(self) -> float | None:
        return self._end if self._under_way is not None else None

    def take(self, now: float) -> Sequence[Key]:
        while self._under_way is not None and self._end <= now:
            if taken := self._under_way:
                self._under_way, self._out = None, True
                return taken
            self._plan()
        return ()

    def go_on(self, keys: Sequence[Key], now: float) -> None:
        self._running = [*self._running, *keys] if self._reads else list(keys)
        self._out = False
        self._plan()

    def _plan(self) -> None:
        """What follows on what has ended: the prompt of who had come by then; else a step; else who came since."""
        joining = self._joining
        self._reads = bool(joining) and (joining[0][0] <= self._end or not self._running)
        if self._reads:
            came, seconds, key = joining.popleft()
            self._under_way = [key]
            self._end = max(self._end, came) + seconds
        elif self._running:
            self._under_way = list(self._running)
            self._end += self._costs.stepping(len(self._running))
        else:
            self._under_way = None
