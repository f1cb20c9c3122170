"""Percentiles and intervals."""

import math
from random import Random

import pytest

from llava_grpc.sim.measure import BatchMeans, Estimate, estimate, percentile


def test_percentiles_are_values_that_occurred():
    assert [percentile([3, 1, 2], percent) for percent in (0, 1, 50, 67, 100)] == [1, 1, 2, 3, 3]
    assert percentile(range(1, 101), 99) == 99
    assert math.isnan(percentile([], 50))


def test_the_first_tenth_is_left_out():
    values = BatchMeans(3200)
    for number in range(3200):
        values.add(number, 1000.0 if number < 320 else 1.0)
    assert values.means() == [1.0] * 32


def series(seed: int, count: int = 1600) -> tuple[BatchMeans, BatchMeans]:
    """A correlated series of mean 5, and a control of mean 0 that shares most of its noise."""
    random = Random(seed)
    values, control = BatchMeans(count), BatchMeans(count)
    shared = 0.0
    for number in range(count):
        shared = 0.5 * shared + random.gauss(0, 1)
        values.add(number, 5 + 2 * shared + random.gauss(0, 0.5))
        control.add(number, shared)
    return values, control


def test_almost_all_intervals_hold_the_mean():
    found = [estimate(*series(seed), expected=0.0) for seed in range(60)]
    assert sum(one.covers(5.0) for one in found) >= 57


def test_the_control_takes_the_shared_noise_away():
    values, control = series(1)
    nothing = BatchMeans(1600)
    assert estimate(values, control, 0.0).half_width < estimate(values, nothing, 0.0).half_width / 4


def test_a_constant_is_known_exactly():
    values = BatchMeans(1000)
    for number in range(1000):
        values.add(number, 2.0)
    assert estimate(values, values, 2.0) == Estimate(pytest.approx(2.0), pytest.approx(0.0))
