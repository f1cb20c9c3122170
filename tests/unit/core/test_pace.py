"""What those who wait are told, and what their deadlines are held against."""

import pytest

from llava_grpc.core.pace import ReleasePace, ServicePace


def test_a_place_in_the_queue_is_worth_a_gap_between_two_releases():
    pace = ReleasePace()
    assert pace.wait(0) is None
    pace.record(10.0)
    assert pace.wait(0) is None, "one release says nothing of the next"
    pace.record(12.0)
    assert (pace.wait(0), pace.wait(3)) == (2.0, 8.0)


def test_an_answer_is_expected_to_take_as_long_as_the_last_ones_did():
    pace = ServicePace()
    assert pace.expected(0) == 0.0
    for _ in range(100):
        pace.record(10.0, 100)
    assert pace.expected(0) == pytest.approx(10.0)
    assert pace.expected(20) == pytest.approx(2.0), "a short one takes less"
    assert pace.expected(1000) == pytest.approx(10.0), "most are shorter than they may be"
    pace.record(5.0, 0)
    assert pace.expected(0) == pytest.approx(10.0), "an answer without tokens says nothing"
