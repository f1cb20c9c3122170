"""What goes wrong in a run, and when: drawn once from a seed, so that every strategy meets the same.

A worker dies and comes back as another life, with nothing kept; or it works on and only its heartbeats are lost for a
while. A death is noticed as its streams break, `noticed` seconds later; or, where nothing breaks (the machine hangs,
the network swallows everything), by silence alone. What a lost worker was doing begins again elsewhere from scratch:
resuming, which spares the part that was done, is not modelled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, Protocol

from llava_grpc.sim.engine import Clock


class Fault(NamedTuple):
    """A worker, by number, is gone from `at` to `back`. `dies` False: its heartbeats alone are."""

    worker: int
    at: float
    back: float
    dies: bool = True


@dataclass(frozen=True, slots=True)
class Faults:
    """Those of a run, no two at once of one worker. `noticed`: seconds; infinite: silence alone tells."""

    faults: Sequence[Fault] = ()
    noticed: float = math.inf


class Afflicted(Protocol):
    """A door whose workers fail."""

    def fail(self, worker: int, dies: bool) -> None:
        """It dies, or its heartbeats are lost from now on. Nobody is told."""

    def notice(self, worker: int) -> None:
        """The streams of a dead worker break."""

    def come_back(self, worker: int) -> None:
        """A dead worker begins another life; a silent one is heard again."""


def draw(workers: int, until: float, random: Random, *, every: float, away: float, dies: bool = True) -> list[Fault]:
    """One worker after another, never two at once: `every` seconds on average (exponential) from the return of one to
    the fault of the next, each gone for `away` seconds; none begins after `until`."""
    faults: list[Fault] = []
    at = random.expovariate(1 / every)
    while at < until:
        faults.append(Fault(random.randrange(workers), at, at + away, dies))
        at += away + random.expovariate(1 / every)
    return faults


def schedule(clock: Clock, door: Afflicted, faults: Faults) -> None:
    """Have them happen."""
    for fault in faults.faults:
        clock.at(fault.at, lambda it: door.fail(it.worker, it.dies), fault)
        if fault.dies and fault.at + faults.noticed < fault.back:
            clock.at(fault.at + faults.noticed, lambda it: door.notice(it.worker), fault)
        clock.at(fault.back, lambda it: door.come_back(it.worker), fault)
