"""Every decision leaves a record; the ring forgets the oldest."""

from collections.abc import Callable
from random import Random

import pytest

from llava_grpc.core.admission import Entry, QueueLimits
from llava_grpc.core.demand import Demand, Piece
from llava_grpc.core.dispatcher import Assignment, Dispatcher
from llava_grpc.core.history import SHOWN, History
from llava_grpc.core.registry import Registry
from llava_grpc.core.strategies import STRATEGIES
from llava_grpc.core.worker import Registration

Make = Callable[..., Registration]


def dispatcher_of(name: str, registrations: list[Registration], kept: int = 100) -> Dispatcher:
    registry = Registry(expiry=90)
    for registration in registrations:
        registry.register(registration, now=0)
    limits = QueueLimits(length=10)
    return Dispatcher(registry, STRATEGIES[name], Random(7), limits=limits, history=History(kept), strategy_name=name)


def test_a_record_tells_a_requests_way(registration: Make):
    dispatcher = dispatcher_of("shortest_queue", [registration(1, slots=1), registration(2, slots=1, speed=2.0)])
    demand = Demand((Piece(b"turn", 100),), (b"picture",), 50)
    first = dispatcher.admit("m", Entry(key="1", request_id="a", arrived=5.0, demand=demand), 5.0)
    assert first is not None
    dispatcher.was_read(first, 6.0)
    dispatcher.release(first, 8.0)
    dispatcher.finish("1", 8.0, "ok", 110, 20)
    [record] = dispatcher.history.find("a")
    [decision] = record.decisions
    assert (decision.at, decision.strategy, decision.candidates) == (5.0, "shortest_queue", 2)
    assert decision.address == first.address
    assert {one.address for one in decision.considered} == {"127.0.0.1:1", "127.0.0.1:2"}
    assert [one.score for one in decision.considered] == [0.0, 0.0]
    assert (record.ahead, record.first_token_at, record.ended_at, record.outcome) == (None, 6.0, 8.0, "ok")
    assert (record.prompt_tokens, record.answer_tokens) == (110, 20)
    second = dispatcher.admit("m", Entry(key="2", request_id="a", arrived=9.0, demand=demand), 9.0)
    assert second is not None
    found = dispatcher.history.find("a")
    assert [one.entry.key for one in found] == ["1", "2"], "a client may use an id twice"
    held = {one.address: (one.held_tokens, one.held_pictures) for one in found[1].decisions[0].considered}
    assert held[first.address] == (100, 1)


def test_one_that_waited_says_who_was_ahead_and_who_got_the_slot(registration: Make):
    dispatcher = dispatcher_of("shortest_queue", [registration(1, slots=1)])
    running = dispatcher.admit("m", Entry(key="1", arrived=0.0), 0.0)
    assert running is not None
    assert dispatcher.admit("m", Entry(key="2", arrived=1.0), 1.0) is None
    assert dispatcher.admit("m", Entry(key="3", request_id="third", arrived=2.0), 2.0) is None
    dispatcher.release(running, 10.0)
    [(entry, outcome)] = dispatcher.place(10.0)
    assert entry.key == "2"
    assert isinstance(outcome, Assignment)
    [record] = dispatcher.history.find("third")
    assert (record.ahead, record.decisions, record.outcome) == (1, [], "")


@pytest.mark.parametrize("name", STRATEGIES)
def test_of_many_candidates_the_best_and_the_chosen_are_kept(registration: Make, name: str):
    dispatcher = dispatcher_of(name, [registration(port, slots=50, speed=1.0 + port % 5) for port in range(1, 101)])
    for number in range(300):
        entry = Entry(key=str(number), arrived=0.0, demand=Demand((Piece(b"%d" % (number % 30), 100),)))
        assert dispatcher.admit("m", entry, 0.0) is not None
    for record in dispatcher.history:
        [decision] = record.decisions
        assert decision.candidates == 100
        considered = decision.considered
        if name == "cache_affinity":  # only those that hold something were weighed, where anybody does
            assert 1 <= len(considered) <= SHOWN
        else:
            assert len(considered) == (2 if name == "power_of_two" else SHOWN)
        assert decision.address in {one.address for one in considered}
        if name != "lottery":
            assert considered[0].score == next(one.score for one in considered if one.address == decision.address)


def test_the_ring_forgets_the_oldest(registration: Make):
    dispatcher = dispatcher_of("lottery", [registration(1, slots=50)], kept=3)
    for number in range(5):
        dispatcher.admit("m", Entry(key=str(number), request_id=str(number), arrived=0.0), 0.0)
    assert [record.entry.key for record in dispatcher.history] == ["2", "3", "4"]
    dispatcher.finish("0", 1.0, "ok")
    assert dispatcher.history.find("0") == []
