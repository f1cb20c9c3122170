"""Rules that live in the simulator alone, to compare with. As others run them they choose at once, and requests queue
at the workers (`rival_doors.AtOnce`); `rival_doors.Central` has them choose only among workers with room.

A rule sees what it would see in a real fleet: the length of each worker's queue (running and waiting) as it was counted
here, and speeds. LLaVA's rule keeps counts of its own, as its controller does (`llava/serve/controller.py`): the least
queue_length / speed, the earliest registered where several have it; the chosen one's count rises by one, and a
heartbeat overwrites it. Its workers (`llava/serve/model_worker.py`) send one every 15 s and as each request begins and
ends. Peak EWMA is Finagle's (`finagle-core/.../loadbalancer/PeakEwma.scala`), which Linkerd took over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple


class Sight(NamedTuple):
    """What a rule sees: of each worker, by number in order of registration, the length of its queue and its speed;
    `among`: the numbers of those that may be chosen, in order, at least one; `now` in seconds."""

    lengths: Sequence[int]
    speeds: Sequence[float]
    among: Sequence[int]
    now: float = 0.0


class Rival:
    """A rule. `eager`: workers also send a heartbeat as a request begins and as it ends."""

    eager = False

    def choose(self, sight: Sight, random: Random) -> int:
        """One of `sight.among`."""
        raise NotImplementedError

    def heartbeat(self, worker: int, length: int) -> None:
        """A worker tells the length of its queue."""

    def ended(self, worker: int, seconds: float, now: float) -> None:
        """An answer ended so long after its worker was chosen."""


class RoundRobin(Rival):
    """Each in turn."""

    def __init__(self) -> None:
        self._next = -1

    def choose(self, sight: Sight, random: Random) -> int:
        self._next = min((one for one in sight.among if one > self._next), default=sight.among[0])
        return self._next


class AnyOne(Rival):
    """One by lot."""

    def choose(self, sight: Sight, random: Random) -> int:
        return sight.among[int(random.random() * len(sight.among))]


class TwoChoices(Rival):
    """The shorter queue of two drawn by lot (with replacement, as the closed form has it)."""

    def choose(self, sight: Sight, random: Random) -> int:
        lengths, speeds, among, _ = sight
        one, other = among[int(random.random() * len(among))], among[int(random.random() * len(among))]
        return one if lengths[one] / speeds[one] <= lengths[other] / speeds[other] else other


class PeakEwma(Rival):
    """The less (latency x (outstanding + 1)) of two drawn by lot.

    A worker's latency, to the end of the answer, is a moving average that forgets within 10 s, but jumps to a peak at
    once. One that has requests out and never answered yet is the last choice.
    """

    MEMORY = 10.0

    def __init__(self) -> None:
        self._latency: dict[int, float] = {}
        self._seen: dict[int, float] = {}

    def choose(self, sight: Sight, random: Random) -> int:
        if len(sight.among) == 1:
            return sight.among[0]
        one, other = random.sample(sight.among, 2)
        return one if self._load(one, sight) <= self._load(other, sight) else other

    def ended(self, worker: int, seconds: float, now: float) -> None:
        latency = self._latency.get(worker, 0.0)
        kept = math.exp((self._seen.get(worker, 0.0) - now) / self.MEMORY)
        self._latency[worker] = seconds if seconds > latency else latency * kept + seconds * (1 - kept)
        self._seen[worker] = now

    def _load(self, worker: int, sight: Sight) -> float:
        self.ended(worker, 0.0, sight.now)  # looking forgets, too
        latency, outstanding = self._latency[worker], sight.lengths[worker]
        return math.inf if latency == 0.0 and outstanding else latency * (outstanding + 1)


class TrueShortest(Rival):
    """The least queue_length / speed by counts that are always right; by lot where several have it."""

    def choose(self, sight: Sight, random: Random) -> int:
        loads = {worker: sight.lengths[worker] / sight.speeds[worker] for worker in sight.among}
        least = min(loads.values())
        return random.choice([worker for worker, load in loads.items() if load == least])


class LlavaSpeeds(Rival):
    """LLaVA's shortest_queue, told the workers' speeds."""

    eager = True

    def __init__(self) -> None:
        self._counts: list[int] = []

    def choose(self, sight: Sight, random: Random) -> int:
        if not self._counts:
            self._counts = [0] * len(sight.lengths)
        chosen = min(sight.among, key=lambda worker: self._counts[worker] / sight.speeds[worker])
        self._counts[chosen] += 1
        return chosen

    def heartbeat(self, worker: int, length: int) -> None:
        if self._counts:
            self._counts[worker] = length


class Llava(LlavaSpeeds):
    """LLaVA's shortest_queue as it is: its workers all report speed 1."""

    def choose(self, sight: Sight, random: Random) -> int:
        return super().choose(sight._replace(speeds=[1.0] * len(sight.speeds)), random)


class LlavaStale(LlavaSpeeds):
    """LLaVA's shortest_queue, told the speeds, where heartbeats come every 15 s and at no other time."""

    eager = False


RIVALS: dict[str, Callable[[], Rival]] = {
    "llava": Llava,
    "llava_speeds": LlavaSpeeds,
    "llava_stale": LlavaStale,
    "peak_ewma": PeakEwma,
    "random": AnyOne,
    "round_robin": RoundRobin,
    "shortest_at_once": TrueShortest,
    "two_choices": TwoChoices,
}
"""Those that choose at once, by name."""
LATE_RIVALS: dict[str, Callable[[], Rival]] = {
    f"late_{name}": RIVALS[name] for name in ("peak_ewma", "random", "round_robin", "two_choices")
}
"""The same rules where nobody runs them: behind a central queue, among workers with room."""
