"""Rules that live in the simulator alone, to compare with: they choose at once, and requests queue at the workers.

A rule sees what it would see in a real fleet: the length of each worker's queue (running and waiting) as it was counted
here, and speeds. LLaVA's rule keeps counts of its own, as its controller does (`llava/serve/controller.py`): the least
queue_length / speed, the earliest registered where several have it; the chosen one's count rises by one, and a
heartbeat overwrites it. Its workers (`llava/serve/model_worker.py`) send one every 15 s and as each request begins and
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random


class Rival:
    """A rule that chooses at once. `eager`: workers also send a heartbeat as a request begins and as it ends."""

    eager = False

    def choose(self, lengths: Sequence[int], speeds: Sequence[float], random: Random) -> int:
        """Which worker, by number in order of registration."""
        raise NotImplementedError

    def heartbeat(self, worker: int, length: int) -> None:
        """A worker tells the length of its queue."""


class RoundRobin(Rival):
    """Each in turn."""

    def __init__(self) -> None:
        self._next = -1

    def choose(self, lengths: Sequence[int], speeds: Sequence[float], random: Random) -> int:
        self._next = (self._next + 1) % len(lengths)
        return self._next


class AnyOne(Rival):
    """One by lot."""

    def choose(self, lengths: Sequence[int], speeds: Sequence[float], random: Random) -> int:
        return int(random.random() * len(lengths))


class TwoChoices(Rival):
    """The shorter queue of two drawn by lot (with replacement, as the closed form has it)."""

    def choose(self, lengths: Sequence[int], speeds: Sequence[float], random: Random) -> int:
        one, other = int(random.random() * len(lengths)), int(random.random() * len(lengths))
        return one if lengths[one] / speeds[one] <= lengths[other] / speeds[other] else other


class TrueShortest(Rival):
    """The least queue_length / speed by counts that are always right; by lot where several have it."""

    def choose(self, lengths: Sequence[int], speeds: Sequence[float], random: Random) -> int:
        loads = [length / speed for length, speed in zip(lengths, speeds, strict=True)]
        least = min(loads)
        return random.choice([worker for worker, load in enumerate(loads) if load == least])


class LlavaSpeeds(Rival):
    """LLaVA's shortest_queue, told the workers' speeds."""

    eager = True

    def __init__(self) -> None:
        self._counts: list[int] = []

    def choose(self, lengths: Sequence[int], speeds: Sequence[float], random: Random) -> int:
        if not self._counts:
            self._counts = [0] * len(lengths)
        loads = [count / speed for count, speed in zip(self._counts, speeds, strict=True)]
        chosen = loads.index(min(loads))
        self._counts[chosen] += 1
        return chosen

    def heartbeat(self, worker: int, length: int) -> None:
        if self._counts:
            self._counts[worker] = length


class Llava(LlavaSpeeds):
    """LLaVA's shortest_queue as it is: its workers all report speed 1."""

    def choose(self, lengths: Sequence[int], speeds: Sequence[float], random: Random) -> int:
        return super().choose(lengths, [1.0] * len(speeds), random)


class LlavaStale(LlavaSpeeds):
    """LLaVA's shortest_queue, told the speeds, where heartbeats come every 15 s and at no other time."""

    eager = False


RIVALS: dict[str, Callable[[], Rival]] = {
    "llava": Llava,
    "llava_speeds": LlavaSpeeds,
    "llava_stale": LlavaStale,
    "random": AnyOne,
    "round_robin": RoundRobin,
    "shortest_at_once": TrueShortest,
    "two_choices": TwoChoices,
}
