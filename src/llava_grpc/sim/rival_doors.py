"""Doors without the controller's code: a rule that lives in the simulator alone gives requests to workers.

`AtOnce` is what the others do: the rule picks a worker for every request as it comes, and it waits in that worker's
queue, whatever happens elsewhere meanwhile. `Central` gives the same rule late binding, so that the two can be told
apart: requests wait in one queue, first come, first served, and the rule picks among workers with room.

A request whose worker is lost begins again, from scratch, as soon as the loss is noticed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random

from llava_grpc.errors import NoLiveWorkerError
from llava_grpc.sim.engine import Clock
from llava_grpc.sim.rivals import Rival, Sight
from llava_grpc.sim.service import ServerKind, Spec
from llava_grpc.sim.workload import Job

EXPIRY = 30.0
"""Seconds of silence after which LLaVA's controller gives a worker up (CONTROLLER_HEART_BEAT_EXPIRATION)."""


class AtOnce:
    """See the module."""

    def __init__(
        self,
        clock: Clock,
        fleet: Sequence[Spec],
        kind: ServerKind,
        rival: Rival,
        random: Random,
        ended: Callable[[Job], None],
    ) -> None:
        self._clock, self._fleet, self._kind = clock, fleet, kind
        self._rival, self._random, self._ended = rival, random, ended
        self._speeds = [spec.speed for spec in fleet]
        self._room = [spec.slots for spec in fleet]
        self._lengths = [0] * len(fleet)
        self._queues: list[deque[Job]] = [deque() for _ in fleet]
        self._servers = [kind(clock, spec, self._done) for spec in fleet]
        self._on: list[dict[str, Job]] = [{} for _ in fleet]
        """What was given to each, running or waiting there."""
        self._last_beat = [0.0] * len(fleet)
        self._silent: set[int] = set()
        self._dead: set[int] = set()
        self._known_well: Sequence[int] = range(len(fleet))

    def offer(self, job: Job) -> None:
        if not self._known_well:
            job.error, job.finished = NoLiveWorkerError("no worker is well"), self._clock.now
            self._ended(job)
            return
        self._give(job, self._rival.choose(self._sight(self._known_well), self._random))

    def beat(self) -> None:
        for node, length in enumerate(self._lengths):
            if node not in self._silent:
                self._last_beat[node] = self._clock.now
                self._rival.heartbeat(node, length)
            elif self._clock.now - self._last_beat[node] > EXPIRY:
                self.notice(node)

    # ----------------------------------------------------------------------------------------------------- failures

    def fail(self, worker: int, dies: bool) -> None:
        self._silent.add(worker)
        if dies:
            self._dead.add(worker)
            self._servers[worker].stop()

    def notice(self, worker: int) -> None:
        self._known_well = [one for one in self._known_well if one != worker]
        if worker in self._dead:
            self._lose(worker)

    def come_back(self, worker: int) -> None:
        self._silent.discard(worker)
        self._known_well = sorted({*self._known_well, worker})
        self._last_beat[worker] = self._clock.now
        if worker in self._dead:
            self._dead.discard(worker)
            self._servers[worker] = self._kind(self._clock, self._fleet[worker], self._done)
            self._lose(worker)  # whatever its earlier life had

    def _lose(self, node: int) -> None:
        lost = list(self._on[node].values())
        self._on[node].clear()
        self._queues[node].clear()
        self._room[node], self._lengths[node] = self._fleet[node].slots, 0
        for job in lost:
            job.retries += 1
            self.offer(job)

    # ------------------------------------------------------------------------------------------------------- within

    def _sight(self, among: Sequence[int]) -> Sight:
        return Sight(self._lengths, self._speeds, among, self._clock.now)

    def _give(self, job: Job, node: int) -> None:
        job.node, job.ticket = node, self._clock.now
        self._lengths[node] += 1
        self._on[node][job.key] = job
        if self._room[node]:
            self._start(job)
        else:
            self._queues[node].append(job)

    def _start(self, job: Job) -> None:
        node = job.node
        self._room[node] -= 1
        job.dispatched = self._clock.now
        if node in self._dead:
            return
        if self._rival.eager:
            self._rival.heartbeat(node, self._lengths[node])
        self._servers[node].start(job)

    def _done(self, job: Job) -> None:
        node, now = job.node, self._clock.now
        job.finished = now
        self._room[node] += 1
        self._lengths[node] -= 1
        del self._on[node][job.key]
        assert isinstance(job.ticket, float), "when its worker was chosen"
        self._rival.ended(node, now - job.ticket, now)
        if self._rival.eager:
            self._rival.heartbeat(node, self._lengths[node])
        self._ended(job)
        self._next(node)

    def _next(self, node: int) -> None:
        """A worker has room."""
        if self._queues[node]:
            self._start(self._queues[node].popleft())


class Central(AtOnce):
    """See the module."""

    def __init__(
        self,
        clock: Clock,
        fleet: Sequence[Spec],
        kind: ServerKind,
        rival: Rival,
        random: Random,
        ended: Callable[[Job], None],
    ) -> None:
        super().__init__(clock, fleet, kind, rival, random, ended)
        self._waiting: deque[Job] = deque()

    def offer(self, job: Job) -> None:
        if job.retries:
            self._waiting.appendleft(job)  # it came first
        else:
            self._waiting.append(job)
        self._place()

    def come_back(self, worker: int) -> None:
        super().come_back(worker)
        self._place()

    def _next(self, node: int) -> None:
        self._place()

    def _place(self) -> None:
        while self._waiting:
            roomy = [node for node in self._known_well if self._room[node]]
            if not roomy:
                return
            self._give(self._waiting.popleft(), self._rival.choose(self._sight(roomy), self._random))
