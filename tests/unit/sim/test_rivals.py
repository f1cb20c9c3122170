"""The rules to compare with."""

from collections import Counter
from random import Random

import pytest

from llava_grpc.sim.rivals import (
    LATE_RIVALS,
    RIVALS,
    AnyOne,
    Llava,
    LlavaSpeeds,
    PeakEwma,
    RoundRobin,
    Sight,
    TrueShortest,
    TwoChoices,
)

EQUAL = [1.0, 1.0, 1.0]


def see(lengths: list[int], speeds: list[float], among: list[int] | None = None, now: float = 0.0) -> Sight:
    return Sight(lengths, speeds, [*range(len(lengths))] if among is None else among, now)


def test_round_robin_takes_turns():
    rule = RoundRobin()
    assert [rule.choose(see([0, 9, 0], EQUAL), Random(1)) for _ in range(4)] == [0, 1, 2, 0]


def test_round_robin_skips_whom_it_may_not_choose():
    rule = RoundRobin()
    assert [rule.choose(see([0, 0, 0], EQUAL, [0, 2]), Random(1)) for _ in range(4)] == [0, 2, 0, 2]


@pytest.mark.parametrize("make", [*RIVALS.values(), *LATE_RIVALS.values()])
def test_every_rule_chooses_among_those_that_may_be_chosen(make):
    rule, random = make(), Random(1)
    for _ in range(200):
        among = sorted(random.sample(range(5), random.randint(1, 5)))
        lengths = [random.randrange(4) for _ in range(5)]
        assert rule.choose(see(lengths, [1.0] * 5, among), random) in among


def test_peak_ewma_jumps_to_a_peak_and_forgets_slowly():
    rule, random = PeakEwma(), Random(1)

    def chosen(lengths: list[int], now: float) -> set[int]:
        return {rule.choose(see(lengths, [1.0, 1.0], now=now), random) for _ in range(20)}

    rule.ended(0, 1.0, now=1.0)
    rule.ended(1, 1.0, now=1.0)
    rule.ended(1, 8.0, now=1.0)
    assert chosen([1, 0], 1.0) == {0}  # 1 x 2 against 8 x 1
    assert chosen([9, 0], 1.0) == {1}  # 1 x 10 against 8 x 1
    rule.ended(0, 1.0, now=31.0)
    assert chosen([1, 0], 31.0) == {1}  # 8 has faded to 8 / e^3


def test_peak_ewma_leaves_who_never_answered_to_the_last():
    rule = PeakEwma()
    rule.ended(0, 1.0, now=1.0)
    assert {rule.choose(see([9, 1], [1.0, 1.0], now=1.0), Random(seed)) for seed in range(9)} == {0}
    assert {rule.choose(see([9, 0], [1.0, 1.0], now=1.0), Random(seed)) for seed in range(9)} == {1}


def test_random_looks_at_nothing():
    drawn = Counter(AnyOne().choose(see([9, 0, 0], EQUAL), random) for random in [Random(1)] for _ in range(3000))
    assert all(900 < count < 1100 for count in drawn.values())


def test_of_two_choices_the_longest_queue_wins_only_against_itself():
    random = Random(1)
    drawn = Counter(TwoChoices().choose(see([1, 2, 9], EQUAL), random) for _ in range(9000))
    assert [round(drawn[worker] / 1000) for worker in range(3)] == [5, 3, 1]


def test_the_true_shortest_counts_speed_and_draws_among_equals():
    random = Random(1)
    assert {TrueShortest().choose(see([2, 3, 1], [1.0, 4.0, 0.5]), random) for _ in range(20)} == {1}
    assert {TrueShortest().choose(see([1, 1, 2], EQUAL), random) for _ in range(50)} == {0, 1}


def test_llava_counts_its_choices_until_a_heartbeat_overwrites_them():
    rule = Llava()
    assert [rule.choose(see([0, 0, 0], EQUAL), Random(1)) for _ in range(5)] == [0, 1, 2, 0, 1]
    rule.heartbeat(0, 7)
    rule.heartbeat(1, 0)
    # Whatever the queues really are: ties go to the earliest.
    assert [rule.choose(see([0, 0, 0], EQUAL), Random(1)) for _ in range(3)] == [1, 1, 2]


def test_llava_knows_speeds_only_where_it_is_told():
    fast_last = [1.0, 1.0, 4.0]
    told, as_it_is = LlavaSpeeds(), Llava()
    assert [told.choose(see([0, 0, 0], fast_last), Random(1)) for _ in range(7)] == [0, 1, 2, 2, 2, 2, 0]
    assert [as_it_is.choose(see([0, 0, 0], fast_last), Random(1)) for _ in range(4)] == [0, 1, 2, 0]


def test_each_run_gets_a_fresh_rule():
    assert all(make() is not make() for make in RIVALS.values())
