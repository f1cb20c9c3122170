"""Virtual time passes in order, and the same way each time."""

from collections.abc import Callable
from random import Random

import pytest

from llava_grpc.core.strategies import shortest_queue
from llava_grpc.sim.doors import LateBinding
from llava_grpc.sim.engine import Clock, Door, Ended, simulate
from llava_grpc.sim.rival_doors import AtOnce
from llava_grpc.sim.rivals import LlavaStale
from llava_grpc.sim.service import Spec, Steady
from llava_grpc.sim.workload import Job, Request, exponential, jobs


def test_things_happen_in_order_of_time_and_then_of_asking():
    clock = Clock()
    seen: list[tuple[float, str]] = []
    for when, what in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        clock.at(when, lambda it: seen.append((clock.now, it)), what)
    clock.at(1.5, lambda _: clock.at(1.75, lambda it: seen.append((clock.now, it)), "asked for meanwhile"))
    clock.run()
    assert seen == [(1.0, "a"), (1.0, "b"), (1.75, "asked for meanwhile"), (2.0, "c")]


@pytest.mark.parametrize(
    "make",
    [
        lambda clock, random, ended: LateBinding(clock, [Spec()] * 3, Steady, shortest_queue, random, ended),
        lambda clock, random, ended: AtOnce(clock, [Spec()] * 3, Steady, LlavaStale(), random, ended),
    ],
)
def test_equal_seeds_give_equal_runs_and_every_job_ends_once(make: Callable[..., Door]):
    def run(seed: int) -> list[tuple[str, float, int]]:
        done: list[Job] = []
        clock, ended = Clock(), Ended(done.append)
        door = make(clock, Random(seed), ended)
        simulate(clock, jobs(exponential(500, 2.7, Random(seed))), door, ended, heartbeat=15)
        assert ended.open == 0
        assert sorted(job.number for job in done) == [*range(500)]
        return [(job.key, job.finished, job.node) for job in done]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_progress_is_told_every_so_often():
    told: list[int] = []
    clock, ended = Clock(), Ended(lambda _: None, told.append)
    door = LateBinding(clock, [Spec()], Steady, shortest_queue, Random(1), ended)
    simulate(clock, jobs(exponential(2500, 0.5, Random(1))), door, ended, heartbeat=30)
    assert told == [Ended.EVERY] * 2


def test_a_conversation_goes_on_when_it_was_answered():
    third = Request(5.0, work=1.0)
    first = Request(0.0, work=10.0, then=Request(3.0, work=2.0, then=third))
    done: list[Job] = []
    clock, ended = Clock(), Ended(done.append)
    door = LateBinding(clock, [Spec()] * 2, Steady, shortest_queue, Random(1), ended)
    simulate(clock, jobs([first, Request(1.0, work=4.0)]), door, ended, heartbeat=30)
    ran = sorted((job.number, job.request.at, job.finished) for job in done)
    assert ran == [(0, 0.0, 10.0), (1, 13.0, 15.0), (2, 20.0, 21.0), (3, 1.0, 5.0)]
    assert ended.open == 0


def test_who_was_refused_asks_no_more():
    first = Request(0.0, work=1.0, deadline=1.0, then=Request(3.0, work=2.0))
    done: list[Job] = []
    clock, ended = Clock(), Ended(done.append)
    door = LateBinding(clock, [Spec()], Steady, shortest_queue, Random(1), ended)
    simulate(clock, jobs([Request(0.0, work=5.0), first]), door, ended, heartbeat=30)
    assert [(job.number, job.error is None) for job in done] == [(1, False), (0, True)]
