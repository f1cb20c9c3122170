"""A worker: what it says of itself, and what the register knows of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llava_grpc.config import is_address
from llava_grpc.core.states import WorkerEvent, WorkerState, next_state
from llava_grpc.core.stream import ModelCard
from llava_grpc.errors import RegistrationInvalidError


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a worker says of itself. Checked as it is made.

    `speed` is relative, tokens per second where measured; `slots` are requests answered at once; `kv_tokens` what its
    cache of keys and values has room for, over all requests, and `cached_pictures` how many pictures' features it
    keeps, each 0 where unknown. `controllers` are the incarnations of those that it consists of, if it is one.
    """

    address: str
    incarnation: str
    cards: tuple[ModelCard, ...]
    speed: float
    slots: int
    check_heartbeat: bool = True
    version: str = ""
    kv_tokens: int = 0
    cached_pictures: int = 0
    controllers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def refuse(cause: str, remedy: str) -> RegistrationInvalidError:
            return RegistrationInvalidError(cause, remedy=remedy)

        if not is_address(self.address):
            raise refuse(f"the address {self.address!r} cannot be called", "Advertise HOST:PORT")
        if not self.incarnation:
            raise refuse("the incarnation is empty", "Draw one at start, e.g. a UUID")
        if not self.cards or any(not card.name for card in self.cards):
            raise refuse("no model, or one without a name", "Register at least one named model")
        if not math.isfinite(self.speed) or self.speed < 0:
            raise refuse(f"speed is {self.speed}", "Use a finite number, 0 or more")
        if self.slots < 1:
            raise refuse(f"slots is {self.slots}", "Use at least 1")


@dataclass(slots=True)
class Worker:
    """A worker on the register. Changed by the registry alone."""

    registration: Registration
    row: int
    registered_at: float
    last_sign: float
    state: WorkerState = WorkerState.JOINING
    sequence: int = 0
    in_flight: int = 0
    reported_running: int = 0
    reported_waiting: int = 0
    external: int = 0
    promised: int = 0
    """Tokens of KV cache that our requests on it may take."""
    unread: int = 0
    """Prompt tokens, beyond those cached, of our requests on it that have not had their first token."""
    doubted_at: float = 0.0
    """When it came in doubt last."""
    hung_at: int | None = None
    """Where it answers but computes nothing: the tokens that it had made. It is well once they are more."""

    @property
    def address(self) -> str:
        return self.registration.address

    @property
    def incarnation(self) -> str:
        return self.registration.incarnation

    @property
    def queue_length(self) -> int:
        """Requests on it, ours and others'."""
        return self.in_flight + self.external

    @property
    def names(self) -> Iterator[str]:
        """Names and aliases of its models."""
        for card in self.registration.cards:
            yield card.name
            yield from card.aliases

    def see(self, event: WorkerEvent) -> None:
        self.state = next_state(self.state, event)
