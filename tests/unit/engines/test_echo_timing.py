"""The echo engine's plans, in virtual time: each request at its own pace, and the simulator's batching engine."""

from random import Random

import pytest

from llava_grpc.config import EngineSettings
from llava_grpc.engines.base import EngineStartError, load_engine
from llava_grpc.engines.echo_timing import Apart, Batching, Timing
from llava_grpc.sim.engine import Clock
from llava_grpc.sim.service import Batch, Costs
from llava_grpc.sim.workload import Job, Request

COSTS = Costs(request=0.02, picture=0.1, prompt_token=0.001, step=0.02, step_sequence=0.01)


def drive(
    timing: Timing[int], requests: list[Request], late: Random | None = None, new_pictures: int = 0
) -> list[list[float]]:
    """When each request was to get its tokens. With `late`, whoever drives wakes up to 50 ms late."""
    tokens: list[list[float]] = [[] for _ in requests]
    coming = list(enumerate(requests))
    woken = 0.0
    while coming or timing.due() is not None:
        due = timing.due()
        if due is not None:
            woken = max(woken, due + (late.uniform(0.0, 0.05) if late else 0.0))
        if coming and (due is None or coming[0][1].at <= woken):
            number, request = coming.pop(0)
            timing.add(number, request.prompt, new_pictures, request.at)
            continue
        assert due is not None
        taken = timing.take(woken)
        for number in taken:
            tokens[number].append(due)
        if taken:
            timing.go_on([number for number in taken if len(tokens[number]) < requests[number].answer], woken)
    return tokens


def modelled(requests: list[Request]) -> list[tuple[float, float]]:
    """First token and end of each, by the simulator."""
    clock = Clock()
    server = Batch(clock, 1.0, lambda job: setattr(job, "finished", clock.now), COSTS)
    jobs = [Job(number, request) for number, request in enumerate(requests)]
    for job in jobs:
        clock.at(job.request.at, server.start, job)
    clock.run()
    return [(job.first_token, job.finished) for job in jobs]


def load(seed: int) -> list[Request]:
    random = Random(seed)
    at, requests = 0.0, []
    for _ in range(40):
        at += random.expovariate(2.0)
        requests.append(Request(at, prompt=random.randint(1, 200), answer=random.randint(1, 40)))
    return requests


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_a_batching_echo_has_the_times_of_the_model_however_late_it_wakes(seed: int, late: bool):
    requests = load(seed)
    tokens = drive(Batching(COSTS), requests, Random(seed) if late else None)
    assert [len(times) for times in tokens] == [request.answer for request in requests]
    assert [(times[0], times[-1]) for times in tokens] == [
        (pytest.approx(first), pytest.approx(end)) for first, end in modelled(requests)
    ]


def test_new_pictures_take_their_time():
    [times] = drive(Batching(COSTS), [Request(1.0, prompt=100, answer=3)], new_pictures=2)
    assert times == [pytest.approx(1.0 + 0.02 + 2 * 0.1 + 0.1), pytest.approx(1.35), pytest.approx(1.38)]


def test_who_is_removed_gets_nothing_more_and_costs_later_steps_nothing():
    timing: Batching[str] = Batching(Costs(prompt_token=0.0, step=0.0, step_sequence=1.0))
    for name in ("one", "other", "third"):
        timing.add(name, 1, 0, 0.0)
    assert timing.take(0.0) == ["one"]
    timing.go_on(["one"], 0.0)
    timing.remove("third")  # while it waits to be read
    assert timing.take(0.0) == ["other"]
    timing.go_on(["other"], 0.0)
    assert timing.due() == 2.0
    timing.remove("other")  # in the middle of a step, which goes on
    assert timing.due() == 2.0
    assert timing.take(2.0) == ["one"]
    timing.go_on(["one"], 2.0)
    assert timing.due() == 3.0
    timing.remove("one")
    assert timing.take(3.0) == ()
    assert timing.due() is None


def test_apart_each_has_its_own_pace():
    assert drive(Apart(0.5, 0.25), [Request(0.0, answer=3), Request(0.1, answer=2)]) == [
        [0.5, 0.75, 1.0],
        [pytest.approx(0.6), pytest.approx(0.85)],
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"step_ms": "5", "token_interval_ms": "5"}, "leave out step_ms"),
        ({"step_ms": "-5"}, "not negative"),
        ({"picture_ms": "nan"}, "must be finite"),
        ({"picture_ms": "long"}, "not a number"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_words(options: dict[str, str], says: str):
    with pytest.raises(EngineStartError, match=says):
        load_engine("echo", EngineSettings(options=options))
