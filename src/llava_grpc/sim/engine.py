"""Virtual time: what is to happen, in order, as fast as it can be computed.

Law: equal inputs give equal runs, to the last bit; what happens at the same time happens in the order it was asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from llava_grpc.sim.workload import Job, next_turn


class Clock:
    """The time of a run, in seconds, and what is still to come."""

    __slots__ = ("_heap", "_order", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = 0

    def at(self, when: float, call: Callable[[Any], None], argument: Any = None) -> None:
        """Have `call(argument)` happen at `when`, which is not past."""
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, call, argument))

    def run(self) -> None:
        """Let time pass until nothing is to come."""
        heap, pop = self._heap, heapq.heappop
        while heap:
            self.now, _, call, argument = pop(heap)
            call(argument)


class Door(Protocol):
    """What takes requests in: a controller of some kind. It ends every job exactly once."""

    def offer(self, job: Job) -> None: ...

    def beat(self) -> None:
        """Have the workers' heartbeats arrive."""


class Ended:
    """Takes the jobs that have ended, served or refused; `open` counts those that have not.

    `follow`, once set, is told of each, before anything else.
    """

    __slots__ = ("_each", "_progress", "count", "follow", "open")

    EVERY = 1000
    """Jobs between two reports of progress."""

    def __init__(self, each: Callable[[Job], None], progress: Callable[[int], None] | None = None) -> None:
        self.open = 0
        self.count = 0
        self._each = each
        self._progress = progress
        self.follow: Callable[[Job], None] | None = None

    def __call__(self, job: Job) -> None:
        if self.follow is not None:
            self.follow(job)
        self.open -= 1
        self.count += 1
        self._each(job)
        if self._progress is not None and self.count % self.EVERY == 0:
            self._progress(self.EVERY)


def simulate(clock: Clock, jobs: Iterator[Job], door: Door, ended: Ended, *, heartbeat: float) -> None:
    """Offer every job at its time, and what its conversation asks next when that is asked, and run until all have
    ended; `heartbeat` is the interval in seconds."""
    exhausted = False

    def next_arrival() -> None:
        nonlocal exhausted
        job = next(jobs, None)
        if job is None:
            exhausted = True
        else:
            ended.open += 1
            clock.at(job.request.at, arrive, job)

    def follow(job: Job) -> None:
        following = next_turn(job, clock.now)
        if following is not None:
            ended.open += 1
            clock.at(following.request.at, door.offer, following)

    def arrive(job: Job) -> None:
        next_arrival()
        door.offer(job)

    def beat(_: None) -> None:
        door.beat()
        if not exhausted or ended.open:
            clock.at(clock.now + heartbeat, beat)

    ended.follow = follow
    next_arrival()
    clock.at(heartbeat, beat)
    clock.run()
