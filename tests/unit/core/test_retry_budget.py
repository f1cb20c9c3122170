"""Retries are a share of the traffic."""

from hypothesis import given
from hypothesis import strategies as st

from llava_grpc.core.retry_budget import RetryBudget


def granted(budget: RetryBudget, tries: int, now: float) -> int:
    return sum(budget.retry(now) for _ in range(tries))


def test_a_quiet_fleet_may_lose_a_full_worker():
    assert granted(RetryBudget(), tries=1000, now=5.0) == 100


def test_the_reserve_comes_back_and_no_more_than_that():
    budget = RetryBudget(reserve=100, refill=10)
    granted(budget, 1000, now=0.0)
    assert granted(budget, 1000, now=3.0) == 30
    assert granted(budget, 1000, now=1e6) == 100


def test_a_share_of_the_traffic_may_be_retried():
    budget = RetryBudget(share=0.1, reserve=0, refill=0)
    for _ in range(1000):
        budget.request(now=1.0)
    assert granted(budget, 1000, now=1.0) in (99, 100)


def test_traffic_of_long_ago_earns_nothing():
    budget = RetryBudget(share=0.1, reserve=0, refill=0)
    for _ in range(1000):
        budget.request(now=1.0)
    assert granted(budget, 1000, now=121.0) == 0


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=300))
def test_over_any_time_no_more_is_granted_than_the_law_says(steps: list[tuple[bool, float]]):
    budget = RetryBudget(share=0.1, reserve=5, refill=1)
    now, requests, retries = 0.0, 0, 0
    for is_request, gap in steps:
        now += gap
        if is_request:
            budget.request(now)
            requests += 1
        else:
            retries += budget.retry(now)
        assert retries <= 0.1 * requests + 5 + now + 1e-6
