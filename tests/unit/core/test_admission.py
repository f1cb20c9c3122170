"""Who waits and who goes next, in virtual time."""

import random
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
    assert [waiting.position(key) for key in ("urgent", "soon", "late", "whenever", "afterwards", "batch")] == [
        *range(6)
    ]
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


def test_a_full_queue_says_so_and_nobody_is_pushed_out():
    waiting = queue(length=2)
    waiting.push(entry("a"))
    waiting.push(entry("b"))
    with pytest.raises(QueueFullError):
        waiting.push(entry("c", priority=Priority.HIGH))
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
        if len(self.waiting) >= 8:
            with pytest.raises(QueueFullError):
                self.queue.push(new)
        else:
            self.queue.push(new)
            self.waiting[new.key] = new

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
        assert sorted(self.queue.position(key) for key in self.waiting) == [*range(len(self.waiting))]
        due = [min(one.arrived + 20, one.deadline or float("inf")) for one in self.waiting.values()]
        assert self.queue.next_expiry() == min(due, default=None)


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase
