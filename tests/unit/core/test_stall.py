"""Stalls of the controller, in virtual time: a fleet with an interval of 10 s that is dropped after 30 s of silence."""

import random
from collections.abc import Callable

import pytest

from llava_grpc.core.registry import Registry
from llava_grpc.core.stall import LONGEST_PERIOD, StallWatch, tick_period
from llava_grpc.core.worker import Registration

INTERVAL, EXPIRY = 10.0, 30.0
TOLERANCE = 2.0
Make = Callable[..., Registration]


class Fleet:
    """A registry and its reaper's ticks, once a second."""

    def __init__(self, make: Make, workers: int = 1) -> None:
        self.registry = Registry(expiry=EXPIRY, stalls=StallWatch.of_interval(INTERVAL))
        self.now = 1000.0
        self.registry.expire(self.now)
        self._sequence = 0
        for port in range(1, workers + 1):
            self.registry.register(make(port), self.now)

    def awake(self, seconds: float, period: float = 1.0) -> list[str]:
        """Tick for so long; the addresses of those who are reaped."""
        reaped, end = [], self.now + seconds
        while self.now < end:
            self.now = min(self.now + period, end)
            reaped += self._reap()
        return reaped

    def stall(self, seconds: float) -> list[str]:
        """Sleep, then wake up."""
        self.now += seconds
        return self._reap()

    def beat(self, port: int = 1) -> bool:
        self._sequence += 1
        return self.registry.heartbeat(f"127.0.0.1:{port}", f"life-of-{port}", self._sequence, 0, 0, self.now)

    def _reap(self) -> list[str]:
        return [worker.address for worker in self.registry.expire(self.now)]


def test_without_a_stall_who_is_silent_is_reaped_exactly_at_expiry(registration: Make):
    fleet = Fleet(registration)
    assert fleet.awake(29.999) == []
    assert fleet.registry.next_expiry() == 1030.0
    assert fleet.awake(0.001) == ["127.0.0.1:1"]


def test_after_a_stall_longer_than_expiry_those_who_are_heard_stay_and_the_silent_go_when_the_grace_ends(
    registration: Make,
):
    fleet = Fleet(registration, workers=2)
    fleet.awake(5)
    assert fleet.stall(600) == []
    assert fleet.registry.next_expiry() == fleet.now + INTERVAL
    assert fleet.awake(9) == []
    assert fleet.beat(1)
    assert fleet.awake(0.9) == []
    assert fleet.awake(0.1) == ["127.0.0.1:2"]
    assert fleet.awake(28.9) == []
    assert fleet.awake(0.1) == ["127.0.0.1:1"], "its own expiry, as ever"


def test_a_heartbeat_that_is_read_before_the_first_tick_counts(registration: Make):
    fleet = Fleet(registration)
    fleet.now += 600
    assert fleet.beat()
    assert fleet.stall(0) == []
    assert fleet.awake(29.9) == []
    assert fleet.awake(0.1) == ["127.0.0.1:1"]


def test_a_stall_never_brings_death_nearer(registration: Make):
    fleet = Fleet(registration)
    fleet.stall(5)
    assert fleet.registry.next_expiry() == 1030.0


def test_each_stall_begins_the_grace_anew(registration: Make):
    fleet = Fleet(registration)
    assert fleet.stall(600) == []
    assert fleet.awake(9) == []
    assert fleet.stall(600) == []
    assert fleet.awake(9.9) == []
    assert fleet.awake(0.1) == ["127.0.0.1:1"]


def test_who_had_its_chance_before_the_first_stall_still_gets_a_whole_grace(registration: Make):
    fleet = Fleet(registration)
    fleet.awake(29.9)
    assert fleet.stall(600) == []
    assert fleet.awake(9.9) == []
    assert fleet.awake(0.1) == ["127.0.0.1:1"]


@pytest.mark.parametrize("pause", [0.5, 5.0, 9.0])
def test_stalls_without_end_do_not_keep_the_dead(registration: Make, pause: float):
    fleet = Fleet(registration, workers=2)
    reaped, awake = [], 0.0
    while not reaped and awake < 100:
        fleet.beat(1)
        reaped = fleet.awake(pause) + fleet.stall(60)
        awake += pause + TOLERANCE
    assert reaped == ["127.0.0.1:2"]
    assert awake >= EXPIRY + INTERVAL


def test_many_short_gaps_are_no_stalls(registration: Make):
    fleet = Fleet(registration)
    assert fleet.awake(29.9, period=TOLERANCE) == []
    assert fleet.awake(0.1) == ["127.0.0.1:1"]


def test_gaps_just_above_the_tolerance_postpone_but_not_for_ever(registration: Make):
    fleet = Fleet(registration)
    began = fleet.now
    while not fleet.awake(2.1, period=2.1):
        assert fleet.now < began + 60
    assert fleet.now >= began + EXPIRY


def test_time_awake_leaves_out_what_was_slept():
    watch = StallWatch.of_interval(INTERVAL)
    watch.tick(100.0)
    before = watch.awake(100.0)
    assert watch.awake(101.0) - before == 1.0
    assert watch.awake(700.0) - before == TOLERANCE
    assert watch.tick(700.0) == 600.0
    assert watch.awake(700.0) - before == TOLERANCE
    assert watch.tick(701.0) == 0.0
    assert watch.awake(701.0) - before == TOLERANCE + 1


def test_ticks_are_frequent_enough_to_see_a_stall():
    for interval in (0.05, 1.0, 30.0, 600.0):
        assert 2 * tick_period(interval) <= StallWatch.of_interval(interval).tolerance * 1.000001
        assert tick_period(interval) <= LONGEST_PERIOD


@pytest.mark.parametrize("seed", range(20))
def test_whatever_stalls_come_nobody_who_beats_is_reaped_and_everybody_silent_is(registration: Make, seed: int):
    """A beat is sent every interval; those of a stall wait in the socket and are read some time after the wake-up."""
    chance = random.Random(seed)
    fleet = Fleet(registration, workers=2)
    due, end = fleet.now + INTERVAL, fleet.now + 3000
    while fleet.now < end:
        if chance.random() < 0.1:
            assert "127.0.0.1:1" not in fleet.stall(chance.uniform(0, 200))
        else:
            assert "127.0.0.1:1" not in fleet.awake(chance.uniform(0.1, 1.5))
        if fleet.now >= due:
            fleet.beat(1)
            due += INTERVAL * (1 + (fleet.now - due) // INTERVAL)
    assert [worker.address for worker in fleet.registry.workers()] == ["127.0.0.1:1"]
