import pytest

from drills.outcome import Outcome, percentile, summary


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.99, None),
        ([7.0], 0.5, 7.0),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0),
        (list(map(float, range(1, 101))), 0.99, 99.0),
    ],
)
def test_percentiles_are_values_that_were_seen(values: list[float], share: float, expected: float | None):
    assert percentile(values, share) == expected


def test_a_demand_that_is_not_met_is_in_the_verdict_and_in_the_summary():
    outcome = Outcome("one", kills=2, streams=5, identical=5, detect_ms=[3.0, 4.0])
    assert outcome.verdict == "ok"
    outcome.require(True, "this holds")
    outcome.require(False, "this does not")
    assert outcome.verdict == "this does not"
    skipped = Outcome("other", skipped="not here")
    told = summary([outcome, skipped], seed=7)
    assert {name: told[name] for name in ("kills", "streams", "identical", "lost", "leaked")} == {
        "kills": 2,
        "streams": 5,
        "identical": 5,
        "lost": 0,
        "leaked": 0,
    }
    assert (told["detect_ms_p99"], told["cancel_ms_p99"], told["seed"]) == (4.0, None, 7)
    assert told["broken"] == ["one: this does not"]
    assert told["skipped"] == {"other": "not here"}
