"""Where a drill is played: its seed, its size, its progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from rich.progress import Progress

from drills.fleet import Fleet, Footprint
from drills.outcome import Outcome
from drills.rest import at_rest

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """See the module. `quick`: the same in less time, with fewer faults and streams."""

    seed: int
    quick: bool
    progress: Progress

    def chance(self, name: str) -> Random:
        """A random source of that name: each drill's faults and load are the same, whatever else is played."""
        return Random(f"{self.seed} {name}")

    def either(self, full: T, quick: T) -> T:
        """One of them, by the size."""
        return quick if self.quick else full

    def bar(self, what: str, total: float) -> Callable[[float], None]:
        """A progress bar; called with how far it is."""
        task = self.progress.add_task(what, total=total)

        def move(done: float) -> None:
            self.progress.update(task, completed=min(done, total))

        return move


async def leave(outcome: Outcome, fleet: Fleet, before: Footprint) -> None:
    """At the end of a drill: demand that the fleet holds nothing any more and has not grown, and keep its logs where
    any demand is not met."""
    held = await at_rest(fleet)
    outcome.leaked += held.requests
    outcome.require(held.requests == 0, f"{held.requests} requests leaked: {held.where}")
    outcome.require(held.strangers == 0, f"the register is not as the fleet: {held.where}")
    grown = before.grown([*fleet.controllers, *fleet.workers])
    outcome.require(not grown, f"nodes grow: {'; '.join(grown)}")
    if outcome.broken:
        outcome.notes.append(f"what the nodes said: {fleet.keep_logs()}")
