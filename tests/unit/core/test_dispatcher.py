"""Who gets a request, who is told what when nobody can, and that counts come back to zero."""

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from llava_grpc.core.dispatcher import Dispatcher
from llava_grpc.core.registry import Registration, Registry
from llava_grpc.core.strategies import shortest_queue
from llava_grpc.errors import (
    AllSlotsTakenError,
    AllSpeedsZeroError,
    ModelNotFoundError,
    ModelRequiredError,
    NoLiveWorkerError,
)

Make = Callable[..., Registration]


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(Registry(expiry=90), shortest_queue, Random(7))


def test_a_hundred_at_once_on_four_equals_are_split_evenly(dispatcher: Dispatcher, registration: Make):
    for port in range(1, 5):
        dispatcher.registry.register(registration(port, slots=30), now=0)
    assignments = [dispatcher.assign("m") for _ in range(100)]
    assert all(24 <= count <= 26 for count in Counter(a.address for a in assignments).values())
    for assignment in assignments:
        dispatcher.release(assignment, now=1)
        dispatcher.release(assignment, now=1)
    assert [worker.in_flight for worker in dispatcher.registry.workers()] == [0, 0, 0, 0]


def test_no_worker_gets_more_than_its_slots(dispatcher: Dispatcher, registration: Make):
    dispatcher.registry.register(registration(1, slots=2), now=0)
    dispatcher.registry.register(registration(2, slots=3), now=0)
    assignments = [dispatcher.assign("m") for _ in range(5)]
    with pytest.raises(AllSlotsTakenError) as caught:
        dispatcher.assign("m")
    assert caught.value.retry_after is not None
    dispatcher.release(assignments[0], now=1)
    assert dispatcher.assign("m").address == assignments[0].address


def test_others_requests_weigh_in_the_choice_but_an_old_report_never_says_full(
    dispatcher: Dispatcher, registration: Make
):
    dispatcher.registry.register(registration(1, slots=4), now=0)
    dispatcher.registry.heartbeat("127.0.0.1:1", "life-of-1", 1, running=4, waiting=0, now=1)
    dispatcher.registry.register(registration(2, slots=4), now=0)
    assert [dispatcher.assign("m").address for _ in range(4)] == ["127.0.0.1:2"] * 4
    assert [dispatcher.assign("m").address for _ in range(4)] == ["127.0.0.1:1"] * 4, "the worker knows better"


def test_each_cause_has_its_own_error(dispatcher: Dispatcher, registration: Make):
    with pytest.raises(NoLiveWorkerError):
        dispatcher.resolve("")
    with pytest.raises(NoLiveWorkerError):
        dispatcher.assign("m")
    dispatcher.registry.register(registration(1, "m", speed=0.0), now=0)
    with pytest.raises(ModelNotFoundError, match="served are m"):
        dispatcher.assign("other")
    with pytest.raises(AllSpeedsZeroError):
        dispatcher.assign("m")
    assert dispatcher.resolve("") == "m"
    dispatcher.registry.register(registration(2, "n"), now=0)
    with pytest.raises(ModelRequiredError, match="m, n"):
        dispatcher.resolve("")
    dispatcher.registry.deregister("127.0.0.1:1", "life-of-1")
    with pytest.raises(NoLiveWorkerError, match="'m'"):
        dispatcher.assign("m")


def test_suspects_and_those_tried_get_nothing(dispatcher: Dispatcher, registration: Make):
    for port in (1, 2, 3):
        dispatcher.registry.register(registration(port), now=0)
    dispatcher.registry.call_failed("127.0.0.1:1", "life-of-1")
    chosen = {dispatcher.assign("m", tried={"life-of-2"}).address for _ in range(4)}
    assert chosen == {"127.0.0.1:3"}
    with pytest.raises(NoLiveWorkerError):
        dispatcher.assign("m", tried={"life-of-2", "life-of-3"})


def test_releasing_after_the_worker_was_replaced_leaves_the_new_life_alone(dispatcher: Dispatcher, registration: Make):
    dispatcher.registry.register(registration(1, incarnation="old"), now=0)
    assignment = dispatcher.assign("m")
    dispatcher.registry.register(registration(1, incarnation="new"), now=1)
    dispatcher.release(assignment, now=1)
    assert [worker.in_flight for worker in dispatcher.registry.workers()] == [0]


def test_an_alias_is_as_good_as_a_name(dispatcher: Dispatcher, registration: Make):
    dispatcher.registry.register(registration(1, "m", aliases=("nickname",)), now=0)
    assert dispatcher.assign("nickname").address == "127.0.0.1:1"
