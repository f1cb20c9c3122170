"""Dispatch: the registry, a strategy and the queues together decide who gets a request and when.

Laws:
1. Late binding: a worker is given only what it has room for; the rest waits here, in one queue a model, and is given to
   whichever worker has room first. Nobody who comes later overtakes those who wait but by the queue's own order.
2. Every assignment is released exactly once in effect, however often `release` is called, and even if its worker was
   taken off the register meanwhile.
3. What is expired is never dispatched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from random import Random

from llava_grpc.core.admission import RETRY_WHEN_FULL, AdmissionQueue, Entry, QueueLimits, ServiceCounters
from llava_grpc.core.pace import ReleasePace
from llava_grpc.core.registry import Registry, Worker
from llava_grpc.core.states import WorkerState
from llava_grpc.core.strategies import Candidate, Strategy
from llava_grpc.core.stream import Queued
from llava_grpc.errors import (
    AllSlotsTakenError,
    LlavaGrpcError,
    ModelNotFoundError,
    ModelRequiredError,
    NoLiveWorkerError,
)


@dataclass(slots=True, eq=False)
class Assignment:
    """A request for `model` given to one life of a worker."""

    address: str
    incarnation: str
    model: str
    released: bool = False


@dataclass(slots=True)
class _Line:
    """What waits for a model, and how fast it moves."""

    queue: AdmissionQueue
    pace: ReleasePace = field(default_factory=ReleasePace)


@dataclass(slots=True)
class Dispatcher:
    """See the module. `limits` of length 0 turn waiting off."""

    registry: Registry
    strategy: Strategy
    random: Random = field(default_factory=Random)
    limits: QueueLimits = field(default_factory=lambda: QueueLimits(length=0))
    counters: ServiceCounters = field(default_factory=ServiceCounters)
    _lines: dict[str, _Line] = field(default_factory=dict)

    # -------------------------------------------------------------------------------------------------- to a worker

    def resolve(self, model: str) -> str:
        """The name to ask workers for: the model's proper one, or the only model's where none was given.

        Raises:
            ModelRequiredError: none was given and several are served.
            NoLiveWorkerError: none was given and none is served.
        """
        if model:
            return self.registry.canonical(model)
        names = self.registry.model_names()
        if not names:
            raise NoLiveWorkerError("no worker is registered")
        if len(names) > 1:
            raise ModelRequiredError(f"several models are served ({_listed(names)}) and the request names none")
        return names[0]

    def assign(self, model: str, tried: Collection[str] = ()) -> Assignment:
        """Choose a worker for `model` (a resolved name), leaving out the incarnations in `tried`, and count it in.

        Raises:
            ModelNotFoundError: nobody ever served it.
            NoLiveWorkerError: those who do are gone, suspect, draining, or tried already.
            AllSlotsTakenError: those who are well have no room.
            AllSpeedsZeroError: those who have room advertise speed 0.
        """
        alive = self._alive(model, tried)
        roomy = {worker.address: worker for worker in alive if worker.has_room}
        if not roomy:
            raise AllSlotsTakenError(
                f"all {sum(worker.registration.slots for worker in alive)} slots for {model!r} are taken",
                retry_after=RETRY_WHEN_FULL,
            )
        chosen = self.strategy([_candidate(worker) for worker in roomy.values()], self.random)
        worker = roomy[chosen.address]
        worker.in_flight += 1
        return Assignment(worker.address, worker.incarnation, model)

    def release(self, assignment: Assignment, now: float) -> None:
        """The request's stream with that worker is over, however it ended."""
        if assignment.released:
            return
        assignment.released = True
        worker = self.registry.find(assignment.address, assignment.incarnation)
        if worker is not None:
            worker.in_flight -= 1
        if (line := self._lines.get(assignment.model)) is not None:
            line.pace.record(now)

    # --------------------------------------------------------------------------------------------------- or to wait

    def admit(self, model: str, entry: Entry) -> Assignment | None:
        """A worker at once, where one has room and nobody waits; else None: the request waits (see `place`).

        Raises:
            QueueFullError: as many wait as may.
            The errors of `assign`, but AllSlotsTakenError only where waiting is off.
        """
        if not self.waiting(model):
            try:
                assignment = self.assign(model)
            except AllSlotsTakenError:
                if self.limits.length == 0:
                    raise
            else:
                self.counters.charge(entry.tenant, prompt=entry.prompt_tokens)
                return assignment
        else:
            self._alive(model)
        self._line(model).queue.push(entry)
        return None

    def place(self, now: float) -> Iterator[tuple[Entry, Assignment | LlavaGrpcError]]:
        """Those who wait no longer: each with its worker, or with what to tell it. To be called when room may have
        come, and at `next_expiry`."""
        for model, line in list(self._lines.items()):
            yield from line.queue.expire(now)
            while len(line.queue):
                try:
                    assignment = self.assign(model)
                except LlavaGrpcError:
                    break  # no room, or nobody well just now: they wait on, within their limit
                entry = line.queue.take()
                assert entry is not None, "somebody waits"
                yield entry, assignment
            if not len(line.queue) and not self._busy(model):
                del self._lines[model]

    def forget(self, model: str, key: str) -> None:
        """A request that waits was cancelled."""
        if (line := self._lines.get(model)) is not None:
            line.queue.remove(key)

    def outlook(self, model: str, key: str) -> Queued:
        """Where a request that waits stands.

        Raises:
            KeyError: it does not wait.
        """
        line = self._lines[model]
        position = line.queue.position(key)
        return Queued(position, line.pace.wait(position))

    def waiting(self, model: str) -> int:
        """How many wait for a model."""
        line = self._lines.get(model)
        return len(line.queue) if line is not None else 0

    def next_expiry(self) -> float | None:
        """When the next one that waits runs out of time; None where nobody waits."""
        return min(
            (due for line in self._lines.values() if (due := line.queue.next_expiry()) is not None), default=None
        )

    # --------------------------------------------------------------------------------------------------------- within

    def _alive(self, model: str, tried: Collection[str] = ()) -> list[Worker]:
        """Workers of the model that are well; at least one, or the reason why not is raised."""
        alive = [
            worker
            for worker in self.registry.serving(model)
            if worker.state is WorkerState.ALIVE and worker.incarnation not in tried
        ]
        if alive:
            return alive
        names = self.registry.model_names()
        if self.registry.was_served(model):
            raise NoLiveWorkerError(f"no worker that serves {model!r} is well")
        if not names:
            raise NoLiveWorkerError("no worker is registered")
        raise ModelNotFoundError(f"no model is named {model!r}; served are {_listed(names)}")

    def _line(self, model: str) -> _Line:
        if model not in self._lines:
            self._lines[model] = _Line(AdmissionQueue(self.limits, self.counters))
        return self._lines[model]

    def _busy(self, model: str) -> bool:
        """Whether its pace is worth remembering."""
        return any(worker.in_flight for worker in self.registry.serving(model))


def _candidate(worker: Worker) -> Candidate:
    registration = worker.registration
    return Candidate(worker.address, registration.speed, worker.queue_length, registration.slots - worker.in_flight)


def _listed(names: list[str], most: int = 10) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
