"""The door that fleets have: the controller's own dispatcher, with registry, strategy and queues as they run there.

A request that finds no room waits there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from llava_grpc.core.admission import Entry, QueueLimits
from llava_grpc.core.demand import Demand, plain
from llava_grpc.core.dispatcher import Assignment, Dispatcher
from llava_grpc.core.registry import Registry
from llava_grpc.core.strategies import Strategy
from llava_grpc.core.stream import ModelCard
from llava_grpc.core.worker import Registration
from llava_grpc.errors import LlavaGrpcError
from llava_grpc.sim.engine import Clock
from llava_grpc.sim.service import Server, ServerKind, Spec
from llava_grpc.sim.workload import MOST_ANSWER_TOKENS, Job, Request

MODEL = "simulated"
EXPIRY = 90.0
DECLINED_PAUSE = 0.05
"""Seconds until a request that all have declined is tried again."""
UNBOUNDED = QueueLimits(length=2**62, wait=1e15)
"""A queue in which everybody waits as long as it takes."""


def demand_of(request: Request) -> Demand:
    """What the controller knows of it."""
    if request.pieces:
        return Demand(request.pieces, request.pictures, MOST_ANSWER_TOKENS)
    return plain(request.prompt, MOST_ANSWER_TOKENS)


def _entry(job: Job) -> Entry:
    request = job.request
    return Entry(
        key=job.key,
        tenant=request.tenant,
        priority=request.priority,
        demand=demand_of(request),
        deadline=request.deadline,
        arrived=request.at,
    )


@dataclass(slots=True)
class _Life:
    """One life of a worker: what it is known by, and what was given to it and is not over.

    `silent`: its heartbeats do not arrive. `dead`: it does nothing any more, and whoever is given to it hangs.
    """

    registration: Registration
    server: Server
    jobs: dict[str, Job] = field(default_factory=dict)
    silent: bool = False
    dead: bool = False


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
        self._clock, self._fleet, self._kind, self._ended = clock, fleet, kind, ended
        self._registry = Registry(expiry=EXPIRY)
        self._dispatcher = Dispatcher(self._registry, strategy, random, limits=limits)
        self._lives: list[_Life] = []
        self._nodes: dict[str, int] = {}
        self._beats = 0
        for number in range(len(fleet)):
            life = self._born(number, f"life-{number}")
            self._lives.append(life)
            self._nodes[life.registration.address] = number
        self._waiting: dict[str, Job] = {}
        self._alarm = float("inf")

    def offer(self, job: Job) -> None:
        try:
            assignment = self._dispatcher.admit(MODEL, _entry(job), self._clock.now)
        except LlavaGrpcError as error:
            self._refuse(job, error)
            return
        if assignment is not None:
            self._start(job, assignment)
        else:
            self._waiting[job.key] = job
            self._place()  # somebody else may have had to make way
            self._set_alarm()

    def beat(self) -> None:
        self._beats += 1
        for life in self._lives:
            if not life.silent:
                self._hear(life)

    # ----------------------------------------------------------------------------------------------------- failures

    def fail(self, worker: int, dies: bool) -> None:
        life = self._lives[worker]
        life.silent = True
        if dies:
            life.dead = True
            life.server.stop()
        due = self._registry.next_expiry()
        assert due is not None, "the worker is on the register"
        self._clock.at(max(due, self._clock.now), self._reap)

    def notice(self, worker: int) -> None:
        life = self._lives[worker]
        self._registry.call_failed(life.registration.address, life.registration.incarnation, self._clock.now)
        self._lose(life)

    def come_back(self, worker: int) -> None:
        life = self._lives[worker]
        if life.dead:
            self._lives[worker] = self._born(worker, f"{life.registration.incarnation}-again")
            self._lose(life)
        else:
            life.silent = False
            self._hear(life)
        self._place()

    def _hear(self, life: _Life) -> None:
        """A heartbeat; a worker that is told "unknown" registers again."""
        address, incarnation, now = life.registration.address, life.registration.incarnation, self._clock.now
        if not self._registry.heartbeat(address, incarnation, self._beats, len(life.jobs), 0, now):
            self._registry.register(life.registration, now)

    def _reap(self, _: None) -> None:
        """Take the silent off the register. What the dead were doing is lost; the streams of others run on."""
        for gone in self._registry.expire(self._clock.now):
            life = self._lives[self._nodes[gone.address]]
            if life.dead:
                self._lose(life)
        if any(life.silent and self._on_register(life) for life in self._lives):
            due = self._registry.next_expiry()
            assert due is not None, "somebody is on the register"
            self._clock.at(due, self._reap)

    def _on_register(self, life: _Life) -> bool:
        return self._registry.find(life.registration.address, life.registration.incarnation) is not None

    def _lose(self, life: _Life) -> None:
        """What it was doing is for others to do."""
        lost = list(life.jobs.values())
        life.jobs.clear()
        for job in lost:
            assert isinstance(job.ticket, Assignment), "a job that runs was assigned"
            self._dispatcher.release(job.ticket, self._clock.now)
            self._take_back(job)
            job.retries += 1
        for job in lost:
            self.offer(job)

    # ------------------------------------------------------------------------------------------------------- within

    def _born(self, number: int, incarnation: str) -> _Life:
        """A worker begins a life and registers."""
        spec = self._fleet[number]
        registration = Registration(
            address=f"worker-{number:03}:21002",
            incarnation=incarnation,
            cards=(ModelCard(MODEL),),
            speed=spec.speed,
            slots=spec.slots,
            kv_tokens=spec.room.tokens,
            cached_pictures=spec.room.pictures,
        )
        self._registry.register(registration, self._clock.now)
        return _Life(registration, self._kind(self._clock, spec, self._done))

    def _start(self, job: Job, assignment: Assignment, tried: frozenset[str] = frozenset()) -> None:
        node = self._nodes[assignment.address]
        life = self._lives[node]
        if len(life.jobs) >= life.registration.slots:
            self._decline(job, assignment, tried | {assignment.incarnation})
            return
        job.dispatched, job.ticket, job.node = self._clock.now, assignment, node
        life.jobs[job.key] = job
        job.when_read = self._was_read
        if not life.dead:
            life.server.start(job)

    def _decline(self, job: Job, assignment: Assignment, tried: frozenset[str]) -> None:
        """The worker has no slot, whatever the register says: another one, or the same way again after a pause."""
        job.declined += 1
        self._dispatcher.release(assignment, self._clock.now)
        try:
            another = self._dispatcher.assign(MODEL, _entry(job), self._clock.now, tried)
        except LlavaGrpcError:
            another = None
        if another is None:
            self._take_back(job)
            self._clock.at(self._clock.now + DECLINED_PAUSE, self.offer, job)
        else:
            self._start(job, another, tried)

    def _was_read(self, job: Job) -> None:
        assert isinstance(job.ticket, Assignment), "a job that runs was assigned"
        self._dispatcher.was_read(job.ticket, self._clock.now)

    def _take_back(self, job: Job) -> None:
        """Its tenant is charged again when it is given out again."""
        self._dispatcher.counters.charge(job.request.tenant, prompt=-job.request.prompt)

    def _done(self, job: Job) -> None:
        job.finished = self._clock.now
        del self._lives[job.node].jobs[job.key]
        assert isinstance(job.ticket, Assignment), "a job that runs was assigned"
        self._dispatcher.counters.charge(job.request.tenant, answer=job.request.answer)
        self._dispatcher.release(job.ticket, self._clock.now)
        self._dispatcher.finish(job.key, self._clock.now, "ok", job.request.prompt, job.request.answer)
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
