"""Models of an engine, against sums done by hand and against a plain step-by-step reckoning."""

import math
from dataclasses import replace
from random import Random

import pytest

from llava_grpc.core.demand import Piece
from llava_grpc.sim.caches import Caches, Room
from llava_grpc.sim.engine import Clock
from llava_grpc.sim.service import Batch, Costs, Spec, Steady
from llava_grpc.sim.workload import Job, Request

COSTS = Costs(prompt_token=0.001, step=0.02, step_sequence=0.01)


def finished(requests: list[Request], speed: float = 1.0) -> list[Job]:
    """All of them given to one batching server as they come."""
    clock = Clock()

    def done(job: Job) -> None:
        job.finished = clock.now

    server = Batch(clock, speed, done, COSTS)
    jobs = [Job(number, request) for number, request in enumerate(requests)]
    for job in jobs:
        clock.at(job.request.at, server.start, job)
    clock.run()
    return jobs


def test_steady_work_takes_its_time_whatever_else_runs():
    clock = Clock()
    server = Steady(clock, Spec(2.0), lambda job: setattr(job, "finished", clock.now))
    jobs = [Job(0, Request(0.0, work=3.0)), Job(1, Request(0.0, work=1.0))]
    for job in jobs:
        server.start(job)
    clock.run()
    assert [job.finished for job in jobs] == [1.5, 0.5]


def test_one_request_alone():
    (job,) = finished([Request(1.0, prompt=100, answer=11)], speed=2.0)
    assert job.first_token == pytest.approx(1.05)
    assert job.finished == pytest.approx(1.05 + 10 * 0.015)


def test_an_answer_of_one_token_ends_with_its_prompt():
    (job,) = finished([Request(0.0, prompt=100, answer=1)])
    assert job.finished == job.first_token == pytest.approx(0.1)


def test_a_prompt_waits_for_the_step_under_way_and_holds_the_others_up():
    first, second = finished([Request(0.0, prompt=100, answer=11), Request(0.175, prompt=50, answer=3)])
    # Steps of 0.03 from 0.1: the third ends at 0.19; then the prompt; then steps of 0.04 for both.
    assert second.first_token == pytest.approx(0.24)
    assert second.finished == pytest.approx(0.32)
    assert first.finished == pytest.approx(0.32 + 5 * 0.03)


def step_by_step(requests: list[Request]) -> list[tuple[float, float]]:
    """First token and end of each, by reckoning every step."""
    waiting = [*range(len(requests))]
    left: dict[int, int] = {}
    first, end = {}, {}
    now = 0.0
    while waiting or left:
        arrived = [number for number in waiting if requests[number].at <= now + 1e-12]
        if arrived:
            number = arrived[0]
            waiting.remove(number)
            now += requests[number].prompt * COSTS.prompt_token
            first[number] = now
            left[number] = requests[number].answer - 1
        elif left:
            now += COSTS.step + COSTS.step_sequence * len(left)
            left = {number: more - 1 for number, more in left.items()}
        else:
            now = min(requests[number].at for number in waiting)
        for number in [number for number, more in left.items() if more == 0]:
            end[number] = now
            del left[number]
    return [(first[number], end[number]) for number in range(len(requests))]


@pytest.mark.parametrize("seed", range(20))
def test_leaps_are_as_good_as_steps(seed: int):
    random = Random(seed)
    at = 0.0
    requests = []
    for _ in range(30):
        at += random.expovariate(2.0)
        requests.append(Request(at, prompt=random.randint(1, 200), answer=random.randint(1, 40)))
    assert [(job.first_token, job.finished) for job in finished(requests)] == [
        (pytest.approx(first), pytest.approx(end)) for first, end in step_by_step(requests)
    ]


def test_a_full_server_needs_the_seconds_that_costs_say():
    requests = [Request(0.0, prompt=100, answer=41) for _ in range(8)]
    took = max(job.finished for job in finished(requests))
    assert took == pytest.approx(8 * COSTS.seconds(100, 41, slots=8))


def chain(number: int, at: float, *texts: bytes) -> Job:
    pieces = [Piece(b"p", 100)]
    for text in texts:
        pieces.append(Piece(pieces[-1].key + text, 10))
    said = Piece(pieces[-1].key + b"-", 10)
    request = Request(
        at,
        prompt=sum(piece.tokens for piece in pieces),
        answer=11,
        pieces=tuple(pieces),
        pictures=(b"p",),
        stands=(0,),
        said=said,
    )
    return Job(number, request)


def test_what_is_at_hand_is_not_computed_again():
    clock, costs = Clock(), replace(COSTS, picture=0.5)
    server = Batch(clock, 2.0, lambda job: setattr(job, "finished", clock.now), costs, Caches(Room(1, 1000)))
    jobs = [chain(0, 0.0, b"a"), chain(1, 10.0, b"a", b"-", b"b"), chain(2, 20.0, b"c")]
    for job in jobs:
        clock.at(job.request.at, server.start, job)
    clock.run()
    assert [job.need for job in jobs] == [(1, 110), (0, 10), (0, 10)]
    assert [job.to_first_token for job in jobs] == pytest.approx([(0.5 + 0.11) / 2, 0.005, 0.005])


@pytest.mark.parametrize("at", [0.05, 0.15, 0.1999])
def test_of_a_server_that_stopped_nothing_is_heard(at: float):
    clock = Clock()
    done: list[Job] = []
    server = Batch(clock, 1.0, done.append, COSTS)
    jobs = [Job(number, Request(0.0, prompt=100, answer=20)) for number in range(2)]
    for job in jobs:
        server.start(job)
    clock.at(at, lambda _: server.stop())
    clock.run()
    assert done == []
    assert [math.isnan(job.first_token) for job in jobs] == [at < 0.1, True]
