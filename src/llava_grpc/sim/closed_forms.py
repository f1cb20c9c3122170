"""The simulator against queueing theory: where theory knows the mean response, the simulator must find it.

In each system work is exponential with mean 1 and arrivals are Poisson. The control variate (see `measure.estimate`) is
the wait in a single server as fast as all together that gets the same requests: its path is Lindley's recursion, its
mean is known, and it rises and falls as the queues do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from random import Random

from llava_grpc.core.strategies import shortest_queue
from llava_grpc.sim import theory
from llava_grpc.sim.doors import LateBinding
from llava_grpc.sim.engine import Clock, Door, Ended, simulate
from llava_grpc.sim.measure import BatchMeans, Estimate, estimate
from llava_grpc.sim.rival_doors import AtOnce
from llava_grpc.sim.rivals import AnyOne, TwoChoices
from llava_grpc.sim.service import Spec, Steady
from llava_grpc.sim.workload import Job, Request, exponential, jobs

HEARTBEAT = 30.0
LOADS = (0.7, 0.9, 0.95)


@dataclass(frozen=True, slots=True)
class System:
    """Servers before which requests queue, and what theory says of the mean response at a load."""

    name: str
    servers: int
    exact: Callable[[float], float]
    door: Callable[[Clock, list[Spec], Random, Ended], Door]


def _late(clock: Clock, fleet: list[Spec], random: Random, ended: Ended) -> Door:
    return LateBinding(clock, fleet, Steady, shortest_queue, random, ended)


def _any_one(clock: Clock, fleet: list[Spec], random: Random, ended: Ended) -> Door:
    return AtOnce(clock, fleet, Steady, AnyOne(), random, ended)


def _two(clock: Clock, fleet: list[Spec], random: Random, ended: Ended) -> Door:
    return AtOnce(clock, fleet, Steady, TwoChoices(), random, ended)


def _central(servers: int) -> System:
    return System(f"central queue, {servers} servers", servers, lambda load: theory.central_queue(servers, load), _late)


SYSTEMS = (
    System("random, 4 servers", 4, theory.one_server, _any_one),
    _central(4),
    _central(8),
    _central(16),
    System("two choices, 200 servers", 200, theory.two_choices, _two),
)


def mean_response(
    system: System, load: float, requests: int, seed: int, progress: Callable[[int], None] | None = None
) -> Estimate:
    """Of so many requests to a system. What is sampled is the wait; the mean work, 1, is known."""
    waits, control = BatchMeans(requests), BatchMeans(requests)

    def each(job: Job) -> None:
        waits.add(job.number, job.response - job.request.work)

    clock, ended = Clock(), Ended(each, progress)
    door = system.door(clock, [Spec()] * system.servers, Random(f"{seed} choices"), ended)
    asked = exponential(requests, load * system.servers, Random(f"{seed} requests"))
    simulate(clock, jobs(_watched(asked, system.servers, control)), door, ended, heartbeat=HEARTBEAT)
    wait = estimate(waits, control, load / (1 - load) / system.servers)
    return Estimate(1 + wait.mean, wait.half_width)


def _watched(requests: Iterable[Request], speed: int, control: BatchMeans) -> Iterator[Request]:
    """The same requests, while the control is computed from them."""
    wait, last = 0.0, Request(at=0.0)
    for number, request in enumerate(requests):
        wait = max(0.0, wait + last.work / speed - (request.at - last.at))
        control.add(number, wait)
        last = request
        yield request
