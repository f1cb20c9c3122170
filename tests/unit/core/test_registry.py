"""Membership and load, in virtual time."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_grpc.core.registry import Registry
from llava_grpc.core.states import WorkerState
from llava_grpc.core.stream import Fingerprint, ModelCard
from llava_grpc.core.worker import Registration
from llava_grpc.errors import RegistrationInvalidError

Make = Callable[..., Registration]


def test_a_worker_lives_until_its_expiry_and_not_longer(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(), now=1000.0)
    assert registry.next_expiry() == 1090.0
    assert registry.expire(now=1089.9) == []
    assert registry.heartbeat("127.0.0.1:1", "life-of-1", 1, 0, 0, now=1060.0)
    assert registry.expire(now=1090.0) == []
    [dropped] = registry.expire(now=1150.0)
    assert dropped.state is WorkerState.DEAD
    assert registry.workers() == []
    assert not registry.heartbeat("127.0.0.1:1", "life-of-1", 2, 0, 0, now=1151.0)


def test_a_worker_that_is_exempt_never_expires(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(check_heartbeat=False), now=0)
    assert registry.next_expiry() is None
    assert registry.expire(now=1e9) == []


def test_a_late_heartbeat_out_of_order_does_not_bring_death_nearer(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(), now=100)
    registry.heartbeat("127.0.0.1:1", "life-of-1", 1, 0, 0, now=50)
    assert registry.next_expiry() == 190


def test_an_address_has_one_life_at_a_time(registration: Make):
    registry = Registry(expiry=90)
    first, second = registration(incarnation="first"), registration(incarnation="second")
    assert registry.register(first, now=0) is None
    replaced = registry.register(second, now=1)
    assert replaced is not None
    assert (replaced.incarnation, replaced.state) == ("first", WorkerState.DEAD)
    assert [worker.incarnation for worker in registry.workers()] == ["second"]
    assert not registry.heartbeat(first.address, "first", 9, 0, 0, now=2)
    assert registry.deregister(first.address, "first") is None
    assert registry.deregister(first.address, "second") is not None
    assert registry.workers() == []


def test_the_same_life_registering_again_keeps_its_requests_in_flight(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(), now=0)
    registry.workers()[0].in_flight = 3
    assert registry.register(registration(speed=7.0), now=5) is None
    [worker] = registry.workers()
    assert (worker.in_flight, worker.registration.speed, worker.registered_at) == (3, 7.0, 0)


def test_heartbeats_reconcile_and_never_overwrite(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(), now=0)
    [worker] = registry.workers()
    worker.in_flight = 3
    registry.heartbeat(worker.address, worker.incarnation, 1, running=2, waiting=0, now=1)
    assert worker.queue_length == 3, "our own count stands though the worker has seen less yet"
    registry.heartbeat(worker.address, worker.incarnation, 2, running=4, waiting=1, now=2)
    assert worker.queue_length == 5, "two more than ours are somebody else's"
    worker.in_flight = 0
    assert worker.queue_length == 2


def test_an_old_sequence_number_is_a_sign_of_life_and_nothing_else(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(), now=0)
    [worker] = registry.workers()
    registry.heartbeat(worker.address, worker.incarnation, 5, running=4, waiting=0, now=1)
    registry.heartbeat(worker.address, worker.incarnation, 4, running=0, waiting=0, now=2)
    assert worker.queue_length == 4
    assert worker.last_sign == 2


def test_a_failed_call_makes_suspect_and_a_heartbeat_clears_it(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(), now=0)
    [worker] = registry.workers()
    registry.call_failed(worker.address, "another life", now=1)
    assert worker.state is WorkerState.ALIVE
    registry.call_failed(worker.address, worker.incarnation, now=1)
    assert worker.state is WorkerState.SUSPECT
    assert list(registry.models()) == []
    registry.heartbeat(worker.address, worker.incarnation, 1, 0, 0, now=1)
    assert worker.state is WorkerState.ALIVE


def test_models_are_the_union_over_workers(registration: Make):
    registry = Registry(expiry=90)
    same = Fingerprint(weights="w")
    registry.register(registration(1, cards=(ModelCard("a", ("x",), context_tokens=100, fingerprint=same),)), now=0)
    registry.register(registration(2, cards=(ModelCard("a", ("y",), context_tokens=50, fingerprint=same),)), now=0)
    registry.register(registration(3, cards=(ModelCard("b", sees_images=False),)), now=0)
    a, b = registry.models()
    assert (a.card.name, a.workers, a.card.aliases, a.card.context_tokens) == ("a", 2, ("x", "y"), 50)
    assert a.card.fingerprint == same
    assert (b.card.name, b.workers, b.card.sees_images) == ("b", 1, False)


def test_differing_fingerprints_are_not_one(registration: Make):
    registry = Registry(expiry=90)
    for port in (1, 2):
        card = ModelCard("a", fingerprint=Fingerprint(weights=str(port)))
        registry.register(registration(port, cards=(card,)), now=0)
    [listed] = registry.models()
    assert listed.card.fingerprint.weights == ""


def test_a_name_goes_before_an_alias(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(1, "x"), now=0)
    registry.register(registration(2, "y", aliases=("x", "z")), now=0)
    assert [worker.address for worker in registry.serving("x")] == ["127.0.0.1:1"]
    assert [worker.address for worker in registry.serving("z")] == ["127.0.0.1:2"]
    registry.deregister("127.0.0.1:1", "life-of-1")
    assert [worker.address for worker in registry.serving("x")] == ["127.0.0.1:2"]


@pytest.mark.parametrize(
    "changes",
    [
        {"speed": math.nan},
        {"speed": math.inf},
        {"speed": -1.0},
        {"slots": 0},
        {"cards": ()},
        {"cards": (ModelCard(""),)},
        {"incarnation": ""},
        {"address": ""},
        {"address": "no-port"},
        {"address": "http://host:1"},
        {"address": "host:99999"},
        {"address": "host:0"},
        {"address": "two words:1"},
    ],
)
def test_registrations_that_make_no_sense_are_refused(registration: Make, changes: dict[str, object]):
    with pytest.raises(RegistrationInvalidError):
        registration(**changes)


def test_addresses_of_all_kinds_are_taken(registration: Make):
    for address in ("worker-3.fleet.local:21002", "10.1.2.3:1", "[::1]:21002"):
        assert registration(address=address).address == address


_ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["register", "heartbeat", "deregister", "fail", "expire"]),
        st.integers(1, 3),
        st.integers(1, 2),
        st.floats(0, 60),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(_ACTIONS)
def test_whatever_happens_the_indices_agree_and_the_expired_are_gone(actions: list[tuple[str, int, int, float]]):
    registry, now = Registry(expiry=90), 0.0
    for sequence, (action, port, life, pause) in enumerate(actions, 1):
        now += pause
        address, incarnation = f"h:{port}", f"{port}-{life}"
        match action:
            case "register":
                card = ModelCard(f"m{port % 2}", (f"alias{life}",))
                registry.register(
                    Registration(address=address, incarnation=incarnation, cards=(card,), speed=1, slots=1), now
                )
            case "heartbeat":
                registry.heartbeat(address, incarnation, sequence, 1, 0, now)
            case "deregister":
                registry.deregister(address, incarnation)
            case "fail":
                registry.call_failed(address, incarnation, now)
            case "expire":
                assert all(worker.last_sign + 90 <= now for worker in registry.expire(now))
                assert all(worker.last_sign + 90 > now for worker in registry.workers())
        everybody = registry.workers()
        assert registry.next_expiry() == min((worker.last_sign + 90 for worker in everybody), default=None)
        assert len({worker.address for worker in everybody}) == len(everybody)
        assert all(worker.state is not WorkerState.DEAD for worker in everybody)
        indexed = {worker.address for name in registry.model_names() for worker in registry.serving(name)}
        assert indexed == {worker.address for worker in everybody}


# ------------------------------------------------------------------------------------------------------------- draining


def test_a_worker_that_drains_gets_no_work_and_stays_so(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(), now=0)
    registry.drain("127.0.0.1:1", "another life")
    [worker] = registry.workers()
    assert worker.state is WorkerState.ALIVE
    registry.drain(worker.address, worker.incarnation)
    for _ in range(2):
        assert worker.state is WorkerState.DRAINING
        assert not registry.columns.open[registry.rows("m")].any()
        assert list(registry.models()) == []
        registry.heartbeat(worker.address, worker.incarnation, 1, 0, 0, now=1)
        registry.call_failed(worker.address, worker.incarnation, now=1)
        registry.answered(worker.address, worker.incarnation)
        registry.register(registration(), now=2)  # a repeated call that comes late
    registry.register(registration(incarnation="next"), now=3)
    [next_life] = registry.workers()
    assert next_life.state is WorkerState.ALIVE


def test_who_may_get_work_does_not_change_unheard(registration: Make):
    changes: list[str] = []
    now = ""
    registry = Registry(expiry=90, on_change=lambda: changes.append(now))
    steps: list[tuple[str, Callable[[], object]]] = [
        ("registered", lambda: registry.register(registration(), now=0)),
        ("suspect", lambda: registry.call_failed("127.0.0.1:1", "life-of-1", now=1)),
        ("well", lambda: registry.answered("127.0.0.1:1", "life-of-1")),
        ("again, with more", lambda: registry.register(registration(slots=9), now=1)),
        ("draining", lambda: registry.drain("127.0.0.1:1", "life-of-1")),
        ("expired", lambda: registry.expire(now=1000)),
    ]
    for now, step in steps:  # noqa: B007
        step()
    assert list(dict.fromkeys(changes)) == [name for name, _ in steps]
    changes.clear()
    registry.register(registration(2), now=1000)
    changes.clear()
    registry.heartbeat("127.0.0.1:2", "life-of-2", 1, 3, 0, now=1001)
    assert changes == [], "load is no change"
