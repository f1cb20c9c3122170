"""A recorded load, offered again: what is read from it, and what another strategy makes of it."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from llava_grpc.config import SettingsError
from llava_grpc.core.demand import Piece
from llava_grpc.core.prompt import Priority
from llava_grpc.core.strategies import STRATEGIES
from llava_grpc.sim.fleets import COSTS
from llava_grpc.sim.questions import Question
from llava_grpc.sim.replay import RECORDED, read, replay


def worker(number: int, **changes: Any) -> dict[str, Any]:
    values = {
        "address": f"h:{number}",
        "models": ["m"],
        "speed": 10.0,
        "slots": 4,
        "kv_tokens": 5000,
        "cached_pictures": 3,
    }
    return {"worker": {**values, **changes}}


def request(second: float, *keys: str, number: int = 1, queue: int = 0, **changes: Any) -> dict[str, Any]:
    """One that came at that second of a minute and went to a worker; each piece has 600 tokens."""
    address = f"h:{number}"
    decision = {
        "after": 0.25,
        "strategy": "shortest_queue",
        "address": address,
        "considered": [{"address": address, "queue": queue}],
    }
    values = {
        "model": "m",
        "tenant": "t",
        "priority": 0,
        "arrived_at": f"2026-11-24T10:00:{second:09.6f}+00:00",
        "deadline": None,
        "pieces": [{"key": key, "tokens": 600} for key in keys],
        "pictures": [],
        "outcome": "ok",
        "answer_tokens": 10,
        "prompt_tokens": 580,
        "decisions": [decision],
        "first_token": 0.5,
        "ended": 1.0,
    }
    return {"request": {**values, **changes}}


def lines(*values: dict[str, Any]) -> Iterable[str]:
    return [json.dumps(value) for value in values]


def test_what_is_read_is_what_was_recorded():
    recording = read(
        lines(
            worker(1),
            worker(2, speed=30.0, kv_tokens=0),
            worker(3, models=["other"]),
            request(7.5, "aa", "bb", "cc", priority=1),
            request(5.0, "aa", pictures=["01", "02"], deadline=20.0),
            request(8.0, "dd", outcome="WORKER_LOST", answer_tokens=0),
        )
    )
    assert [(spec.speed, spec.slots) for spec in recording.fleet] == [(0.5, 4), (1.5, 4)], "the mean speed is 1"
    assert recording.fleet[0].room == (3, 5000)
    assert recording.fleet[1].room.tokens > 0, "unknown is not nothing"
    assert (recording.strategy, recording.left_out) == ("shortest_queue", 1)
    first, second = recording.requests
    assert (first.at, second.at) == (0.0, 2.5), "in order of arrival, from the first one on"
    assert (first.priority, first.tenant, first.deadline) == (Priority.HIGH, "t", 20.0)
    assert (first.prompt, first.answer) == (600, 10)
    assert (first.pictures, first.stands) == ((b"\x01", b"\x02"), (0, 0)), "no piece is long enough for the second"
    assert first.said == Piece(b"\xbb", 600), "the conversation went on from its answer"
    assert second.said is None


def test_costs_are_scaled_so_that_answers_take_as_long_as_recorded():
    steps = 9 * COSTS.stepping(3)
    twice = 2 * (COSTS.reading(600) + steps)
    recording = read(lines(worker(1), request(1.0, "aa", queue=2, ended=0.25 + twice)))
    assert recording.costs().step == pytest.approx(2 * COSTS.step)
    assert recording.costs().prompt_token == pytest.approx(2 * COSTS.prompt_token)


def test_every_strategy_gets_the_same_load_and_what_happened_stands_beside():
    load = [request(second / 10, f"{second % 7:02x}", ended=2.0) for second in range(100)]
    recording = read(lines(worker(1), worker(2), *load))
    report = replay(recording, Question(seed=1, requests=100))
    assert [row[0] for row in report.rows] == [
        RECORDED,
        "shortest_queue",
        *[n for n in STRATEGIES if n != "shortest_queue"],
    ]
    recorded = dict(zip(report.columns, report.rows[0], strict=True))
    assert (recorded["wait_mean"], recorded["first_token_p50"], recorded["answer_p99"]) == (0.25, 0.5, 2.0)
    assert report.rows == replay(recording, Question(seed=1, requests=100)).rows, "equal seeds, equal answers"
    only = replay(recording, Question(seed=1, requests=100, strategies=("round_robin",)))
    assert [row[0] for row in only.rows] == [RECORDED, "round_robin"]


def test_a_strategy_of_somebodys_own_is_left_out_of_its_replay():
    record = request(1.0, "aa")
    record["request"]["decisions"][0]["strategy"] = "my_module:Mine"
    report = replay(read(lines(worker(1), record)), Question(seed=1, requests=1))
    assert [row[0] for row in report.rows] == [RECORDED, *STRATEGIES]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (["nonsense"], "line 1"),
        (lines({"else": {}}), "line 1"),
        (lines({"worker": {}}, {"request": {}}), "not of this release"),
        ([], "holds no request"),
        (lines(request(1.0, "aa")), "no worker for 'm'"),
        (lines(worker(1, speed=0.0), request(1.0, "aa")), "no worker for 'm'"),
        (lines(worker(1), request(1.0, "aa", outcome="WORKER_LOST")), "no answered request for 'm'"),
        (lines(worker(1), request(1.0, "aa"), request(1.0, "aa", model="n")), "several models; name one: m, n"),
    ],
)
def test_what_cannot_be_replayed_is_told(text: Iterable[str], says: str):
    with pytest.raises(SettingsError, match=says):
        read(text)


def test_a_fleet_of_others_has_nothing_to_scale_by():
    with pytest.raises(SettingsError, match="record some more"):
        replay(read(lines(worker(1), request(1.0, "aa", number=2))), Question(seed=1, requests=1))


def test_an_unknown_strategy_is_told():
    with pytest.raises(SettingsError, match="no strategy 'best'"):
        replay(read(lines(worker(1), request(1.0, "aa"))), Question(seed=1, requests=1, strategies=("best",)))
