"""Dispatch strategies: which of the workers with room gets the request.

A strategy gets an immutable snapshot of the candidates (at least one, each of positive speed), what the request asks
for, and a random source; it changes nothing. `lottery` and `shortest_queue` are LLaVA's (serve/controller.py), with
their defects mended: ties are random, and speed 0 neither divides nor is drawn. Others are found by entry point or as
`module:Class` (see `llava_grpc.plugins`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np

from llava_grpc.core.columns import HELD_PICTURES, HELD_TOKENS, QUEUE, ROOM, SPEED, UNREAD, Floats, Rows
from llava_grpc.core.demand import Demand


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The workers that have room, as a strategy sees them: columns of equal length, one entry a candidate.

    `rows` are the dispatcher's own names for them, ascending; `figures` has a line for each column. All arrays are
    read-only.
    """

    rows: Rows
    figures: Floats

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def speed(self) -> Floats:
        """As registered; positive."""
        return self._column(SPEED)

    @property
    def queue(self) -> Floats:
        """Requests on it."""
        return self._column(QUEUE)

    @property
    def room(self) -> Floats:
        """Slots free."""
        return self._column(ROOM)

    @property
    def unread(self) -> Floats:
        """Prompt tokens promised to it and not read yet."""
        return self._column(UNREAD)

    @property
    def held_tokens(self) -> Floats:
        """Of this request's prompt, what it is likely to have in its cache."""
        return self._column(HELD_TOKENS)

    @property
    def held_pictures(self) -> Floats:
        """Of this request's pictures, what it is likely to have in its cache."""
        return self._column(HELD_PICTURES)

    def _column(self, figure: int) -> Floats:
        column: Floats = self.figures[figure]
        return column

    def of(self, indexes: Rows | list[int]) -> Snapshot:
        """Of some of the candidates alone."""
        return Snapshot(self.rows.take(indexes), self.figures.take(indexes, axis=1))


@dataclass(frozen=True, slots=True)
class Pick:
    """A choice: the candidate's index, and how the strategy weighed the candidates, for people.

    `scores`: of the candidates in `considered` (their indexes; all where None). `unit` says what a score is.
    `most_is_best`: whether the largest is the best, rather than the smallest.
    """

    index: int
    scores: Floats
    unit: str
    considered: Rows | None = None
    most_is_best: bool = False


Strategy = Callable[[Snapshot, Demand, Random], Pick]

OVERLOAD = 1.25
"""How far above the mean load a worker may be and still get a request for what it holds (`cache_affinity`): the bound
of consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2018), at the value most deployed."""
PICTURE_TOKENS = 144.0
"""Prompt tokens that a vision pass takes as long as: on LLaVA-1.5-7B a quarter of the 576 that its picture brings."""


def lottery(candidates: Snapshot, demand: Demand, random: Random) -> Pick:
    """One worker by lot, with probability speed / sum of speeds."""
    sums = candidates.speed.cumsum()
    drawn = int(sums.searchsorted(random.random() * sums[-1], side="right"))
    index = min(drawn, len(candidates) - 1)  # the product may round up to the whole sum
    return Pick(index, candidates.speed / sums[-1], "chance", most_is_best=True)


def shortest_queue(candidates: Snapshot, demand: Demand, random: Random) -> Pick:
    """The worker with the least queue / speed; one of them by lot where several have it."""
    loads = candidates.queue / candidates.speed
    return Pick(least(loads, random), loads, "requests / speed")


def power_of_two(candidates: Snapshot, demand: Demand, random: Random) -> Pick:
    """The less loaded (queue / speed) of two drawn by lot (Mitzenmacher 2001)."""
    count = len(candidates)
    if count == 1:
        return shortest_queue(candidates, demand, random)
    one = int(random.random() * count)
    other = int(random.random() * (count - 1))
    other += other >= one
    considered = np.array([one, other])
    loads = candidates.queue[considered] / candidates.speed[considered]
    return Pick(int(considered[least(loads, random)]), loads, "requests / speed", considered)


def cache_affinity(candidates: Snapshot, demand: Demand, random: Random) -> Pick:
    """The worker that holds the most of the request, if it is not overloaded; else as `shortest_queue`.

    Overloaded: more requests for its speed, with this one, than OVERLOAD times the mean over the candidates.
    """
    held = candidates.held_tokens + PICTURE_TOKENS * candidates.held_pictures
    holding = held.nonzero()[0]
    if len(holding):
        bound = OVERLOAD * (candidates.queue.sum() + 1.0) / candidates.speed.sum()
        # Few hold anything: one after the other costs less than arrays do.
        queue, speed = candidates.queue[holding].tolist(), candidates.speed[holding].tolist()
        # A worker with nothing to do is never overloaded, however slow it is.
        within = [one for one, load in enumerate(queue) if not load or (load + 1.0) / speed[one] <= bound]
        if within:
            usable = holding.take(within)
            scores = held.take(usable)
            best = (scores == scores.max()).nonzero()[0].tolist()
            loads = np.array([queue[within[one]] / speed[within[one]] for one in best])
            index = int(usable[best[least(loads, random)]])
            return Pick(index, scores, "tokens held, within the bound", usable, most_is_best=True)
    return shortest_queue(candidates, demand, random)


def expected_first_token(candidates: Snapshot, demand: Demand, random: Random) -> Pick:
    """The worker that is expected to give the first token soonest: least work before it, over speed.

    The work, in prompt tokens: what is promised and unread, and of this request what is not cached. Each running
    request adds to it what reading this prompt costs that request: while it reads, all who run there wait.
    """
    own = np.maximum(demand.prompt_tokens - candidates.held_tokens, 1.0)
    own = own + PICTURE_TOKENS * (len(demand.pictures) - candidates.held_pictures)
    work = (candidates.unread + own * (1.0 + candidates.queue)) / candidates.speed
    return Pick(least(work, random), work, "tokens / speed")


def least(scores: Floats, random: Random) -> int:
    """The index of the least; one by lot where several have it."""
    first = int(scores.argmin())
    equal = (scores == scores[first]).nonzero()[0]
    return first if len(equal) == 1 else int(equal[int(random.random() * len(equal))])


STRATEGIES: dict[str, Strategy] = {
    "lottery": lottery,
    "shortest_queue": shortest_queue,
    "power_of_two": power_of_two,
    "cache_affinity": cache_affinity,
    "expected_first_token": expected_first_token,
}
