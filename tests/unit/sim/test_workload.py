"""Arrivals and lengths have the shape that they say."""

import itertools
import statistics
from collections.abc import Iterator
from random import Random

import pytest

from llava_grpc.sim.workload import PICTURE_TOKENS, Job, Request, bursty, chats, mean_lengths, poisson


def counts(times: Iterator[float], seconds: int, window: int = 5) -> list[int]:
    """Arrivals in each window."""
    found = [0] * (seconds // window)
    for at in itertools.takewhile(lambda at: at < seconds, times):
        found[int(at) // window] += 1
    return found


def test_poisson_arrivals_have_their_rate_and_variance():
    found = counts(poisson(2.0, Random(1)), 20_000)
    assert statistics.mean(found) == pytest.approx(10, rel=0.03)
    assert statistics.variance(found) == pytest.approx(10, rel=0.1)


def test_bursty_arrivals_have_the_same_rate_and_more_variance():
    found = counts(bursty(2.0, Random(1)), 100_000)
    assert statistics.mean(found) == pytest.approx(10, rel=0.05)
    assert statistics.variance(found) > 30


def test_a_burst_that_leaves_nothing_for_the_rest_is_refused():
    with pytest.raises(ValueError, match="leaves nothing"):
        next(bursty(1.0, Random(1), burst=20, share=0.1))


def test_chats_are_long_tailed_within_limits_and_the_same_for_a_seed():
    lengths = chats(5000, Random(1))
    answers = [length.answer for length in lengths]
    assert statistics.median(answers) == pytest.approx(120, rel=0.05)
    assert min(answers) >= 1
    assert 500 < max(answers) <= 1024
    assert min(length.prompt for length in lengths) > PICTURE_TOKENS
    assert lengths == chats(5000, Random(1)) != chats(5000, Random(2))
    prompt, answer = mean_lengths(lengths)
    assert prompt == pytest.approx(630, rel=0.05)
    assert answer == pytest.approx(163, rel=0.05)
    assert min(length.prompt for length in chats(100, Random(1), pictures=0.0)) < PICTURE_TOKENS


def test_a_job_is_in_time_when_it_was_answered_by_its_deadline():
    job = Job(0, Request(at=1.0, deadline=5.0))
    job.dispatched, job.first_token, job.finished = 2.0, 3.0, 5.0
    assert (job.wait, job.to_first_token, job.response, job.in_time) == (1.0, 2.0, 4.0, True)
    job.finished = 5.1
    assert not job.in_time
