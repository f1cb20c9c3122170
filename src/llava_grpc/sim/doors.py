"""What takes requests in and gives them to workers: the real core, or a rule that lives here alone.

`LateBinding` is the controller's own dispatcher, with registry, strategy and queues as they run in a fleet; a request
that finds no room waits there. `AtOnce` is what the others do: a rule picks a worker for every request as it comes, and
it waits in that worker's queue, whatever happens elsewhere meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random

from llava_grpc.core.admission import Entry, QueueLimits
from llava_grpc.core.demand import Demand, plain
from llava_grpc.core.dispatcher import Assignment, Dispatcher
from llava_grpc.core.registry import Registration, Registry
from llava_grpc.core.strategies import Strategy
from llava_grpc.core.stream import ModelCard
from llava_grpc.errors import LlavaGrpcError
from llava_grpc.sim.engine import Clock
from llava_grpc.sim.rivals import Rival
from llava_grpc.sim.service import ServerKind, Spec
from llava_grpc.sim.workload import MOST_ANSWER_TOKENS, Job, Request

MODEL = "simulated"
EXPIRY = 90.0
UNBOUNDED = QueueLimits(length=2**62, wait=1e15)
"""A queue in which everybody waits as long as it takes."""


def demand_of(request: Request) -> Demand:
    """What the controller knows of it."""
    if request.pieces:
        return Demand(request.pieces, request.pictures, MOST_ANSWER_TOKENS)
    return plain(request.prompt, MOST_ANSWER_TOKENS)


class LateBinding:
    """See the module."""

    def __init__(
        self,
        clock: Clock,
        fleet: Sequence[Spec],
        kind: ServerKind,
        strategy: Strategy,
        random: Random,
        ended: Callable[[Job], None],
        limits: QueueLimits = UNBOUNDED,
    ) -> None:
        self._clock, self._ended = clock, ended
        self._registry = Registry(expiry=EXPIRY)
        self._dispatcher = Dispatcher(self._registry, strategy, random, limits=limits)
        self._servers = {}
        self._nodes: dict[str, int] = {}
        self._registrations: list[Registration] = []
        self._running = [0] * len(fleet)
        self._beats = 0
        for number, spec in enumerate(fleet):
            registration = Registration(
                address=f"worker-{number:03}:21002",
                incarnation=f"life-{number}",
                cards=(ModelCard(MODEL),),
                speed=spec.speed,
                slots=spec.slots,
            )
            self._registry.register(registration, clock.now)
            self._registrations.append(registration)
            self._nodes[registration.address] = number
            self._servers[registration.address] = kind(clock, spec, self._done)
        self._waiting: dict[str, Job] = {}
        self._alarm = float("inf")

    def offer(self, job: Job) -> None:
        request = job.request
        entry = Entry(
            key=job.key,
            tenant=request.tenant,
            demand=demand_of(request),
            deadline=request.deadline,
            arrived=self._clock.now,
        )
        try:
            assignment = self._dispatcher.admit(MODEL, entry)
        except LlavaGrpcError as error:
            self._refuse(job, error)
            return
        if assignment is not None:
            self._start(job, assignment)
        else:
            self._waiting[job.key] = job
            self._set_alarm()

    def beat(self) -> None:
        self._beats += 1
        for registration, running in zip(self._registrations, self._running, strict=True):
            self._registry.heartbeat(
                registration.address, registration.incarnation, self._beats, running, 0, self._clock.now
            )

    def _start(self, job: Job, assignment: Assignment) -> None:
        job.dispatched, job.ticket = self._clock.now, assignment
        job.node = self._nodes[assignment.address]
        self._running[job.node] += 1
        self._servers[assignment.address].start(job)

    def _done(self, job: Job) -> None:
        job.finished = self._clock.now
        self._running[job.node] -= 1
        assert isinstance(job.ticket, Assignment), "a job that runs was assigned"
        self._dispatcher.counters.charge(job.request.tenant, answer=job.request.answer)
        self._dispatcher.release(job.ticket, self._clock.now)
        self._ended(job)
        if self._waiting:
            self._place()

    def _place(self) -> None:
        for entry, outcome in self._dispatcher.place(self._clock.now):
            job = self._waiting.pop(entry.key)
            if isinstance(outcome, Assignment):
                self._start(job, outcome)
            else:
                self._refuse(job, outcome)

    def _refuse(self, job: Job, error: LlavaGrpcError) -> None:
        job.error, job.finished = error, self._clock.now
        self._ended(job)

    def _set_alarm(self) -> None:
        """Wake when the next one that waits runs out of time."""
        due = self._dispatcher.next_expiry()
        if due is not None and due < self._alarm:
            self._alarm = due
            self._clock.at(max(due, self._clock.now), self._ring, due)

    def _ring(self, due: float) -> None:
        if due == self._alarm:
            self._alarm = float("inf")
            self._place()
            self._set_alarm()


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
        self._clock, self._rival, self._random, self._ended = clock, rival, random, ended
        self._speeds = [spec.speed for spec in fleet]
        self._room = [spec.slots for spec in fleet]
        self._lengths = [0] * len(fleet)
        self._queues: list[deque[Job]] = [deque() for _ in fleet]
        self._servers = [kind(clock, spec, self._done) for spec in fleet]

    def offer(self, job: Job) -> None:
        job.node = node = self._rival.choose(self._lengths, self._speeds, self._random)
        self._lengths[node] += 1
        if self._room[node]:
            self._start(job)
        else:
            self._queues[node].append(job)

    def beat(self) -> None:
        for node, length in enumerate(self._lengths):
            self._rival.heartbeat(node, length)

    def _start(self, job: Job) -> None:
        self._room[job.node] -= 1
        job.dispatched = self._clock.now
        if self._rival.eager:
            self._rival.heartbeat(job.node, self._lengths[job.node])
        self._servers[job.node].start(job)

    def _done(self, job: Job) -> None:
        node = job.node
        job.finished = self._clock.now
        self._room[node] += 1
        self._lengths[node] -= 1
        if self._rival.eager:
            self._rival.heartbeat(node, self._lengths[node])
        self._ended(job)
        if self._queues[node]:
            self._start(self._queues[node].popleft())
