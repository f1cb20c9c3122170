"""The ready-made questions: they answer, and the answers hold what the project claims."""

import statistics

import pytest

from llava_grpc.config import DEFAULT_STRATEGY, SettingsError
from llava_grpc.sim.fleets import strategy_names
from llava_grpc.sim.presets import PRESETS, Question, ask
from llava_grpc.sim.queueing import SLOTS, ask_heterogeneous
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
    assert sum(told) == 12_000 == 2000 * PRESETS["heterogeneous"].jobs_a_request(2)


def test_every_strategy_can_be_compared():
    report = ask_heterogeneous(Question(seed=1, requests=1000, strategies=tuple(strategy_names())), slots=[8])
    assert [row["strategy"] for row in rows(report)] == strategy_names()


def test_bursts_are_worse():
    calm, bursts = (
        ask_heterogeneous(Question(seed=1, requests=3000, strategies=("lottery",), arrivals=arrivals), slots=[8])
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


@pytest.mark.parametrize("slots", SLOTS)
def test_heterogeneous_late_binding_beats_llavas_rule(slots: int):
    question = Question(seed=1, requests=6000, strategies=PRESETS["heterogeneous"].strategies)
    found = by(ask_heterogeneous(question, slots=[slots]), "strategy")
    for ours in (DEFAULT_STRATEGY, "shortest_queue"):
        for rival in ("llava", "llava_speeds", "llava_stale"):
            assert found[ours]["first_token_p99"] <= 0.8 * found[rival]["first_token_p99"], (ours, rival)


def test_overload_keeps_the_fleet_busy_and_dispatches_nothing_late():
    found = by(ask("overload", Question(seed=1, requests=5000)), "strategy")
    for ours in (DEFAULT_STRATEGY, "shortest_queue"):
        assert found[ours]["work_percent_of_peak"] >= 95
        assert found[ours]["dispatched_late"] == 0
    assert found["llava"]["dispatched_late"] > 1000


def test_tenants_a_flood_costs_the_other_no_more_than_twice_the_wait_on_its_share():
    report = ask("tenants", Question(seed=1, requests=700, strategies=(DEFAULT_STRATEGY,)))
    found = by(report, "calm_tenant")
    assert found["beside the flood"]["wait_p99"] <= 2 * found["on its share alone"]["wait_p99"]


def test_failures_cost_more_the_later_they_are_noticed_and_nobody_is_lost():
    report = ask("failures", Question(seed=1, requests=6000, strategies=("shortest_queue", "round_robin")))
    found = {(row["fault"], row["strategy"]): row for row in rows(report)}
    assert all(row["failed"] == 0 for row in rows(report))
    for strategy in ("shortest_queue", "round_robin"):
        early, late, silent = (
            found[f"dies{how}", strategy] for how in (", told at once", ", told in 10 s", " in silence")
        )
        assert 0 < early["retries"] <= late["retries"] <= silent["retries"]
        assert early["first_token_p999"] < late["first_token_p999"] < silent["first_token_p999"]
        assert found["none", strategy]["retries"] == found["heartbeats lost", strategy]["retries"] == 0
    # What is dead and not noticed is given its slots by late binding, and whatever comes by others.
    ours, theirs = (found["dies, told in 10 s", name]["retries"] for name in ("shortest_queue", "round_robin"))
    assert ours < theirs


def test_scale_fills_a_thousand_workers_evenly():
    report = ask("scale", Question(seed=1, requests=5000, strategies=("two_choices", "random")))
    even, uneven = rows(report)
    assert 2000 < even["live_peak"] <= 5000
    assert even["picks_most"] < uneven["picks_most"]
    assert even["first_token_p99"] < uneven["first_token_p99"]


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_heterogeneous_at_length():
    ratios: dict[str, list[float]] = {"llava": [], "llava_speeds": [], "llava_stale": []}
    for seed in range(1, 6):
        question = Question(seed=seed, requests=50_000, strategies=("shortest_queue", *ratios))
        found = by(ask_heterogeneous(question, slots=[8]), "strategy")
        for rival, values in ratios.items():
            values.append(found["shortest_queue"]["first_token_p99"] / found[rival]["first_token_p99"])
    assert all(statistics.median(values) <= 0.7 for values in ratios.values()), ratios


@pytest.mark.prove
@pytest.mark.parametrize("seed", range(1, 6))
def test_tenants_at_length(seed: int):
    report = ask("tenants", Question(seed=seed, requests=4000, strategies=("shortest_queue",)))
    found = by(report, "calm_tenant")
    assert found["beside the flood"]["wait_p99"] <= 2 * found["on its share alone"]["wait_p99"]
