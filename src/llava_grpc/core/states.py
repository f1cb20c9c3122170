"""A worker's life as a table.

    joining ──reached──> alive ──call failed──> suspect ──sign of life──> alive
    alive, suspect ──drain──> draining
    any of them ──expired, left or replaced──> dead

Laws: only what the table names may happen; dead is for ever (a worker that comes back is a new entry); work is given
to the alive alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class WorkerState(Enum):
    """Where a worker is in its life."""

    JOINING = "joining"
    ALIVE = "alive"
    SUSPECT = "suspect"
    DRAINING = "draining"
    DEAD = "dead"


class WorkerEvent(Enum):
    """What can happen to a worker."""

    REACHED = "reached"
    """The controller called it back at its address."""
    SIGN_OF_LIFE = "sign of life"
    """A heartbeat or registration of this incarnation came."""
    CALL_FAILED = "call failed"
    """The transport to or from it broke, or it did not answer."""
    DRAIN = "drain"
    """It is to finish what it has."""
    EXPIRED = "expired"
    """No heartbeat for too long."""
    LEFT = "left"
    """It deregistered."""
    REPLACED = "replaced"
    """Another incarnation registered at its address."""


_S, _E = WorkerState, WorkerEvent

TRANSITIONS: dict[tuple[WorkerState, WorkerEvent], WorkerState] = {
    (_S.JOINING, _E.REACHED): _S.ALIVE,
    (_S.ALIVE, _E.SIGN_OF_LIFE): _S.ALIVE,
    (_S.ALIVE, _E.CALL_FAILED): _S.SUSPECT,
    (_S.ALIVE, _E.DRAIN): _S.DRAINING,
    (_S.SUSPECT, _E.SIGN_OF_LIFE): _S.ALIVE,
    (_S.SUSPECT, _E.CALL_FAILED): _S.SUSPECT,
    (_S.SUSPECT, _E.DRAIN): _S.DRAINING,
    (_S.DRAINING, _E.SIGN_OF_LIFE): _S.DRAINING,
    (_S.DRAINING, _E.CALL_FAILED): _S.DRAINING,
    (_S.DRAINING, _E.DRAIN): _S.DRAINING,
    **{
        (state, ending): _S.DEAD
        for state in (_S.JOINING, _S.ALIVE, _S.SUSPECT, _S.DRAINING)
        for ending in (_E.EXPIRED, _E.LEFT, _E.REPLACED)
    },
}


def next_state(state: WorkerState, event: WorkerEvent) -> WorkerState:
    """The state after `event`.

    Raises:
        ValueError: the table has no such transition: a defect in the caller.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ValueError(f"a {state.value} worker cannot see {event.value!r}") from None


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """How far a node that drains is: streams that it still answers, streams that it had to end, what is left of the
    grace time in seconds, and whether it has left its controllers."""

    running: int
    ended: int
    grace_left: float
    done: bool
