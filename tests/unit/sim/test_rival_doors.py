"""Rules at work: each worker a queue of its own, or one queue before them all; and what both do when workers fail."""

from collections.abc import Callable
from random import Random

import pytest

from llava_grpc.sim.engine import Clock, Ended, simulate
from llava_grpc.sim.faults import Fault, Faults, draw, schedule
from llava_grpc.sim.rival_doors import AtOnce, Central
from llava_grpc.sim.rivals import LATE_RIVALS, RIVALS, Llava, LlavaStale, Rival, RoundRobin
from llava_grpc.sim.service import Spec, Steady
from llava_grpc.sim.workload import Job, Request, exponential, jobs


def served(
    make: Callable[..., AtOnce], requests: list[Request], fleet: list[Spec], rival: Rival, faults: Faults | None = None
) -> list[Job]:
    done: list[Job] = []
    clock, ended = Clock(), Ended(done.append)
    door = make(clock, fleet, Steady, rival, Random(1), ended)
    schedule(clock, door, faults or Faults())
    simulate(clock, jobs(requests), door, ended, heartbeat=15.0)
    return sorted(done, key=lambda job: job.number)


def at_once(requests: list[Request], fleet: list[Spec], rival: Rival, faults: Faults | None = None) -> list[Job]:
    return served(AtOnce, requests, fleet, rival, faults)


def central(requests: list[Request], fleet: list[Spec], rival: Rival, faults: Faults | None = None) -> list[Job]:
    return served(Central, requests, fleet, rival, faults)


def test_at_once_each_worker_is_a_queue_of_its_own():
    """Lindley: in one server's queue each starts when the one before it ends."""
    requests = [*exponential(3000, 2.7, Random(1))]
    ends = [0.0] * 3
    for job in at_once(requests, [Spec()] * 3, RoundRobin()):
        worker = job.number % 3
        assert job.node == worker
        assert job.dispatched == pytest.approx(max(job.request.at, ends[worker]))
        ends[worker] = job.finished


@pytest.mark.parametrize("make", LATE_RIVALS.values())
def test_behind_a_central_queue_each_starts_when_the_first_server_is_free(make: Callable[[], Rival]):
    requests = [*exponential(1000, 3.6, Random(4))]
    free = [0.0] * 4
    for job in central(requests, [Spec()] * 4, make()):
        free.sort()
        assert job.dispatched == pytest.approx(max(job.request.at, free[0]))
        free[0] = job.finished


def test_heartbeats_reach_the_rival_every_interval():
    class Listening(LlavaStale):
        heard: list[tuple[int, int]]

        def __init__(self) -> None:
            super().__init__()
            self.heard = []

        def heartbeat(self, worker: int, length: int) -> None:
            self.heard.append((worker, length))

    rule = Listening()
    at_once([Request(0.0, work=40.0), Request(1.0, work=2.0), Request(2.0, work=1.0)], [Spec(), Spec()], rule)
    assert rule.heard == [(0, 2), (1, 0), (0, 2), (1, 0), (0, 0), (1, 0)]


def test_stale_counts_send_work_to_a_busy_worker_and_a_central_queue_does_not():
    # Worker 0 is busy for long; by the count of its last heartbeat it has as little as the other.
    requests = [Request(0.0, work=100.0), *(Request(1.0 + number, work=0.1) for number in range(10))]
    assert max(job.wait for job in at_once(requests, [Spec(), Spec()], LlavaStale())) > 80
    assert max(job.wait for job in central(requests, [Spec(), Spec()], LlavaStale())) == 0


def test_llavas_workers_beat_as_requests_begin_and_end():
    requests = [Request(0.0, work=100.0), *(Request(1.0 + number, work=0.1) for number in range(10))]
    assert max(job.wait for job in at_once(requests, [Spec(), Spec()], Llava())) == 0


@pytest.mark.parametrize("serve", [at_once, central])
@pytest.mark.parametrize(("noticed", "known"), [(0.0, 10.0), (4.0, 14.0), (1000.0, 45.0)])
def test_what_a_dead_worker_had_begins_again_when_it_is_noticed(serve: Callable[..., list[Job]], noticed, known):
    requests = [Request(0.0, work=20.0), Request(0.0, work=20.0)]
    done = serve(requests, [Spec(), Spec()], RoundRobin(), Faults([Fault(0, 10.0, 500.0)], noticed))
    assert [(job.retries, job.node, job.dispatched) for job in done] == [(1, 1, max(known, 20.0)), (0, 1, 0.0)]


def test_choosing_at_once_goes_on_giving_to_the_dead_and_a_central_queue_stops_at_its_slots():
    requests = [Request(1.0 + number, work=0.1) for number in range(40)]
    faults = Faults([Fault(0, 0.5, 300.0)], noticed=40.0)
    assert sum(job.retries for job in at_once(requests, [Spec(), Spec()], RoundRobin(), faults)) == 20
    assert sum(job.retries for job in central(requests, [Spec(), Spec()], RoundRobin(), faults)) == 1


def test_a_worker_that_is_only_silent_keeps_its_streams():
    requests = [Request(0.0, work=100.0), Request(60.0, work=1.0), Request(90.0, work=1.0)]
    done = at_once(requests, [Spec(slots=2), Spec(slots=2)], RoundRobin(), Faults([Fault(0, 1.0, 80.0, dies=False)]))
    assert [(job.node, job.finished, job.retries) for job in done] == [(0, 100.0, 0), (1, 61.0, 0), (0, 91.0, 0)]


@pytest.mark.parametrize("name", [*RIVALS, *LATE_RIVALS])
def test_every_job_ends_once_whatever_fails(name: str):
    random = Random(name)
    faults = Faults(draw(4, 300.0, random, every=20.0, away=15.0), noticed=3.0)
    serve, rule = (at_once, RIVALS[name]) if name in RIVALS else (central, LATE_RIVALS[name])
    done = serve([*exponential(400, 1.2, random)], [Spec()] * 4, rule(), faults)
    assert [(job.number, job.error) for job in done] == [(number, None) for number in range(400)]
    assert sum(job.retries for job in done) > 0
