"""Who waits and who goes next, in virtual time."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llava_grpc.core.admission import (
    ANSWER_WEIGHT,
    PROMPT_WEIGHT,
    AdmissionQueue,
    Entry,
    QueueLimits,
    ServiceCounters,
)
from llava_grpc.core.demand import plain
from llava_grpc.core.prompt import Priority
from llava_grpc.errors import DeadlineExceededError, QueueFullError


def queue(length: int = 100, wait: float = 60.0) -> AdmissionQueue:
    return AdmissionQueue(QueueLimits(length=length, wait=wait), ServiceCounters())


def entry(key: str, arrived: float = 0.0, **values: Any) -> Entry:
    return Entry(key=key, arrived=arrived, **values)


def drained(waiting: AdmissionQueue) -> list[str]:
    keys = []
    while (taken := waiting.take()) is not None:
        keys.append(taken.key)
    return keys


def test_priority_goes_first_then_deadline_then_arrival():
    waiting = queue()
    waiting.push(entry("late", arrived=0, deadline=50))
    waiting.push(entry("soon", arrived=1, deadline=10))
    waiting.push(entry("whenever", arrived=0))
    waiting.push(entry("afterwards", arrived=2))
    waiting.push(entry("batch", arrived=0, priority=Priority.LOW, deadline=5))
    waiting.push(entry("urgent", arrived=3, priority=Priority.HIGH))
    assert waiting.ranking() == {
        key: place for place, key in enumerate(("urgent", "soon", "late", "whenever", "afterwards", "batch"))
    }
    assert drained(waiting) == ["urgent", "soon", "late", "whenever", "afterwards", "batch"]
    assert len(waiting) == 0


def test_the_tenant_served_least_goes_first_whatever_the_other_has_queued():
    waiting = queue()
    for number in range(10):
        waiting.push(entry(f"flood{number}", arrived=number, tenant="flood", demand=plain(10)))
    waiting.push(entry("modest0", arrived=10, tenant="modest", demand=plain(10)))
    waiting.push(entry("modest1", arrived=11, tenant="modest", demand=plain(10)))
    order = drained(waiting)
    assert order.index("modest0") <= 1
    assert order.index("modest1") <= 3


def test_who_was_away_saves_nothing_up():
    counters = ServiceCounters()
    waiting = AdmissionQueue(QueueLimits(), counters)
    counters.charge("busy", answer=1000)
    waiting.push(entry("b", tenant="busy"))
    waiting.push(entry("n", tenant="newcomer"))
    assert counters["newcomer"] == counters["busy"]


def test_a_full_queue_says_so_and_no_equal_is_pushed_out():
    waiting = queue(length=2)
    waiting.push(entry("a"))
    waiting.push(entry("b"))
    with pytest.raises(QueueFullError):
        waiting.push(entry("c"))
    assert drained(waiting) == ["a", "b"]
    with pytest.raises(QueueFullError):
        queue(length=0).push(entry("d"))


def test_time_is_up_at_the_deadline_or_after_the_longest_wait_each_with_its_own_error():
    waiting = queue(wait=30)
    waiting.push(entry("patient", arrived=0))
    waiting.push(entry("hasty", arrived=0, deadline=5))
    waiting.push(entry("gone", arrived=0, deadline=3))
    waiting.remove("gone")
    assert waiting.next_expiry() == 5
    assert waiting.expire(now=4.9) == []
    [(hasty, why)] = waiting.expire(now=5)
    assert (hasty.key, type(why)) == ("hasty", DeadlineExceededError)
    [(patient, why)] = waiting.expire(now=30)
    assert (patient.key, type(why)) == ("patient", QueueFullError)
    assert waiting.next_expiry() is None


def test_a_key_that_left_and_came_back_counts_once_at_its_new_place():
    waiting = queue()
    waiting.push(entry("a", arrived=0))
    waiting.push(entry("b", arrived=1))
    waiting.remove("a")
    waiting.push(entry("a", arrived=2))
    assert drained(waiting) == ["b", "a"]
    waiting.push(entry("c"))
    with pytest.raises(ValueError, match="waits already"):
        waiting.push(entry("c"))


def test_service_difference_stays_within_the_bound_of_the_paper():
    """Two tenants that always wait are never apart by more than twice the largest charge of one request."""
    seed = 20261123
    chance, counters = random.Random(seed), ServiceCounters()
    waiting = AdmissionQueue(QueueLimits(length=1000), counters)
    served, queued = {"a": 0.0, "b": 0.0}, {"a": 0, "b": 0}
    longest_prompt, longest_answer, batch = 512, 256, 8
    running: list[tuple[str, int]] = []
    arrivals = 0
    bound = 2 * max(PROMPT_WEIGHT * longest_prompt, ANSWER_WEIGHT * batch * longest_answer)
    for _ in range(100_000):
        for tenant, most in (("a", 3), ("b", 30)):  # b queues ten times as much
            while queued[tenant] < most:
                arrivals += 1
                queued[tenant] += 1
                prompt = chance.randint(1, longest_prompt)
                waiting.push(entry(str(arrivals), arrived=arrivals, tenant=tenant, demand=plain(prompt)))
        while len(running) < batch:
            taken = waiting.take()
            assert taken is not None
            queued[taken.tenant] -= 1
            served[taken.tenant] += PROMPT_WEIGHT * taken.prompt_tokens
            running.append((taken.tenant, chance.randint(1, longest_answer)))
        tokens = min(left for _, left in running)
        for tenant, _ in running:
            counters.charge(tenant, answer=tokens)
            served[tenant] += ANSWER_WEIGHT * tokens
        running = [(tenant, left - tokens) for tenant, left in running if left > tokens]
        assert abs(served["a"] - served["b"]) <= bound, f"seed {seed}"


def test_a_flood_fills_the_queue_for_itself_alone():
    waiting = queue(length=10)
    for number in range(10):
        waiting.push(entry(f"flood{number}", arrived=number, tenant="flood"))
    with pytest.raises(QueueFullError):
        waiting.push(entry("flood10", arrived=10, tenant="flood"))
    made_way = [waiting.push(entry(f"calm{number}", arrived=11 + number, tenant="calm")) for number in range(5)]
    assert [one.key for one in made_way if one is not None] == ["flood9", "flood8", "flood7", "flood6", "flood5"]
    with pytest.raises(QueueFullError):
        waiting.push(entry("calm5", arrived=16, tenant="calm"))
    assert len(waiting) == 10


def test_the_least_urgent_make_way_for_the_more_urgent_never_the_other_way_round():
    waiting = queue(length=2)
    waiting.push(entry("batch", priority=Priority.LOW))
    waiting.push(entry("chat"))
    displaced = waiting.push(entry("urgent", priority=Priority.HIGH))
    assert displaced is not None
    assert displaced.key == "batch"
    with pytest.raises(QueueFullError):
        waiting.push(entry("more batch", priority=Priority.LOW))
    assert drained(waiting) == ["urgent", "chat"]


def test_who_cannot_be_answered_in_time_is_told_while_it_waits():
    waiting = queue()
    waiting.push(entry("short", deadline=10), needs=2)
    waiting.push(entry("long", deadline=10), needs=6)
    waiting.push(entry("unknown", deadline=10))
    assert waiting.next_expiry() == 4
    [(gone, error)] = waiting.expire(4)
    assert gone.key == "long"
    assert isinstance(error, DeadlineExceededError)
    assert "answers take 6.0 s" in error.cause
    assert [one.key for one, _ in waiting.expire(8)] == ["short"]
    [(gone, error)] = waiting.expire(10)
    assert (gone.key, "before the deadline" in error.cause) == ("unknown", True)


class Histories(RuleBasedStateMachine):
    """Random histories against a plain list: nobody is lost, doubled, or served after the time is up."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = queue(length=8, wait=20)
        self.waiting: dict[str, Entry] = {}
        self.now, self.count = 0.0, 0

    @rule(tenant=st.sampled_from("ab"), priority=st.sampled_from(Priority), patience=st.none() | st.floats(0.1, 30))
    def push(self, tenant: str, priority: Priority, patience: float | None) -> None:
        self.count += 1
        deadline = None if patience is None else self.now + patience
        new = entry(str(self.count), arrived=self.now, tenant=tenant, priority=priority, deadline=deadline)
        if len(self.waiting) < 8:
            assert self.queue.push(new) is None
            self.waiting[new.key] = new
            return
        counts = Counter((one.priority, one.tenant) for one in self.waiting.values())
        least_urgent = max(one.priority for one in self.waiting.values())
        most = max(count for (priority, _), count in counts.items() if priority == least_urgent)
        if priority < least_urgent or (priority == least_urgent and most > counts[priority, tenant] + 1):
            displaced = self.queue.push(new)
            assert displaced is not None
            assert (displaced.priority, counts[displaced.priority, displaced.tenant]) == (least_urgent, most)
            del self.waiting[displaced.key]
            self.waiting[new.key] = new
        else:
            with pytest.raises(QueueFullError):
                self.queue.push(new)

    @rule()
    def take(self) -> None:
        taken = self.queue.take()
        assert (taken is None) == (not self.waiting)
        if taken is not None:
            assert taken.priority == min(other.priority for other in self.waiting.values())
            del self.waiting[taken.key]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.remove(key) == self.waiting.pop(key)
        assert self.queue.remove(key) is None

    @rule(pause=st.floats(0, 10))
    def time_passes(self, pause: float) -> None:
        self.now += pause
        for expired, _ in self.queue.expire(self.now):
            gone = self.waiting.pop(expired.key)
            assert min(gone.arrived + 20, gone.deadline or float("inf")) <= self.now

    @invariant()
    def the_same_wait(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert all(key in self.queue for key in self.waiting)
        assert sorted(self.queue.ranking().items(), key=lambda item: item[1]) == [
            (key, place) for place, key in enumerate(self.queue.ranking())
        ]
        assert self.queue.ranking().keys() == self.waiting.keys()
        following = self.queue.peek()
        assert (following is None) == (not self.waiting)
        assert following is None or self.queue.ranking()[following.key] == 0
        due = [min(one.arrived + 20, one.deadline or float("inf")) for one in self.waiting.values()]
        assert self.queue.next_expiry() == min(due, default=None)


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase
