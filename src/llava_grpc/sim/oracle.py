"""A door that knows everything: what each worker keeps, the work it has left, and how long answers will be.

It is greedy, so it is no upper bound; but it knows what nobody can. Of the requests that wait and the workers with
room it starts the pair that costs all together the least (`Batch.delay`), again and again; so it may let one request
overtake another, unless that one has waited for `PATIENCE`. `in_order` takes that liberty away: what is left is the
choice of a worker, as a strategy has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from llava_grpc.sim.engine import Clock
from llava_grpc.sim.rival_doors import Central
from llava_grpc.sim.rivals import Rival
from llava_grpc.sim.service import Batch, ServerKind, Spec
from llava_grpc.sim.workload import Job

PATIENCE = 2.0
"""Seconds after which a request that waits goes next."""


class Oracle(Central):
    """See the module. Its servers are `Batch`."""

    def __init__(
        self,
        clock: Clock,
        fleet: Sequence[Spec],
        kind: ServerKind,
        random: Random,
        ended: Callable[[Job], None],
        *,
        in_order: bool = False,
    ) -> None:
        super().__init__(clock, fleet, kind, Rival(), random, ended)
        self._in_order = in_order

    def _place(self) -> None:
        while self._waiting:
            roomy = [node for node in self._known_well if self._room[node]]
            if not roomy:
                return
            first = self._waiting[0]
            must = self._in_order or self._clock.now - first.request.at >= PATIENCE
            _, number, node = min(
                (self._delay(job, node), number, node)
                for number, job in enumerate([first] if must else self._waiting)
                for node in roomy
            )
            job = self._waiting[number]
            del self._waiting[number]
            self._give(job, node)

    def _delay(self, job: Job, node: int) -> float:
        server = self._servers[node]
        assert isinstance(server, Batch), "an oracle sees into batching workers only"
        return server.delay(job.request)
