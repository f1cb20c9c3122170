"""What takes requests in: paths equal to textbook recursions, deadlines kept, nobody lost."""

import heapq
from random import Random

import pytest

from llava_grpc.core.admission import QueueLimits
from llava_grpc.core.strategies import STRATEGIES, lottery, shortest_queue
from llava_grpc.errors import DeadlineExceededError, QueueFullError
from llava_grpc.sim.doors import UNBOUNDED, AtOnce, LateBinding
from llava_grpc.sim.engine import Clock, Door, Ended, simulate
from llava_grpc.sim.rivals import Llava, LlavaStale, Rival, RoundRobin
from llava_grpc.sim.service import Spec, Steady
from llava_grpc.sim.workload import Job, Request, exponential, jobs


def late(
    requests: list[Request], fleet: list[Spec], limits: QueueLimits = UNBOUNDED, strategy=shortest_queue
) -> list[Job]:
    def make(clock: Clock, ended: Ended) -> Door:
        return LateBinding(clock, fleet, Steady, strategy, Random(1), ended, limits)

    return _run(requests, make)


def at_once(requests: list[Request], fleet: list[Spec], rival: Rival) -> list[Job]:
    return _run(requests, lambda clock, ended: AtOnce(clock, fleet, Steady, rival, Random(1), ended))


def _run(requests, make) -> list[Job]:
    done: list[Job] = []
    clock, ended = Clock(), Ended(done.append)
    simulate(clock, jobs(requests), make(clock, ended), ended, heartbeat=15)
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


def test_at_once_each_worker_is_a_queue_of_its_own():
    """Lindley: in one server's queue each starts when the one before it ends."""
    requests = [*exponential(3000, 2.7, Random(1))]
    ends = [0.0] * 3
    for job in at_once(requests, [Spec()] * 3, RoundRobin()):
        worker = job.number % 3
        assert job.node == worker
        assert job.dispatched == pytest.approx(max(job.request.at, ends[worker]))
        ends[worker] = job.finished


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


def test_stale_counts_send_work_to_a_busy_worker_and_late_binding_does_not():
    # Worker 0 is busy for long; by the count of its last heartbeat it has as little as the other.
    requests = [Request(0.0, work=100.0), *(Request(1.0 + number, work=0.1) for number in range(10))]
    assert max(job.wait for job in at_once(requests, [Spec(), Spec()], LlavaStale())) > 80
    assert max(job.wait for job in late(requests, [Spec(), Spec()])) == 0


def test_llavas_workers_beat_as_requests_begin_and_end():
    requests = [Request(0.0, work=100.0), *(Request(1.0 + number, work=0.1) for number in range(10))]
    assert max(job.wait for job in at_once(requests, [Spec(), Spec()], Llava())) == 0
