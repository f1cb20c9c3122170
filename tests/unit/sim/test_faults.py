"""Faults are drawn from the seed, one after another, and happen in order."""

import itertools
from random import Random

from llava_grpc.sim.engine import Clock
from llava_grpc.sim.faults import Fault, Faults, draw, schedule


def test_no_two_are_gone_at_once_and_none_begins_too_late():
    faults = draw(4, 10_000.0, Random(1), every=60.0, away=30.0)
    assert 90 < len(faults) < 130
    assert all(one.back <= other.at for one, other in itertools.pairwise(faults))
    assert all(fault.back == fault.at + 30.0 and fault.at < 10_000.0 for fault in faults)
    assert {fault.worker for fault in faults} == {0, 1, 2, 3}
    assert (
        faults
        == draw(4, 10_000.0, Random(1), every=60.0, away=30.0)
        != draw(4, 10_000.0, Random(2), every=60.0, away=30.0)
    )


class Door:
    def __init__(self, clock: Clock) -> None:
        self.clock, self.told = clock, []

    def fail(self, worker: int, dies: bool) -> None:
        self.told.append((self.clock.now, "dies" if dies else "is silent", worker))

    def notice(self, worker: int) -> None:
        self.told.append((self.clock.now, "is noticed", worker))

    def come_back(self, worker: int) -> None:
        self.told.append((self.clock.now, "comes back", worker))


def test_a_death_is_noticed_unless_the_worker_is_back_before_and_silence_is_not():
    clock = Clock()
    door = Door(clock)
    faults = [Fault(0, 1.0, 20.0), Fault(1, 21.0, 23.0), Fault(2, 30.0, 50.0, dies=False)]
    schedule(clock, door, Faults(faults, noticed=5.0))
    clock.run()
    assert door.told == [
        (1.0, "dies", 0),
        (6.0, "is noticed", 0),
        (20.0, "comes back", 0),
        (21.0, "dies", 1),
        (23.0, "comes back", 1),
        (30.0, "is silent", 2),
        (50.0, "comes back", 2),
    ]
