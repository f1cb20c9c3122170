"""What a fleet says of itself, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from llava_grpc.core.states import WorkerState
from llava_grpc.core.stream import ModelCard


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked for, and how many live workers serve it."""

    card: ModelCard
    workers: int

    @property
    def name(self) -> str:
        """The name to ask for."""
        return self.card.name


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """What the controller knows of a worker.

    `in_flight` are requests sent by this controller and not ended, `running` and `waiting` what the worker said in its
    last heartbeat, `heartbeat_age` the seconds since then. `state` is None where this release does not know it.
    `kv_tokens` and `cached_pictures` are what its caches have room for, 0 where unknown.
    """

    address: str
    incarnation: str
    state: WorkerState | None
    models: tuple[str, ...]
    speed: float
    slots: int
    in_flight: int
    running: int
    waiting: int
    heartbeat_age: float
    registered_at: datetime
    check_heartbeat: bool
    version: str
    kv_tokens: int
    cached_pictures: int


def state_named(name: str) -> WorkerState | None:
    """The state of that name, e.g. ``alive``; None for a newer release's."""
    return next((state for state in WorkerState if state.value == name), None)
