"""Fleets of batching workers, loads for them, and runs of one on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from llava_grpc.config import SettingsError
from llava_grpc.core.admission import QueueLimits
from llava_grpc.core.strategies import STRATEGIES
from llava_grpc.sim.caches import Caches
from llava_grpc.sim.doors import UNBOUNDED, LateBinding
from llava_grpc.sim.engine import Clock, Ended, simulate
from llava_grpc.sim.faults import Faults, schedule
from llava_grpc.sim.fitted import INVENTED_7B
from llava_grpc.sim.oracle import Oracle
from llava_grpc.sim.rival_doors import AtOnce, Central
from llava_grpc.sim.rivals import LATE_RIVALS, RIVALS
from llava_grpc.sim.service import Batch, Costs, Done, Server, Spec
from llava_grpc.sim.workload import Job, Lengths, Request, bursty, jobs, mean_lengths, poisson

HEARTBEAT, RIVALS_HEARTBEAT = 30.0, 15.0
COSTS = INVENTED_7B
ARRIVALS: dict[str, Callable[[float, Random], Iterator[float]]] = {"poisson": poisson, "bursty": bursty}
ORACLES = {"oracle": False, "oracle_in_order": True}
"""Those that know everything, and whether they keep to the order of arrival."""
Progress = Callable[[int], None]


def strategy_names() -> list[str]:
    """All that a preset can be asked to compare: those of the controller, and those that live here alone."""
    return [*STRATEGIES, *RIVALS, *LATE_RIVALS, *ORACLES]


def binding(strategy: str) -> str:
    """Where requests wait."""
    return "worker" if strategy in RIVALS else "controller"


def run(
    strategy: str,
    requests: Sequence[Request],
    fleet: Sequence[Spec],
    *,
    seed: int,
    limits: QueueLimits = UNBOUNDED,
    costs: Costs = COSTS,
    faults: Faults | None = None,
    progress: Progress | None = None,
) -> list[Job]:
    """The jobs of a run on a fleet of batching workers, in order of their numbers.

    `limits` bind the controller's own strategies alone.

    Raises:
        SettingsError: there is no such strategy.
    """

    def kind(clock: Clock, spec: Spec, done: Done) -> Server:
        return Batch(clock, spec.speed, done, costs, Caches(spec.room))

    ended: list[Job] = []
    clock, end, random = Clock(), Ended(ended.append, progress), Random(f"{seed} choices")
    door: LateBinding | AtOnce
    heartbeat = HEARTBEAT
    if strategy in STRATEGIES:
        door = LateBinding(clock, fleet, kind, STRATEGIES[strategy], random, end, limits)
    elif strategy in RIVALS:
        door, heartbeat = AtOnce(clock, fleet, kind, RIVALS[strategy](), random, end), RIVALS_HEARTBEAT
    elif strategy in LATE_RIVALS:
        door = Central(clock, fleet, kind, LATE_RIVALS[strategy](), random, end)
    elif strategy in ORACLES:
        door = Oracle(clock, fleet, kind, random, end, in_order=ORACLES[strategy])
    else:
        raise SettingsError(f"there is no strategy {strategy!r}; use one of {', '.join(strategy_names())}")
    if faults is not None:
        schedule(clock, door, faults)
    simulate(clock, jobs(requests), door, end, heartbeat=heartbeat)
    return sorted(ended, key=lambda job: job.number)


def after_warm_up(done: Sequence[Job]) -> list[Job]:
    """Without the first tenth, while the fleet fills."""
    return list(done[len(done) // 10 :])


def peak_rate(fleet: Sequence[Spec], lengths: Sequence[Lengths]) -> float:
    """Requests of such lengths that a fleet finishes in a second with every slot taken."""
    prompt, answer = mean_lengths(lengths)
    return sum(spec.speed / COSTS.seconds(prompt, answer, spec.slots) for spec in fleet)


def load_of(
    lengths: Sequence[Lengths],
    rate: float,
    random: Random,
    *,
    arrivals: str = "poisson",
    tenant: str = "",
    patience: tuple[float, float] | None = None,
) -> list[Request]:
    """Requests of those lengths, `rate` a second; with `patience`, a deadline drawn evenly between so many seconds."""
    times = ARRIVALS[arrivals](rate, random)
    requests = []
    for length in lengths:
        at = next(times)
        deadline = at + random.uniform(*patience) if patience is not None else None
        requests.append(Request(at, tenant=tenant, prompt=length.prompt, answer=length.answer, deadline=deadline))
    return requests
