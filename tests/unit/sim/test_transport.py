"""The way to a worker: what comes of it for one request, and for one that waited for a slot."""

from random import Random

import pytest

from llava_grpc.core.strategies import shortest_queue
from llava_grpc.sim.doors import LateBinding
from llava_grpc.sim.engine import Clock, Ended, simulate
from llava_grpc.sim.service import Batch, Costs, Done, ServerKind, Spec
from llava_grpc.sim.transport import Far
from llava_grpc.sim.workload import Job, Request, jobs

COSTS = Costs(prompt_token=0.0, step=1.0, step_sequence=0.0)


def near(clock: Clock, spec: Spec, done: Done) -> Batch:
    return Batch(clock, spec.speed, done, COSTS)


def far(clock: Clock, spec: Spec, done: Done) -> Far:
    return Far(clock, spec, done, kind=near, way=0.1)


def run(kind: ServerKind, slots: int, *requests: Request) -> list[Job]:
    done: list[Job] = []
    clock, ended = Clock(), Ended(done.append)
    door = LateBinding(clock, [Spec(slots=slots)], kind, shortest_queue, Random(0), ended)
    simulate(clock, jobs(requests), door, ended, heartbeat=30.0)
    return sorted(done, key=lambda job: job.number)


def test_a_request_alone_is_later_by_the_way_there_and_back():
    (job,) = run(far, 1, Request(1.0, prompt=5, answer=3))
    assert job.first_token == pytest.approx(1.2)
    assert job.finished == pytest.approx(3.2)


def test_who_waited_for_a_slot_also_waits_for_the_step_that_began_meanwhile():
    three = (Request(0.0, answer=9), Request(0.0, answer=3), Request(0.5, answer=2))
    assert run(near, 2, *three)[2].to_first_token == pytest.approx(1.5)  # with the end of the second, at 2
    assert run(far, 2, *three)[2].to_first_token == pytest.approx(
        2.7
    )  # free at 2.2 (seen), there at 2.3, read at 3.1, seen at 3.2


def test_a_first_token_is_heard_of_when_it_is_seen():
    clock, heard = Clock(), []
    server = far(clock, Spec(), lambda job: None)
    job = Job(0, Request(0.0, answer=5))
    job.when_read = lambda read: heard.append((read, clock.now))
    server.start(job)
    clock.run()
    assert heard == [(job, pytest.approx(0.2))]


def test_what_is_on_the_way_dies_with_the_server():
    clock, done = Clock(), []
    server = far(clock, Spec(), done.append)
    for number, at in enumerate((0.0, 1.15)):
        clock.at(at, server.start, Job(number, Request(at, answer=2)))
    clock.at(1.18, lambda _: server.stop())  # one end on the way back, one request on the way to it
    clock.run()
    assert done == []
