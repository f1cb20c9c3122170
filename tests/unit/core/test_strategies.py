"""Whom each strategy chooses, and how evenly."""

from collections import Counter
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from llava_grpc.core.demand import Demand, Piece
from llava_grpc.core.strategies import (
    STRATEGIES,
    Snapshot,
    Strategy,
    cache_affinity,
    expected_first_token,
    lottery,
    power_of_two,
    shortest_queue,
)

DRAWS = 10_000
NOTHING = Demand()


def fleet(
    *speeds: float,
    queues: Sequence[float] = (),
    unread: Sequence[float] = (),
    held: Sequence[float] = (),
    pictures: Sequence[float] = (),
) -> Snapshot:
    count = len(speeds)

    def column(values: Sequence[float] | np.ndarray) -> np.ndarray:
        return np.array(values if len(values) else [0.0] * count, dtype=float)

    figures = (speeds, queues, 30 - column(queues), unread, held, pictures)
    return Snapshot(np.arange(count), np.array([column(one) for one in figures]))


def choose(strategy: Strategy, snapshot: Snapshot, random: Random, demand: Demand = NOTHING) -> int:
    return strategy(snapshot, demand, random).index


@pytest.mark.parametrize(
    ("speeds", "critical"),
    # 99.9 % points of chi-square with 1 and 3 degrees of freedom; the seed is fixed, so this cannot flicker.
    [((1.0, 3.0), 10.83), ((0.5, 1.0, 2.0, 4.0), 16.27)],
)
def test_lottery_draws_in_proportion_to_speed(speeds: tuple[float, ...], critical: float):
    random, candidates = Random(7), fleet(*speeds)
    drawn = Counter(choose(lottery, candidates, random) for _ in range(DRAWS))
    chi_square = sum(
        (drawn[i] - DRAWS * speed / sum(speeds)) ** 2 / (DRAWS * speed / sum(speeds)) for i, speed in enumerate(speeds)
    )
    assert chi_square < critical


def test_shortest_queue_divides_by_speed():
    assert choose(shortest_queue, fleet(1.0, 4.0, queues=(2, 7)), Random(7)) == 1
    assert choose(shortest_queue, fleet(1.0, 4.0, queues=(2, 9)), Random(7)) == 0


def test_shortest_queue_breaks_ties_by_lot():
    random, candidates = Random(7), fleet(1.0, 1.0, 1.0, queues=(3, 1, 1))
    drawn = Counter(choose(shortest_queue, candidates, random) for _ in range(DRAWS))
    assert set(drawn) == {1, 2}
    assert abs(drawn[1] - DRAWS / 2) < 200  # four standard deviations


def test_a_draw_that_rounds_up_to_the_whole_sum_is_still_somebody():
    class Last(Random):
        def random(self) -> float:
            return 1 - 2**-53

    assert choose(lottery, fleet(*[0.1] * 10), Last()) == 9


def test_two_choices_takes_the_less_loaded_of_two_different_ones():
    random, candidates = Random(7), fleet(1.0, 1.0, 1.0, queues=(9, 5, 1))
    drawn = Counter(choose(power_of_two, candidates, random) for _ in range(DRAWS))
    assert drawn[0] == 0, "the most loaded loses against either"
    assert abs(drawn[1] - DRAWS / 3) < 190  # four standard deviations
    assert choose(power_of_two, fleet(2.0), random) == 0


def test_affinity_goes_where_the_request_is_known():
    demand = Demand((Piece(b"turn", 600),), (b"picture",))
    assert choose(cache_affinity, fleet(1.0, 1.0, 1.0, held=(0, 600, 0), pictures=(0, 1, 0)), Random(7), demand) == 1
    assert choose(cache_affinity, fleet(1.0, 1.0, 1.0, pictures=(0, 0, 1)), Random(7), demand) == 2
    assert choose(cache_affinity, fleet(1.0, 1.0, 1.0, queues=(3, 3, 2)), Random(7), demand) == 2, "else the shortest"


def test_affinity_never_overloads_a_worker():
    """Whatever is asked for, a worker that holds everything gets at most the bound's share of the requests."""
    demand, random = Demand((Piece(b"turn", 600),)), Random(7)
    queues = [0.0] * 4
    for _ in range(400):
        chosen = choose(cache_affinity, fleet(1.0, 1.0, 1.0, 1.0, queues=queues, held=(600, 0, 0, 0)), random, demand)
        queues[chosen] += 1
        assert queues[0] <= 1.25 * (sum(queues) + 1) / 4 + 1
    assert queues[0] > 120, "and it gets more than its even share"


def test_the_first_token_is_expected_where_the_least_is_to_be_read():
    demand = Demand((Piece(b"turn", 600),))
    assert choose(expected_first_token, fleet(1.0, 1.0, unread=(500, 0)), Random(7), demand) == 1
    assert choose(expected_first_token, fleet(1.0, 1.0, unread=(500, 0), held=(590, 0)), Random(7), demand) == 0
    assert choose(expected_first_token, fleet(1.0, 4.0, unread=(0, 600)), Random(7), demand) == 1
    assert choose(expected_first_token, fleet(1.0, 1.0, queues=(3, 2)), Random(7), demand) == 1


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_scores_are_those_of_the_candidates_considered(strategy: Strategy):
    pick = strategy(fleet(1.0, 2.0, 3.0, queues=(3, 1, 2)), Demand((Piece(b"turn", 600),)), Random(7))
    considered = range(3) if pick.considered is None else pick.considered.tolist()
    scores = dict(zip(considered, pick.scores.tolist(), strict=True))
    if strategy is not lottery:
        assert scores[pick.index] == (max if pick.most_is_best else min)(scores.values())
