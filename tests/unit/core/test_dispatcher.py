"""Who gets a request, who is told what when nobody can, and that counts come back to zero."""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection
from random import Random

import numpy as np
import pytest

from llava_grpc.core.admission import Entry, QueueLimits
from llava_grpc.core.demand import NOTHING, Demand, Piece, plain
from llava_grpc.core.dispatcher import Assignment, Dispatcher
from llava_grpc.core.registry import Registry
from llava_grpc.core.states import WorkerState
from llava_grpc.core.strategies import STRATEGIES, shortest_queue
from llava_grpc.core.worker import Registration
from llava_grpc.errors import (
    AllSlotsTakenError,
    AllSpeedsZeroError,
    DeadlineExceededError,
    LlavaGrpcError,
    ModelNotFoundError,
    ModelRequiredError,
    NoLiveWorkerError,
    QueueFullError,
)

Make = Callable[..., Registration]


def assign(dispatcher: Dispatcher, model: str, tried: Collection[str] = (), demand: Demand = NOTHING) -> Assignment:
    """A worker for a request; it is an error that none has room."""
    key = str(len(dispatcher.history))
    assignment = dispatcher.assign(model, Entry(key=key, arrived=0.0, demand=demand), 0.0, tried)
    assert assignment is not None
    return assignment


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(Registry(expiry=90), shortest_queue, Random(7))


def test_a_hundred_at_once_on_four_equals_are_split_evenly(dispatcher: Dispatcher, registration: Make):
    for port in range(1, 5):
        dispatcher.registry.register(registration(port, slots=30), now=0)
    assignments = [assign(dispatcher, "m") for _ in range(100)]
    assert all(24 <= count <= 26 for count in Counter(a.address for a in assignments).values())
    for assignment in assignments:
        dispatcher.release(assignment, now=1)
        dispatcher.release(assignment, now=1)
    assert [worker.in_flight for worker in dispatcher.registry.workers()] == [0, 0, 0, 0]


def test_no_worker_gets_more_than_its_slots(dispatcher: Dispatcher, registration: Make):
    dispatcher.registry.register(registration(1, slots=2), now=0)
    dispatcher.registry.register(registration(2, slots=3), now=0)
    assignments = [assign(dispatcher, "m") for _ in range(5)]
    assert dispatcher.assign("m", Entry(key="one too many", arrived=0.0), 0.0) is None
    with pytest.raises(AllSlotsTakenError) as caught:
        dispatcher.admit("m", Entry(key="none may wait", arrived=0.0), 0.0)
    assert caught.value.retry_after is not None
    dispatcher.release(assignments[0], now=1)
    assert assign(dispatcher, "m").address == assignments[0].address


def test_others_requests_weigh_in_the_choice_but_an_old_report_never_says_full(
    dispatcher: Dispatcher, registration: Make
):
    dispatcher.registry.register(registration(1, slots=4), now=0)
    dispatcher.registry.heartbeat("127.0.0.1:1", "life-of-1", 1, running=4, waiting=0, now=1)
    dispatcher.registry.register(registration(2, slots=4), now=0)
    assert [assign(dispatcher, "m").address for _ in range(4)] == ["127.0.0.1:2"] * 4
    assert [assign(dispatcher, "m").address for _ in range(4)] == ["127.0.0.1:1"] * 4, "the worker knows better"


def test_each_cause_has_its_own_error(dispatcher: Dispatcher, registration: Make):
    with pytest.raises(NoLiveWorkerError):
        dispatcher.resolve("")
    with pytest.raises(NoLiveWorkerError):
        assign(dispatcher, "m")
    dispatcher.registry.register(registration(1, "m", speed=0.0), now=0)
    with pytest.raises(ModelNotFoundError, match="served are m"):
        assign(dispatcher, "other")
    with pytest.raises(AllSpeedsZeroError):
        assign(dispatcher, "m")
    assert dispatcher.resolve("") == "m"
    dispatcher.registry.register(registration(2, "n"), now=0)
    with pytest.raises(ModelRequiredError, match="m, n"):
        dispatcher.resolve("")
    dispatcher.registry.deregister("127.0.0.1:1", "life-of-1")
    with pytest.raises(NoLiveWorkerError, match="'m'"):
        assign(dispatcher, "m")


def test_suspects_and_those_tried_get_nothing(dispatcher: Dispatcher, registration: Make):
    for port in (1, 2, 3):
        dispatcher.registry.register(registration(port), now=0)
    dispatcher.registry.call_failed("127.0.0.1:1", "life-of-1", now=0)
    chosen = {assign(dispatcher, "m", tried={"life-of-2"}).address for _ in range(4)}
    assert chosen == {"127.0.0.1:3"}
    with pytest.raises(NoLiveWorkerError):
        assign(dispatcher, "m", tried={"life-of-2", "life-of-3"})


def test_releasing_after_the_worker_was_replaced_leaves_the_new_life_alone(dispatcher: Dispatcher, registration: Make):
    dispatcher.registry.register(registration(1, incarnation="old"), now=0)
    assignment = assign(dispatcher, "m")
    dispatcher.registry.register(registration(1, incarnation="new"), now=1)
    dispatcher.release(assignment, now=1)
    assert [worker.in_flight for worker in dispatcher.registry.workers()] == [0]


def test_a_worker_that_was_dropped_and_came_back_counts_from_nothing(dispatcher: Dispatcher, registration: Make):
    """As after a stop for longer than the expiry: the streams of before end without taking its count below zero."""
    dispatcher.registry.register(registration(1), now=0)
    before = [assign(dispatcher, "m") for _ in range(3)]
    assert [worker.address for worker in dispatcher.registry.expire(90)] == ["127.0.0.1:1"]
    dispatcher.registry.register(registration(1), now=100)
    after = assign(dispatcher, "m")
    for assignment in before:
        dispatcher.release(assignment, now=101)
    assert [worker.in_flight for worker in dispatcher.registry.workers()] == [1]
    dispatcher.release(after, now=102)
    assert [worker.in_flight for worker in dispatcher.registry.workers()] == [0]


def test_an_alias_is_as_good_as_a_name(dispatcher: Dispatcher, registration: Make):
    dispatcher.registry.register(registration(1, "m", aliases=("nickname",)), now=0)
    assert assign(dispatcher, "nickname").address == "127.0.0.1:1"


def test_a_worker_of_speed_zero_gets_nothing_beside_others_not_even_when_they_are_full(
    dispatcher: Dispatcher, registration: Make
):
    dispatcher.limits = QueueLimits(length=5)
    dispatcher.registry.register(registration(1, speed=0.0), now=0)
    dispatcher.registry.register(registration(2, speed=1e-9, slots=1), now=0)
    assert assign(dispatcher, "m").address == "127.0.0.1:2"
    assert dispatcher.admit("m", Entry(key="waits", arrived=0.0), 0.0) is None
    assert dispatcher.waiting("m") == 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_gives_a_worker_of_speed_zero_anything(registration: Make, name: str):
    dispatcher = Dispatcher(Registry(expiry=90), STRATEGIES[name], Random(7), strategy_name=name)
    for port, speed in enumerate((0.0, 0.5, 0.0, 2.0), 1):
        dispatcher.registry.register(registration(port, slots=10_000, speed=speed), now=0)
    chosen = {assign(dispatcher, "m", demand=plain(10)).address for _ in range(2_000)}
    assert chosen == {"127.0.0.1:2", "127.0.0.1:4"}
    for port in (2, 4):
        dispatcher.registry.deregister(f"127.0.0.1:{port}", f"life-of-{port}")
    with pytest.raises(AllSpeedsZeroError):
        assign(dispatcher, "m")


def test_no_worker_is_promised_more_cache_than_it_has_but_an_idle_one_takes_anything(
    dispatcher: Dispatcher, registration: Make
):
    dispatcher.limits = QueueLimits(length=5)
    dispatcher.registry.register(registration(1, slots=8, kv_tokens=1000), now=0)
    large = assign(dispatcher, "m", demand=plain(5000))
    assert dispatcher.assign("m", Entry(key="small", arrived=0.0, demand=plain(1)), 0.0) is None
    dispatcher.release(large, 1.0)
    half = assign(dispatcher, "m", demand=plain(300, most_answer_tokens=200))
    assign(dispatcher, "m", demand=plain(500))
    assert dispatcher.admit("m", Entry(key="no room", arrived=2.0, demand=plain(1)), 2.0) is None
    dispatcher.release(half, 3.0)
    assert [entry.key for entry, _ in dispatcher.place(3.0)] == ["no room"]


def test_where_the_next_one_is_too_large_its_leaving_makes_way(dispatcher: Dispatcher, registration: Make):
    """Whoever waits behind one that needs more is served once that one is gone, without any release."""
    dispatcher.limits = QueueLimits(length=5, wait=60)
    dispatcher.registry.register(registration(1, slots=8, kv_tokens=1000), now=0)
    assign(dispatcher, "m", demand=plain(600))
    for key, tokens in (("large", 500), ("larger", 600), ("small", 100)):
        deadline = 5.0 if key == "larger" else 4.0 if key == "large" else None
        entry = Entry(key=key, arrived=0.0, demand=plain(tokens), deadline=deadline)
        assert dispatcher.admit("m", entry, 0.0) is None
    assert list(dispatcher.place(1.0)) == []
    dispatcher.forget("m", Entry(key="large", arrived=0.0))
    assert list(dispatcher.place(2.0)) == []
    placed = {entry.key: type(outcome) for entry, outcome in dispatcher.place(5.0)}
    assert placed == {"larger": DeadlineExceededError, "small": Assignment}


def test_unread_prompts_are_counted_until_the_first_token(dispatcher: Dispatcher, registration: Make):
    dispatcher.registry.register(registration(1), now=0)
    talk = Demand((Piece(b"a", 300), Piece(b"b", 50)))
    first = assign(dispatcher, "m", demand=talk)
    second = assign(dispatcher, "m", demand=talk)
    [worker] = dispatcher.registry.workers()
    assert worker.unread == 350, "the second one finds it in the cache"
    dispatcher.was_read(first, 1.0)
    dispatcher.was_read(first, 1.0)
    assert worker.unread == 0
    dispatcher.release(first, 2.0)
    dispatcher.release(second, 2.0)
    assert (worker.unread, worker.promised, worker.in_flight) == (0, 0, 0)


def test_one_that_must_make_way_is_told(dispatcher: Dispatcher, registration: Make):
    dispatcher.limits = QueueLimits(length=3)
    dispatcher.registry.register(registration(1, slots=1), now=0)
    assign(dispatcher, "m")
    for number in range(3):
        assert dispatcher.admit("m", Entry(key=f"flood{number}", tenant="flood", arrived=number), number) is None
    assert dispatcher.admit("m", Entry(key="calm", tenant="calm", arrived=4.0), 4.0) is None
    [(entry, outcome)] = dispatcher.place(4.0)
    assert (entry.key, type(outcome)) == ("flood2", QueueFullError)


def test_whoever_registers_first_loses_nothing_to_a_row_given_again(dispatcher: Dispatcher, registration: Make):
    """Rows are given again: what was promised to, or held by, a worker that left is not its successor's."""
    for port in range(1, 40):
        dispatcher.registry.register(registration(port), now=0)
    talk = Demand((Piece(b"a", 300),))
    assignment = assign(dispatcher, "m", demand=talk)
    dispatcher.registry.deregister(assignment.address, assignment.incarnation)
    dispatcher.registry.register(registration(99), now=1)
    dispatcher.release(assignment, 2.0)
    assert [worker.in_flight for worker in dispatcher.registry.workers()] == [0] * 39
    assert dispatcher.registry.affinity.tokens(talk) == {}


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_say_what_the_workers_say_after_any_history(registration: Make, name: str):
    for seed in range(30):
        random = Random(seed)
        registry = Registry(expiry=90)
        dispatcher = Dispatcher(registry, STRATEGIES[name], random, limits=QueueLimits(length=20))
        open_ones: list[Assignment] = []
        for step in range(150):
            port = random.randrange(1, 25)
            match random.randrange(7):
                case 0:
                    life = f"life-{port}-{random.randrange(2)}"
                    kv_tokens = random.choice([0, 2000])
                    registry.register(registration(port, incarnation=life, kv_tokens=kv_tokens), now=step)
                case 1:
                    registry.deregister(f"127.0.0.1:{port}", f"life-{port}-0")
                case 2:
                    registry.call_failed(f"127.0.0.1:{port}", f"life-{port}-1", now=step)
                case 3 if open_ones:
                    dispatcher.release(open_ones.pop(random.randrange(len(open_ones))), step)
                case _:
                    demand = Demand((Piece(b"%d" % random.randrange(5), 100),), (), 100)
                    with contextlib.suppress(LlavaGrpcError):
                        got = dispatcher.admit("m", Entry(key=str(step), arrived=step, demand=demand), step)
                        open_ones += [got] if got is not None else []
            open_ones += [one for _, one in dispatcher.place(step) if isinstance(one, Assignment)]
            for worker in registry.workers():
                mine = [a for a in open_ones if a.worker is worker]
                assert worker.in_flight == len(mine) <= worker.registration.slots, f"seed {seed} step {step}"
                assert worker.unread == sum(a.unread for a in mine), f"seed {seed} step {step}"
                usable = worker.state is WorkerState.ALIVE and worker.in_flight < worker.registration.slots
                assert registry.columns.open[worker.row] == usable, f"seed {seed} step {step}"
                speed, queue, room, unread = registry.columns.taken(np.array([worker.row]), {}, {})[:4]
                assert (speed[0], queue[0]) == (1.0, worker.queue_length), f"seed {seed} step {step}"
                assert (room[0], unread[0]) == (4 - worker.in_flight, worker.unread), f"seed {seed} step {step}"
            rows = [worker.row for worker in registry.workers()]
            assert len(set(rows)) == len(rows), f"seed {seed} step {step}"
            assert sorted(rows) == registry.rows("m").tolist(), f"seed {seed} step {step}"


def test_a_worker_that_came_in_doubt_just_now_is_waited_for(dispatcher: Dispatcher, registration: Make):
    dispatcher.limits = QueueLimits(length=5, wait=60)
    dispatcher.registry.register(registration(1), now=0)
    dispatcher.registry.call_failed("127.0.0.1:1", "life-of-1", now=10)
    assert dispatcher.admit("m", Entry(key="a", arrived=11.0), 11.0) is None
    with pytest.raises(NoLiveWorkerError):
        dispatcher.assign("m", Entry(key="b", arrived=11.0), 11.0, tried=["life-of-1"])
    dispatcher.registry.answered("127.0.0.1:1", "life-of-1")
    [(entry, outcome)] = dispatcher.place(12.0)
    assert entry.key == "a"
    assert isinstance(outcome, Assignment)


def test_but_not_for_long_and_who_waited_in_vain_is_told_why(dispatcher: Dispatcher, registration: Make):
    dispatcher.limits = QueueLimits(length=5, wait=60)
    dispatcher.registry.register(registration(1), now=0)
    dispatcher.registry.call_failed("127.0.0.1:1", "life-of-1", now=10)
    assert dispatcher.admit("m", Entry(key="a", arrived=11.0), 11.0) is None
    dispatcher.registry.call_failed("127.0.0.1:1", "life-of-1", now=12)  # still the same doubt
    with pytest.raises(NoLiveWorkerError):
        dispatcher.admit("m", Entry(key="b", arrived=14.0), 14.0)
    [(entry, outcome)] = dispatcher.place(71.0)
    assert entry.key == "a"
    assert isinstance(outcome, NoLiveWorkerError)
