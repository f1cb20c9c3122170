"""Dispatch: the registry and a strategy together decide who gets a request, and count it until it ends.

Law: every assignment is released exactly once in effect, however often `release` is called, and even if its worker was
taken off the register meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random

from llava_grpc.core.registry import Registry, Worker
from llava_grpc.core.states import WorkerState
from llava_grpc.core.strategies import Candidate, Strategy
from llava_grpc.errors import AllSlotsTakenError, ModelNotFoundError, ModelRequiredError, NoLiveWorkerError

RETRY_WHEN_FULL = 1.0
"""Seconds after which a client that found every slot taken is told to try again."""


@dataclass(slots=True, eq=False)
class Assignment:
    """A request given to one life of a worker."""

    address: str
    incarnation: str
    released: bool = False


@dataclass(slots=True)
class Dispatcher:
    """See the module."""

    registry: Registry
    strategy: Strategy
    random: Random = field(default_factory=Random)

    def resolve(self, model: str) -> str:
        """The name to ask workers for: as given, or the only model's where none was given.

        Raises:
            ModelRequiredError: none was given and several are served.
            NoLiveWorkerError: none was given and none is served.
        """
        if model:
            return model
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
        alive = [
            worker
            for worker in self.registry.serving(model)
            if worker.state is WorkerState.ALIVE and worker.incarnation not in tried
        ]
        if not alive:
            raise self._nobody(model)
        roomy = {worker.address: worker for worker in alive if worker.has_room}
        if not roomy:
            raise AllSlotsTakenError(
                f"all {sum(worker.registration.slots for worker in alive)} slots for {model!r} are taken",
                retry_after=RETRY_WHEN_FULL,
            )
        chosen = self.strategy([_candidate(worker) for worker in roomy.values()], self.random)
        worker = roomy[chosen.address]
        worker.in_flight += 1
        return Assignment(worker.address, worker.incarnation)

    def release(self, assignment: Assignment) -> None:
        """The request's stream with that worker is over, however it ended."""
        if assignment.released:
            return
        assignment.released = True
        worker = self.registry.find(assignment.address, assignment.incarnation)
        if worker is not None:
            worker.in_flight -= 1

    def _nobody(self, model: str) -> ModelNotFoundError | NoLiveWorkerError:
        names = self.registry.model_names()
        if self.registry.was_served(model):
            return NoLiveWorkerError(f"no worker that serves {model!r} is well")
        if not names:
            return NoLiveWorkerError("no worker is registered")
        return ModelNotFoundError(f"no model is named {model!r}; served are {_listed(names)}")


def _candidate(worker: Worker) -> Candidate:
    registration = worker.registration
    return Candidate(worker.address, registration.speed, worker.queue_length, registration.slots - worker.queue_length)


def _listed(names: list[str], most: int = 10) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
