"""Who knows everything goes where the picture is, and not where it is only known but crowded."""

from random import Random

import pytest

from llava_grpc.core.demand import Piece
from llava_grpc.sim.caches import Caches, Room
from llava_grpc.sim.engine import Clock, Ended, simulate
from llava_grpc.sim.oracle import PATIENCE, Oracle
from llava_grpc.sim.service import Batch, Costs, Done, Server, Spec
from llava_grpc.sim.workload import Job, Request, jobs

COSTS = Costs(prompt_token=0.001, step=0.02, step_sequence=0.01)
ROOM = Room(pictures=10, tokens=10_000)


def about(picture: bytes, at: float, answer: int = 1) -> Request:
    return Request(at, prompt=1000, answer=answer, pieces=(Piece(picture, 1000),))


def served(requests: list[Request], fleet: list[Spec], *, in_order: bool = False) -> list[Job]:
    def kind(clock: Clock, spec: Spec, done: Done) -> Server:
        return Batch(clock, spec.speed, done, COSTS, Caches(spec.room))

    done: list[Job] = []
    clock, ended = Clock(), Ended(done.append)
    door = Oracle(clock, fleet, kind, Random(1), ended, in_order=in_order)
    simulate(clock, jobs(requests), door, ended, heartbeat=30.0)
    return sorted(done, key=lambda job: job.number)


def test_it_goes_where_the_prompt_is_kept():
    requests = [about(b"p", 0.0), about(b"q", 0.1), *(about(b"pq"[n % 2 : n % 2 + 1], 5.0 + n) for n in range(6))]
    done = served(requests, [Spec(slots=4, room=ROOM)] * 2)
    assert {done[0].node, done[1].node} == {0, 1}
    assert [job.node for job in done[2:]] == [done[0].node, done[1].node] * 3
    assert all(job.need == (0, 0) for job in done[2:])


def test_where_the_crowd_costs_more_than_reading_it_goes_elsewhere():
    crowd = [about(b"p", 0.0, answer=5000) for _ in range(30)]
    done = served([about(b"p", 0.0), *crowd, about(b"p", 400.0, answer=100)], [Spec(slots=40, room=ROOM)] * 2)
    nodes = [job.node for job in done]
    assert 10 <= nodes.count(0) <= 22


@pytest.mark.parametrize("in_order", [True, False])
def test_one_that_is_known_may_overtake_for_a_while(in_order: bool):
    requests = [about(b"p", 0.0), about(b"q", 0.1), about(b"p", 0.2), about(b"r", 0.3), about(b"p", 0.4)]
    done = served(requests, [Spec(room=ROOM)], in_order=in_order)
    order = [job.number for job in sorted(done, key=lambda job: job.finished)]
    assert order == ([0, 1, 2, 3, 4] if in_order else [0, 2, 4, 1, 3])


def test_nobody_is_overtaken_once_he_waited_for_long():
    requests = [about(b"p", 0.0), about(b"q", 0.1), *(about(b"p", 0.2, answer=51) for _ in range(20))]
    done = served(requests, [Spec(room=ROOM)])
    assert PATIENCE <= done[1].wait <= PATIENCE + 50 * 0.03


def delays(*requests: Request, then: Request, at: float = 0.0) -> float:
    """What the last would cost at a server that was given the others at once."""
    clock = Clock()
    server = Batch(clock, 2.0, lambda job: None, COSTS, Caches(ROOM))
    for number, request in enumerate(requests):
        server.start(Job(number, request))
    found: list[float] = []
    clock.at(at, lambda _: found.append(server.delay(then)))
    clock.run()
    return found[0]


def test_what_a_request_costs_all_together():
    p, q = about(b"p", 0.0, answer=11), about(b"q", 0.0, answer=5)
    assert delays(then=p) == pytest.approx(0.5)
    # The other is read until 0.5; then this one's reading holds it up; then both make 5 tokens together.
    assert delays(p, then=q, at=0.2) == pytest.approx(0.3 + 2 * 0.5 + 2 * 5 * 0.005)
    assert delays(p, then=p, at=0.2) == pytest.approx(0.3 + 0.0 + 2 * 11 * 0.005)
    # Steps of 0.015 from 0.5: the third is under way, until 0.545; ten were left, and not one is made yet.
    assert delays(p, then=q, at=0.54) == pytest.approx(0.005 + 2 * 0.5 + 2 * 5 * 0.005)
    assert delays(p, q, then=q, at=0.2) == pytest.approx(0.3 + 0.5 + 2 * (5 + 5) * 0.005)
