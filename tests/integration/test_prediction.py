"""The simulator's prediction against a real run: a controller, three unlike workers, requests at random times, gRPC.

The workers are echo engines that time as `sim.service.Batch`; what is predicted is all the rest: dispatch, waiting,
slots. Dispatch draws lots where workers are equal, so the prediction is a range, from many simulated runs of the same
requests. The simulator knows of no busy machine: what the event loop is late by is measured meanwhile, and allowed for.
"""

import asyncio
import statistics
import time
from dataclasses import asdict, dataclass, replace
from random import Random

import pytest

from llava_grpc.client import AsyncClient
from llava_grpc.config import EngineSettings
from llava_grpc.core.strategies import shortest_queue
from llava_grpc.sim.doors import LateBinding
from llava_grpc.sim.engine import Clock, Ended, simulate
from llava_grpc.sim.measure import percentile
from llava_grpc.sim.service import Batch, Costs, Done, Spec
from llava_grpc.sim.transport import Far
from llava_grpc.sim.workload import Job, Lengths, Request, jobs, mean_lengths, poisson
from llava_grpc.testing.cluster import Cluster

COSTS = Costs(request=0.01, prompt_token=0.008, step=0.06, step_sequence=0.01)
FLEET = (Spec(1.0, slots=4), Spec(1.5, slots=4), Spec(2.5, slots=4))
REQUESTS, LOAD, SEED = 120, 0.8, 5
RUNS = 60
WAY = 0.003
"""Seconds between controller and worker; what matters is that there are some (see `sim.transport`)."""
OFF = 0.08
"""Beyond the range, relative."""
LATE = 12
"""Seconds that a request may take longer for every second that the event loop is late on average: so many wake-ups, of
client, controller and worker, it waits for one after another, and for those of whoever is before it."""
TICK = 0.02


@dataclass(frozen=True)
class Outcome:
    """What became of a request. Seconds from its sending."""

    to_first_token: float
    response: float
    worker: int


def asked() -> list[Request]:
    """So many a second that the fleet is busy for that share of its time."""
    random = Random(SEED)
    lengths = [Lengths(random.randint(10, 60), random.randint(3, 10)) for _ in range(REQUESTS)]
    prompt, answer = mean_lengths(lengths)
    peak = sum(spec.speed / COSTS.seconds(prompt, answer, spec.slots) for spec in FLEET)
    times = poisson(LOAD * peak, random)
    return [Request(next(times), prompt=one.prompt, answer=one.answer) for one in lengths]


def statistics_of(outcomes: list[Outcome]) -> dict[str, float]:
    first = [outcome.to_first_token for outcome in outcomes]
    whole = [outcome.response for outcome in outcomes]
    shares = {
        f"share of worker {number}": sum(outcome.worker == number for outcome in outcomes) / len(outcomes)
        for number in range(len(FLEET))
    }
    return {
        "first token, mean": statistics.mean(first),
        "first token, p90": percentile(first, 90),
        "response, mean": statistics.mean(whole),
        "response, p90": percentile(whole, 90),
        **shares,
    }


Range = tuple[float, float]


def predicted(requests: list[Request], costs: Costs = COSTS, fleet: tuple[Spec, ...] = FLEET) -> dict[str, Range]:
    """The range of many runs of the simulator."""

    def near(clock: Clock, spec: Spec, done: Done) -> Batch:
        return Batch(clock, spec.speed, done, costs)

    def far(clock: Clock, spec: Spec, done: Done) -> Far:
        return Far(clock, spec, done, kind=near, way=WAY)

    runs = []
    for seed in range(RUNS):
        done: list[Job] = []
        clock, ended = Clock(), Ended(done.append)
        door = LateBinding(clock, fleet, far, shortest_queue, Random(seed), ended)
        simulate(clock, jobs(requests), door, ended, heartbeat=30.0)
        runs.append(statistics_of([Outcome(job.to_first_token, job.response, job.node) for job in done]))
    return {name: (min(run[name] for run in runs), max(run[name] for run in runs)) for name in runs[0]}


async def watch_lateness(late: list[float]) -> None:
    """How late the event loop comes to what is due, at moments that know nothing of it. Seconds."""
    due = time.monotonic()
    while True:
        due += TICK
        await asyncio.sleep(due - time.monotonic())
        late.append(time.monotonic() - due)


async def measured() -> tuple[list[Request], dict[str, float], float]:
    """The requests as they were sent, with the tokens that the workers counted; what became of them; and what the event
    loop was late by on average."""
    asyncio.get_running_loop().set_debug(False)  # it takes most of the time that it measures
    async with Cluster(workers=0, strategy="shortest_queue") as cluster, AsyncClient(cluster.address) as client:
        numbers = {}
        for number, spec in enumerate(FLEET):
            options = {f"{name}_ms": str(1000 * cost / spec.speed) for name, cost in asdict(COSTS).items()}
            options["tokens"] = "1000"
            settings = EngineSettings(speed=spec.speed, slots=spec.slots, options=options)
            numbers[(await cluster.add_worker(engine=settings)).address] = number
        # Connections are made when first needed.
        await asyncio.gather(*(client.ask("warm up", max_new_tokens=2) for _ in range(sum(s.slots for s in FLEET))))
        began = time.monotonic()

        async def ask(planned: Request) -> tuple[Request, Outcome]:
            await asyncio.sleep(began + planned.at - time.monotonic())
            sent, first = time.monotonic(), 0.0
            stream = client.generate(raw="word " * planned.prompt, max_new_tokens=planned.answer)
            async for _ in stream:
                first = first or time.monotonic()
            assert stream.started is not None
            assert stream.finished is not None
            usage = stream.finished.usage
            request = Request(sent - began, prompt=usage.prompt_tokens, answer=usage.completion_tokens)
            worker = numbers[stream.started.worker_address]
            return request, Outcome(first - sent, time.monotonic() - sent, worker)

        late: list[float] = []
        watching = asyncio.create_task(watch_lateness(late))
        both = await asyncio.gather(*map(ask, asked()))
        watching.cancel()
    both.sort(key=lambda pair: pair[0].at)
    return [request for request, _ in both], statistics_of([outcome for _, outcome in both]), statistics.mean(late)


def differences(found: dict[str, float], expected: dict[str, Range], late: float) -> dict[str, str]:
    """What is not as expected."""

    def agrees(name: str) -> bool:
        low, high = expected[name]
        if name.startswith("share"):
            return low * (1 - OFF) - late <= found[name] <= high * (1 + OFF) + late
        return low * (1 - OFF) <= found[name] <= high * (1 + OFF) + LATE * late

    return {
        name: f"{value:.3f}, expected {expected[name][0]:.3f} to {expected[name][1]:.3f}"
        for name, value in found.items()
        if not agrees(name)
    }


async def test_a_fleet_does_what_the_simulator_says():
    requests, found, late = await measured()
    assert differences(found, predicted(requests), late) == {}, f"the event loop was late by {1000 * late:.1f} ms"


@pytest.mark.parametrize(
    ("costs", "fleet"),
    [
        (replace(COSTS, prompt_token=1.25 * COSTS.prompt_token), FLEET),
        (replace(COSTS, step_sequence=1.5 * COSTS.step_sequence), FLEET),
        (COSTS, tuple(replace(spec, slots=3) for spec in FLEET)),
        (COSTS, (Spec(1.25, slots=4), Spec(1.5, slots=4), Spec(2.25, slots=4))),
    ],
)
def test_the_comparison_tells_other_workers_apart(costs: Costs, fleet: tuple[Spec, ...]):
    """It would see a prediction for workers that are not those measured."""
    requests = asked()
    here = {name: sum(both) / 2 for name, both in predicted(requests).items()}
    assert differences(here, predicted(requests, costs, fleet), late=0.001) != {}
