"""A simulation that finds nothing proves nothing: bugs that are put in are found, by the invariant meant for them."""

from __future__ import annotations

import pytest

from llava_grpc.testing.histories.history import HistoryError, run_seed
from tests.support.planted_bugs import PLANTED

WITHIN = 60
"""Histories in which each is found."""


def test_there_are_ten_or_more():
    assert len(PLANTED) >= 10


def first_failure() -> HistoryError | None:
    for seed in range(1, 1 + WITHIN):
        try:
            run_seed(seed)
        except HistoryError as error:
            return error
    return None


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch):
    PLANTED[name].plant(monkeypatch)
    failure = first_failure()
    assert failure is not None, f"{name} was not caught in {WITHIN} histories"
    assert failure.invariant in PLANTED[name].caught_by, failure
