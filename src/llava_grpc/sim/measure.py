"""Figures from runs: percentiles, and means with an honest interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BATCHES = 32
T_99 = 2.75
"""Student's t for 99 % on both sides, 30 degrees of freedom: one goes to the mean, one to the control."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: the least value that so many per cent do not exceed; nan of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


class BatchMeans:
    """The means of 32 batches of a series of `expected` values, in order of their numbers.

    The first tenth is left out, while the system fills. Batches are long, so their means are almost independent.
    """

    __slots__ = ("_per_batch", "_skip", "_sums")

    def __init__(self, expected: int) -> None:
        self._per_batch = max(1, expected * 9 // 10 // BATCHES)
        self._skip = max(0, expected - self._per_batch * BATCHES)
        self._sums = [0.0] * BATCHES

    def add(self, number: int, value: float) -> None:
        """The value of that number, counted from 0."""
        batch = (number - self._skip) // self._per_batch
        if 0 <= batch < BATCHES:
            self._sums[batch] += value

    def means(self) -> list[float]:
        return [total / self._per_batch for total in self._sums]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and half the width of its 99 % interval."""

    mean: float
    half_width: float

    def covers(self, value: float) -> bool:
        return abs(self.mean - value) <= self.half_width


def estimate(values: BatchMeans, control: BatchMeans, expected: float) -> Estimate:
    """The mean of a series, by batch means and a control variate.

    `control` is another series from the same draws whose mean is known to be `expected`: what it is off by, times the
    slope of the regression of one on the other, is taken off, and with it most of the noise that they share. The
    interval is Student's of the residuals.
    """
    ours, theirs = values.means(), control.means()
    middle, other = sum(ours) / BATCHES, sum(theirs) / BATCHES
    spread = sum((value - other) ** 2 for value in theirs)
    together = sum((one - middle) * (two - other) for one, two in zip(ours, theirs, strict=True))
    slope = together / spread if spread > 0 else 0.0
    residual = sum((one - middle - slope * (two - other)) ** 2 for one, two in zip(ours, theirs, strict=True))
    variance = residual / (BATCHES - 2) * (1 / BATCHES + ((other - expected) ** 2 / spread if spread > 0 else 0.0))
    return Estimate(middle - slope * (other - expected), T_99 * math.sqrt(variance))
