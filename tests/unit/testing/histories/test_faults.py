"""Plans of faults."""

from itertools import pairwise
from random import Random

from llava_grpc.testing.histories.faults import AT_PEACE, SETTLED, Kind, draw_gentle_plan, draw_plan

CONTROLLERS, WORKERS, CLIENTS = ("c1", "c2"), ("w1", "w2", "w3"), ("u",)
WHOLE_NODES = set(Kind) - {Kind.PARTITION, Kind.ONE_WAY, Kind.DELAY, Kind.RESET, Kind.DUPLICATE}


def plan(seed: int):
    return draw_plan(Random(seed), CONTROLLERS, WORKERS, CLIENTS, count=8, begin=1.0, end=12.0)


def test_a_seed_is_one_plan_and_seeds_differ():
    assert plan(1) == plan(1)
    assert len({plan(seed) for seed in range(50)}) == 50


def test_every_kind_comes_and_every_fault_ends():
    kinds = set()
    for seed in range(200):
        faults = plan(seed)
        assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
        for fault in faults:
            kinds.add(fault.kind)
            assert 1.0 <= fault.at <= 12.0
            assert 0.0 <= fault.lasts <= (48.0 if fault.kind is Kind.HANG else 24.0)
            assert fault.target != fault.other or not fault.target
            assert fault.kind.value in str(fault)
    assert kinds == set(Kind)


def test_what_befalls_a_node_befalls_it_once_at_a_time():
    for seed in range(200):
        over: dict[str, float] = {}
        for fault in plan(seed):
            if fault.kind in WHOLE_NODES:
                assert fault.at >= over.get(fault.target, 0.0)
                over[fault.target] = fault.ends + AT_PEACE


def test_replacements_and_slowness_are_for_workers():
    for seed in range(200):
        for fault in plan(seed):
            if fault.kind in (Kind.REPLACE, Kind.SLOW, Kind.HANG):
                assert fault.target in WORKERS


def test_a_gentle_plan_is_one_thing_at_a_time():
    for seed in range(200):
        faults = draw_gentle_plan(Random(seed), CONTROLLERS, WORKERS, count=3, begin=1.0)
        for one, following in pairwise(faults):
            assert following.at >= one.ends + SETTLED
