"""The real dispatcher: a path equal to a textbook recursion, deadlines kept, nobody lost whatever fails."""

import heapq
from random import Random

import pytest

from llava_grpc.core.admission import QueueLimits
from llava_grpc.core.strategies import STRATEGIES, lottery, shortest_queue
from llava_grpc.errors import DeadlineExceededError, NoLiveWorkerError, QueueFullError
from llava_grpc.sim.doors import UNBOUNDED, LateBinding
from llava_grpc.sim.engine import Clock, Ended, simulate
from llava_grpc.sim.faults import Fault, Faults, draw, schedule
from llava_grpc.sim.service import Spec, Steady
from llava_grpc.sim.workload import Job, Request, exponential, jobs


def late(
    requests: list[Request],
    fleet: list[Spec],
    limits: QueueLimits = UNBOUNDED,
    strategy=shortest_queue,
    faults: Faults | None = None,
) -> list[Job]:
    done: list[Job] = []
    clock, ended = Clock(), Ended(done.append)
    door = LateBinding(clock, fleet, Steady, strategy, Random(1), ended, limits)
    schedule(clock, door, faults or Faults())
    simulate(clock, jobs(requests), door, ended, heartbeat=30.0)
    return sorted(done, key=lambda job: job.number)


@pytest.mark.parametrize("servers", [1, 4, 16])
@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_late_binding_is_a_central_queue_to_the_last_request(servers: int, strategy):
    """Kiefer and Wolfowitz: in a first-come queue each starts when the earliest server is free."""
    requests = [*exponential(3000, 0.9 * servers, Random(servers))]
    free = [0.0] * servers
    starts = []
    for request in requests:
        starts.append(max(request.at, heapq.heappop(free)))
        heapq.heappush(free, starts[-1] + request.work)
    assert [job.dispatched for job in late(requests, [Spec()] * servers, strategy=strategy)] == pytest.approx(starts)


def test_slots_are_never_exceeded_and_never_idle_while_somebody_waits():
    requests = [*exponential(2000, 11.0, Random(3))]
    done = late(requests, [Spec(1, 4), Spec(2, 4)], strategy=lottery)
    changes = sorted([(job.dispatched, 1, job.node) for job in done] + [(job.finished, -1, job.node) for job in done])
    running = [0, 0]
    for _, change, node in changes:
        running[node] += change
        assert 0 <= running[node] <= 4
    for job in done:
        if job.wait > 0:  # somebody ended that very moment
            assert any(other.finished == job.dispatched for other in done)


def test_nothing_is_dispatched_after_its_deadline_and_who_expires_is_told_then():
    requests = [Request(float(number) / 10, work=1.0, deadline=number / 10 + 2) for number in range(100)]
    done = late(requests, [Spec()])
    refused = [job for job in done if job.error is not None]
    assert len(refused) > 50
    for job in done:
        assert job.request.deadline is not None
        if job.error is None:
            assert job.dispatched < job.request.deadline
        else:
            assert isinstance(job.error, DeadlineExceededError)
            assert job.finished == pytest.approx(job.request.deadline)


def test_a_full_queue_refuses_at_once():
    done = late([Request(0.0, work=1.0) for _ in range(5)], [Spec()], QueueLimits(length=2, wait=60))
    assert [job.finished for job in done if job.error is None] == [1.0, 2.0, 3.0]
    assert [(type(job.error), job.finished) for job in done if job.error] == [(QueueFullError, 0.0)] * 2


@pytest.mark.parametrize("noticed", [0.0, 5.0, 1000.0])
def test_what_a_dead_worker_was_doing_begins_again_elsewhere_when_it_is_noticed(noticed: float):
    requests = [Request(0.0, work=20.0), Request(0.0, work=20.0), Request(12.0, work=1.0)]
    done = late(requests, [Spec(), Spec()], faults=Faults([Fault(0, 10.0, 500.0)], noticed))
    (lost,) = [job for job in done if job.retries]
    assert lost.number < 2
    known = min(10.0 + noticed, 90.0)  # three heartbeats were missed then
    assert (lost.node, lost.dispatched) == (1, max(known, 20.0))
    assert lost.finished == lost.dispatched + 20.0
    assert [job.error for job in done] == [None] * 3


def test_a_dead_worker_that_nobody_noticed_is_given_its_slots_and_no_more():
    requests = [Request(1.0 + number / 10, work=0.05) for number in range(100)]
    done = late(requests, [Spec(slots=4), Spec(slots=4)], strategy=lottery, faults=Faults([Fault(0, 0.5, 300.0)], 50.0))
    assert sum(job.retries for job in done) == 4
    assert all(job.node == 1 for job in done)


def test_a_worker_that_comes_back_unnoticed_has_lost_what_it_was_doing_and_works_again():
    done = late([Request(0.0, work=10.0), Request(21.0, work=1.0)], [Spec()], faults=Faults([Fault(0, 5.0, 20.0)]))
    assert [(job.retries, job.dispatched, job.finished) for job in done] == [(1, 20.0, 30.0), (0, 30.0, 31.0)]


def test_nobody_well_is_told():
    """Whoever lost a worker just now waits for it; who comes a while later is told that nobody is well."""
    requests = [Request(0.0, work=10.0), Request(10.0, work=1.0)]
    done = late(requests, [Spec()], faults=Faults([Fault(0, 5.0, 20.0)], noticed=1.0))
    assert [(type(job.error), job.finished) for job in done] == [(type(None), 30.0), (NoLiveWorkerError, 10.0)]


@pytest.mark.parametrize("back", [50.0, 95.0, 250.0])
def test_a_worker_whose_heartbeats_are_lost_works_on_and_is_never_given_more_than_its_slots(back: float):
    requests = [Request(0.0, work=200.0), Request(240.0, work=1.0), Request(260.0, work=50.0), Request(261.0, work=1.0)]
    done = late(requests, [Spec()], faults=Faults([Fault(0, 1.0, back, dies=False)]))
    first, second, third, fourth = done
    assert (first.finished, first.retries) == (200.0, 0)
    # Silent for more than 90 s, it is off the register; told "unknown", it registers again.
    assert isinstance(second.error, NoLiveWorkerError) if back == 250.0 else second.finished == 241.0
    assert (third.finished, fourth.dispatched) == (310.0, pytest.approx(310.0, abs=0.051))


@pytest.mark.parametrize("seed", range(10))
def test_every_job_ends_once_whatever_fails(seed: int):
    random = Random(seed)
    requests = [*exponential(400, 1.2, random)]
    faults = [
        *draw(2, 300.0, random, every=20.0, away=15.0),
        *(fault._replace(worker=2 + fault.worker) for fault in draw(2, 300.0, random, every=50, away=100, dies=False)),
    ]
    done = late(requests, [Spec()] * 4, faults=Faults(faults, noticed=random.choice([0.0, 3.0, 1000.0])))
    assert [job.number for job in done] == [*range(400)]
    assert sum(job.retries for job in done) > 0
    served = [job for job in done if job.error is None]
    assert len(served) > 390
    begun = [(job.dispatched, 1, job.node) for job in served]
    running = [0] * 4
    for _, change, node in sorted(begun + [(job.finished, -1, job.node) for job in served]):
        running[node] += change
        assert 0 <= running[node] <= 1
