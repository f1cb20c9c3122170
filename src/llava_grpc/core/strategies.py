"""Dispatch strategies: which of the workers with room gets the request.

A strategy gets an immutable snapshot of the candidates (at least one) and a random source, and changes nothing. The
two here are LLaVA's (serve/controller.py), with their defects mended: ties are random, speed 0 neither divides nor is
drawn beside positive speeds, and a fleet of zero speeds is an error of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from llava_grpc.errors import AllSpeedsZeroError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that has room, as a strategy sees it."""

    address: str
    speed: float
    queue_length: int
    free_slots: int


Strategy = Callable[[Sequence[Candidate], Random], Candidate]


def lottery(candidates: Sequence[Candidate], random: Random) -> Candidate:
    """One worker by lot, with probability speed / sum of speeds.

    Raises:
        AllSpeedsZeroError: no candidate has a positive speed.
    """
    fast = _with_speed(candidates)
    return random.choices(fast, weights=[candidate.speed for candidate in fast])[0]


def shortest_queue(candidates: Sequence[Candidate], random: Random) -> Candidate:
    """The worker with the least queue_length / speed; one of them by lot where several have it.

    Raises:
        AllSpeedsZeroError: no candidate has a positive speed.
    """
    fast = _with_speed(candidates)
    least = min(candidate.queue_length / candidate.speed for candidate in fast)
    return random.choice([candidate for candidate in fast if candidate.queue_length / candidate.speed == least])


def _with_speed(candidates: Sequence[Candidate]) -> list[Candidate]:
    fast = [candidate for candidate in candidates if candidate.speed > 0]
    if not fast:
        raise AllSpeedsZeroError("every worker that could take the request advertises speed 0")
    return fast


STRATEGIES: dict[str, Strategy] = {
    "lottery": lottery,
    "shortest_queue": shortest_queue,
}
