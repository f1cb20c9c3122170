"""Answers that have begun: where they go on, and before whom."""

from collections.abc import Callable
from random import Random

import pytest

from llava_grpc.core.admission import Entry, QueueLimits
from llava_grpc.core.demand import plain
from llava_grpc.core.dispatcher import Assignment, Dispatcher
from llava_grpc.core.prompt import Priority
from llava_grpc.core.registry import Registry
from llava_grpc.core.strategies import shortest_queue
from llava_grpc.core.stream import Fingerprint, ModelCard
from llava_grpc.core.worker import Registration
from llava_grpc.errors import DeadlineExceededError, NoLiveWorkerError

Make = Callable[..., Registration]

BF16 = Fingerprint(weights="w1", dtype="bfloat16", tokenizer="t1", engine="a")
FP32 = Fingerprint(weights="w1", dtype="float32", tokenizer="t1", engine="a")
NEW = Fingerprint(weights="w2", dtype="float32", tokenizer="t1", engine="a")


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(Registry(expiry=90), shortest_queue, Random(7), limits=QueueLimits(length=2, wait=60))


def join(dispatcher: Dispatcher, make: Make, port: int, fingerprint: Fingerprint, slots: int = 1) -> str:
    cards = (ModelCard("m", fingerprint=fingerprint),)
    dispatcher.registry.register(make(port, cards=cards, slots=slots), now=0)
    return f"127.0.0.1:{port}"


def begun(key: str, fingerprint: Fingerprint = FP32, **fields: object) -> Entry:
    return Entry(key=key, arrived=0.0, begun=fingerprint, **fields)  # type: ignore[arg-type]


def placed(dispatcher: Dispatcher, now: float) -> list[str]:
    return [entry.key for entry, outcome in dispatcher.place(now) if isinstance(outcome, Assignment)]


def test_token_for_token_where_it_can_be(dispatcher: Dispatcher, registration: Make):
    join(dispatcher, registration, 1, BF16)
    equal = join(dispatcher, registration, 2, FP32)
    assignment = dispatcher.admit("m", begun("a"), 0.0)
    assert assignment is not None
    assert assignment.address == equal
    assert dispatcher.admit("m", begun("b"), 0.0) is None, "it waits for the equal one, which will be free"
    dispatcher.registry.call_failed(equal, "life-of-2", now=0)
    dispatcher.registry.freed.add("m")
    [(_, other)] = dispatcher.place(1.0)
    assert isinstance(other, Assignment)
    assert other.address == "127.0.0.1:1", "without a gap or a double, where the equal one is not well"


def test_never_with_other_weights(dispatcher: Dispatcher, registration: Make):
    join(dispatcher, registration, 1, NEW, slots=8)
    with pytest.raises(NoLiveWorkerError):
        dispatcher.assign("m", begun("a"), 0.0)
    assert dispatcher.admit("m", begun("a"), 0.0) is None
    assert placed(dispatcher, 1.0) == []


def test_it_waits_also_where_nobody_is_and_for_no_longer_than_one_may(dispatcher: Dispatcher, registration: Make):
    join(dispatcher, registration, 1, FP32)
    dispatcher.registry.deregister("127.0.0.1:1", "life-of-1")
    assert dispatcher.admit("m", begun("a"), 0.0) is None
    assert dispatcher.waiting("m") == 1
    assert dispatcher.next_expiry() == 60.0
    [(entry, outcome)] = dispatcher.place(60.0)
    assert entry.key == "a"
    assert isinstance(outcome, NoLiveWorkerError)
    assert dispatcher._lines == {}


def test_a_worker_that_comes_takes_it_up(dispatcher: Dispatcher, registration: Make):
    join(dispatcher, registration, 1, FP32)
    dispatcher.registry.deregister("127.0.0.1:1", "life-of-1")
    assert dispatcher.admit("m", begun("a"), 0.0) is None
    join(dispatcher, registration, 2, FP32)
    assert placed(dispatcher, 1.0) == ["a"]


def test_it_goes_before_everybody_who_waits_and_a_full_queue_is_not_full_for_it(
    dispatcher: Dispatcher, registration: Make
):
    address = join(dispatcher, registration, 1, FP32)
    holder = dispatcher.admit("m", Entry(key="holder", arrived=0.0), 0.0)
    assert holder is not None
    for key in ("urgent", "next"):
        assert dispatcher.admit("m", Entry(key=key, arrived=0.0, priority=Priority.HIGH), 0.0) is None
    assert dispatcher.admit("m", begun("reads on"), 1.0) is None
    assert dispatcher.waiting("m") == 3
    dispatcher.release(holder, 2.0)
    [(entry, assignment)] = dispatcher.place(2.0)
    assert (entry.key, isinstance(assignment, Assignment)) == ("reads on", True)
    assert isinstance(assignment, Assignment)
    assert assignment.address == address
    dispatcher.release(assignment, 3.0)
    assert placed(dispatcher, 3.0) == ["urgent"]


def test_others_are_served_meanwhile_by_workers_that_are_none_for_it(dispatcher: Dispatcher, registration: Make):
    join(dispatcher, registration, 1, NEW, slots=4)
    assert dispatcher.admit("m", begun("a"), 0.0) is None
    assert dispatcher.admit("m", Entry(key="b", arrived=0.0), 0.0) is not None


def test_one_that_is_cancelled_leaves_at_once(dispatcher: Dispatcher, registration: Make):
    join(dispatcher, registration, 1, NEW)
    entry = begun("a")
    assert dispatcher.admit("m", entry, 0.0) is None
    dispatcher.forget("m", entry)
    assert dispatcher.waiting("m") == 0
    assert list(dispatcher.place(1.0)) == []
    assert dispatcher._lines == {}


def test_its_tenant_is_charged_for_its_prompt_as_for_any(dispatcher: Dispatcher, registration: Make):
    join(dispatcher, registration, 1, FP32)
    assert dispatcher.admit("m", begun("a", tenant="t", demand=plain(7)), 0.0) is not None
    assert dispatcher.counters["t"] == 7


def test_what_is_expired_is_not_dispatched_though_there_is_room(dispatcher: Dispatcher, registration: Make):
    join(dispatcher, registration, 1, FP32)
    for entry in (Entry(key="a", arrived=0.0, deadline=5.0), begun("b", deadline=5.0)):
        with pytest.raises(DeadlineExceededError):
            dispatcher.admit("m", entry, 5.0)
    assert [worker.in_flight for worker in dispatcher.registry.workers()] == [0]


def test_a_worker_that_says_nothing_of_itself_may_be_tried(dispatcher: Dispatcher, registration: Make):
    join(dispatcher, registration, 1, Fingerprint())
    assert dispatcher.admit("m", begun("a"), 0.0) is not None
