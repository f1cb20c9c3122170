"""What reuse is worth, and that the figure is what it says."""

import pytest

from llava_grpc.sim.presets import Question, ask
from llava_grpc.sim.reuse import COSTS, FLEET, OBJECTIVE, REUSE, highest, objective, seen_before
from llava_grpc.sim.workload import Request


def found(preset: str, *strategies: str, requests: int = 1500, seed: int = 1) -> dict[str, dict]:
    report = ask(preset, Question(seed=seed, requests=requests, strategies=strategies))
    return {row["strategy"]: row for row in report.as_dict()["rows"]}  # type: ignore[attr-defined]


def test_bisection_finds_the_edge_from_below():
    asked: list[float] = []

    def good(rate: float) -> bool:
        asked.append(rate)
        return rate <= 3.3

    assert 3.3 - 8 / 256 < highest(good, 8.0, 8) <= 3.3
    assert len(asked) == 8
    assert highest(lambda rate: False, 8.0) == 0.0


def test_the_objective_is_five_times_an_unknown_picture_on_an_idle_fleet():
    tokens = 35 + REUSE.picture_tokens + 40
    assert objective() == pytest.approx(OBJECTIVE * (COSTS.picture + tokens * COSTS.prompt_token))


def test_a_quarter_of_the_pool_has_room_on_each_worker():
    assert {spec.room.pictures for spec in FLEET} == {REUSE.pool // 4}
    assert {spec.room.tokens for spec in FLEET} == {REUSE.pool // 4 * REUSE.picture_tokens}


def test_seen_before_counts_later_turns_and_known_pictures():
    turn = Request(0.0, pictures=(b"p",), stands=(0,))
    twice = turn._replace(then=turn)
    other = turn._replace(pictures=(b"q",))
    assert seen_before([turn, twice, other, other]) == 0.75  # of the last four: known, known, new, known


def test_knowing_what_is_at_hand_pays_with_reuse():
    rows = found("reuse", "round_robin", "late_round_robin", "oracle")
    assert rows["oracle"]["of_oracle_percent"] == 100
    assert rows["oracle"]["goodput"] > 1.1 * rows["late_round_robin"]["goodput"]
    assert rows["late_round_robin"]["goodput"] >= rows["round_robin"]["goodput"]
    assert rows["oracle"]["prompt_hit_percent"] > 1.5 * rows["late_round_robin"]["prompt_hit_percent"]


def test_without_reuse_nothing_is_at_hand_but_the_system_prompt():
    rows = found("no-reuse", "shortest_queue", "random")
    for row in rows.values():
        assert row["pictures_hit_percent"] == 0
        assert 0 < row["prompt_hit_percent"] < 2
    assert rows["shortest_queue"]["goodput"] > rows["random"]["goodput"]
    assert rows["shortest_queue"]["of_oracle_percent"] > 85
