"""The rules to compare with."""

from collections import Counter
from random import Random

from llava_grpc.sim.rivals import RIVALS, AnyOne, Llava, LlavaSpeeds, RoundRobin, TrueShortest, TwoChoices

EQUAL = [1.0, 1.0, 1.0]


def test_round_robin_takes_turns():
    rule = RoundRobin()
    assert [rule.choose([0, 9, 0], EQUAL, Random(1)) for _ in range(4)] == [0, 1, 2, 0]


def test_random_looks_at_nothing():
    drawn = Counter(AnyOne().choose([9, 0, 0], EQUAL, random) for random in [Random(1)] for _ in range(3000))
    assert all(900 < count < 1100 for count in drawn.values())


def test_of_two_choices_the_longest_queue_wins_only_against_itself():
    random = Random(1)
    drawn = Counter(TwoChoices().choose([1, 2, 9], EQUAL, random) for _ in range(9000))
    assert [round(drawn[worker] / 1000) for worker in range(3)] == [5, 3, 1]


def test_the_true_shortest_counts_speed_and_draws_among_equals():
    random = Random(1)
    assert {TrueShortest().choose([2, 3, 1], [1.0, 4.0, 0.5], random) for _ in range(20)} == {1}
    assert {TrueShortest().choose([1, 1, 2], EQUAL, random) for _ in range(50)} == {0, 1}


def test_llava_counts_its_choices_until_a_heartbeat_overwrites_them():
    rule = Llava()
    assert [rule.choose([0, 0, 0], EQUAL, Random(1)) for _ in range(5)] == [0, 1, 2, 0, 1]
    rule.heartbeat(0, 7)
    rule.heartbeat(1, 0)
    # Whatever the queues really are: ties go to the earliest.
    assert [rule.choose([0, 0, 0], EQUAL, Random(1)) for _ in range(3)] == [1, 1, 2]


def test_llava_knows_speeds_only_where_it_is_told():
    fast_last = [1.0, 1.0, 4.0]
    told, as_it_is = LlavaSpeeds(), Llava()
    assert [told.choose([0, 0, 0], fast_last, Random(1)) for _ in range(7)] == [0, 1, 2, 2, 2, 2, 0]
    assert [as_it_is.choose([0, 0, 0], fast_last, Random(1)) for _ in range(4)] == [0, 1, 2, 0]


def test_each_run_gets_a_fresh_rule():
    assert all(make() is not make() for make in RIVALS.values())
