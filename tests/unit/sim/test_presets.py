"""The ready-made questions: they answer, and the answers hold what the project claims."""

import statistics

import pytest

from llava_grpc.config import SettingsError
from llava_grpc.sim.fleets import strategy_names
from llava_grpc.sim.presets import PRESETS, Question, ask
from llava_grpc.sim.report import Report


def rows(report: Report) -> list[dict]:
    return report.as_dict()["rows"]  # type: ignore[return-value]


def by(report: Report, column: str) -> dict:
    return {row[column]: row for row in rows(report)}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_answers_and_repeats_itself(name: str):
    question = Question(seed=5, requests=200)
    report = ask(name, question)
    assert report.rows
    assert report.seed == 5
    assert all(len(row) == len(report.columns) for row in report.rows)
    assert ask(name, question).as_dict() == report.as_dict()


def test_progress_adds_up():
    told: list[int] = []
    ask("heterogeneous", Question(seed=1, requests=2000, strategies=("lottery", "llava"), progress=told.append))
    assert sum(told) == 4000 == 2000 * PRESETS["heterogeneous"].jobs_a_request(2)


def test_every_strategy_can_be_compared():
    report = ask("heterogeneous", Question(seed=1, requests=1000, strategies=tuple(strategy_names())))
    assert [row[0] for row in report.rows] == strategy_names()


def test_bursts_are_worse():
    calm, bursts = (
        ask("heterogeneous", Question(seed=1, requests=3000, strategies=("lottery",), arrivals=arrivals))
        for arrivals in ("poisson", "bursty")
    )
    assert rows(bursts)[0]["first_token_p99"] > 2 * rows(calm)[0]["first_token_p99"]


@pytest.mark.parametrize(
    ("name", "question", "says"),
    [
        ("nothing", Question(seed=1, requests=1000), "no preset 'nothing'"),
        ("overload", Question(seed=1, requests=1000, strategies=("best",)), "no strategy 'best'"),
        ("overload", Question(seed=1, requests=1000, arrivals="late"), "no 'late' arrivals"),
        ("closed-forms", Question(seed=1, requests=1000, strategies=("lottery",)), "its own strategies"),
    ],
)
def test_what_makes_no_sense_is_told(name: str, question: Question, says: str):
    with pytest.raises(SettingsError, match=says):
        ask(name, question)


def test_heterogeneous_late_binding_beats_llavas_rule():
    found = by(ask("heterogeneous", Question(seed=1, requests=6000)), "strategy")
    ours = found["shortest_queue"]["first_token_p99"]
    for rival in ("llava", "llava_speeds", "llava_stale"):
        assert ours <= 0.8 * found[rival]["first_token_p99"], rival


def test_overload_keeps_the_fleet_busy_and_dispatches_nothing_late():
    found = by(ask("overload", Question(seed=1, requests=5000)), "strategy")
    assert found["shortest_queue"]["work_percent_of_peak"] >= 95
    assert found["shortest_queue"]["dispatched_late"] == 0
    assert found["llava"]["dispatched_late"] > 1000


def test_tenants_a_flood_costs_the_other_no_more_than_twice_the_wait_on_its_share():
    report = ask("tenants", Question(seed=1, requests=700, strategies=("shortest_queue",)))
    found = by(report, "calm_tenant")
    assert found["beside the flood"]["wait_p99"] <= 2 * found["on its share alone"]["wait_p99"]


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_heterogeneous_at_length():
    ratios: dict[str, list[float]] = {"llava": [], "llava_speeds": [], "llava_stale": []}
    for seed in range(1, 6):
        question = Question(seed=seed, requests=50_000, strategies=("shortest_queue", *ratios))
        found = by(ask("heterogeneous", question), "strategy")
        for rival, values in ratios.items():
            values.append(found["shortest_queue"]["first_token_p99"] / found[rival]["first_token_p99"])
    assert all(statistics.median(values) <= 0.7 for values in ratios.values()), ratios


@pytest.mark.prove
@pytest.mark.parametrize("seed", range(1, 6))
def test_tenants_at_length(seed: int):
    report = ask("tenants", Question(seed=seed, requests=4000, strategies=("shortest_queue",)))
    found = by(report, "calm_tenant")
    assert found["beside the flood"]["wait_p99"] <= 2 * found["on its share alone"]["wait_p99"]
