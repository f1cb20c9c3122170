"""Frames leave at once on an idle system and at a bounded rate on a busy one, in virtual time."""

import pytest

from llava_grpc.core.pacing import FrameBudget


def test_an_idle_system_never_waits():
    budget = FrameBudget(rate=100.0, burst=4.0)
    for step in range(1000):
        assert budget.reserve(now=step / 100.0) == pytest.approx(0.0, abs=1e-9)


def test_a_burst_passes_and_what_comes_after_it_waits_longer_and_longer_up_to_the_limit():
    budget = FrameBudget(rate=100.0, burst=4.0, longest=0.05)
    waits = [budget.reserve(now=1.0) for _ in range(20)]
    assert waits[:4] == pytest.approx([0.0] * 4, abs=1e-9)
    assert waits[4:9] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
    assert waits[9:] == pytest.approx([0.05] * 11)


def test_what_is_not_used_comes_back_but_no_more_than_a_burst():
    budget = FrameBudget(rate=100.0, burst=4.0)
    for _ in range(50):
        budget.reserve(now=1.0)
    waits = [budget.reserve(now=100.0) for _ in range(5)]
    assert waits[:4] == pytest.approx([0.0] * 4, abs=1e-9)
    assert waits[4] > 0


def test_streams_that_each_wait_for_their_turn_send_at_the_rate():
    budget, now, sent = FrameBudget(rate=500.0, burst=16.0, longest=0.05), 0.0, 0
    turns = [0.0] * 20  # when each of twenty streams, always with something to send, has its next turn
    while now < 2.0:
        stream = min(range(20), key=turns.__getitem__)
        now = turns[stream]
        sent += 1
        turns[stream] = now + max(budget.reserve(now), 1e-6)
    assert sent == pytest.approx(1000, rel=0.05)
