"""The seed's two strategies: their distributions, and the defects that they no longer have."""

from collections import Counter
from random import Random

import pytest

from llava_grpc.core.strategies import STRATEGIES, Candidate, Strategy, lottery, shortest_queue
from llava_grpc.errors import AllSpeedsZeroError

DRAWS = 10_000


def fleet(*speeds: float, queues: tuple[int, ...] = ()) -> list[Candidate]:
    queues = queues or (0,) * len(speeds)
    return [
        Candidate(f"w{i}", speed, queue, 30 - queue)
        for i, (speed, queue) in enumerate(zip(speeds, queues, strict=True))
    ]


@pytest.mark.parametrize(
    ("speeds", "critical"),
    # 99.9 % points of chi-square with 1 and 3 degrees of freedom; the seed is fixed, so this cannot flicker.
    [((1.0, 3.0), 10.83), ((0.5, 1.0, 2.0, 4.0), 16.27)],
)
def test_lottery_draws_in_proportion_to_speed(speeds: tuple[float, ...], critical: float):
    random, candidates = Random(7), fleet(*speeds)
    drawn = Counter(lottery(candidates, random).address for _ in range(DRAWS))
    chi_square = sum(
        (drawn[f"w{i}"] - DRAWS * speed / sum(speeds)) ** 2 / (DRAWS * speed / sum(speeds))
        for i, speed in enumerate(speeds)
    )
    assert chi_square < critical


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_zero_speed_is_never_chosen_beside_a_positive_one(strategy: Strategy):
    random, candidates = Random(7), fleet(0.0, 1e-9, 0.0, queues=(0, 29, 0))
    assert {strategy(candidates, random).address for _ in range(1000)} == {"w1"}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_all_zero_speeds_are_an_error_of_their_own(strategy: Strategy):
    with pytest.raises(AllSpeedsZeroError):
        strategy(fleet(0.0, 0.0), Random(7))


def test_shortest_queue_divides_by_speed():
    assert shortest_queue(fleet(1.0, 4.0, queues=(2, 7)), Random(7)).address == "w1"
    assert shortest_queue(fleet(1.0, 4.0, queues=(2, 9)), Random(7)).address == "w0"


def test_shortest_queue_breaks_ties_by_lot():
    random, candidates = Random(7), fleet(1.0, 1.0, 1.0, queues=(3, 1, 1))
    drawn = Counter(shortest_queue(candidates, random).address for _ in range(DRAWS))
    assert set(drawn) == {"w1", "w2"}
    assert abs(drawn["w1"] - DRAWS / 2) < 200  # four standard deviations
