"""A fleet as one worker."""

from collections.abc import Callable

from llava_grpc.core.registry import Registry
from llava_grpc.core.stack import as_one_worker
from llava_grpc.core.stream import Fingerprint, ModelCard
from llava_grpc.core.worker import Registration

Make = Callable[..., Registration]


def one(registry: Registry) -> Registration | None:
    return as_one_worker(registry, "127.0.0.1:21001", "controller", "1")


def test_nobody_is_no_worker(registration: Make):
    registry = Registry(expiry=90)
    assert one(registry) is None
    registry.register(registration(), now=0)
    registry.call_failed("127.0.0.1:1", "life-of-1", now=1)
    assert one(registry) is None, "a suspect gets no work"


def test_models_are_united_and_slots_and_speeds_added(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(1, "a", speed=1.5, slots=2, cached_pictures=3, kv_tokens=100), now=0)
    registry.register(registration(2, "b", ("bee",), speed=2.0, slots=4, cached_pictures=5, kv_tokens=50), now=0)
    fleet = one(registry)
    assert fleet is not None
    assert (fleet.address, fleet.incarnation) == ("127.0.0.1:21001", "controller")
    assert [(card.name, card.aliases) for card in fleet.cards] == [("a", ()), ("b", ("bee",))]
    assert (fleet.speed, fleet.slots, fleet.cached_pictures, fleet.kv_tokens) == (3.5, 6, 8, 150)
    registry.drain("127.0.0.1:2", "life-of-2")
    left = one(registry)
    assert left is not None
    assert ([card.name for card in left.cards], left.slots) == (["a"], 2)


def test_room_for_keys_and_values_is_unknown_where_one_does_not_say(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(1, kv_tokens=100), now=0)
    registry.register(registration(2), now=0)
    fleet = one(registry)
    assert fleet is not None
    assert fleet.kv_tokens == 0


def test_a_fingerprint_is_told_only_where_all_agree(registration: Make):
    registry = Registry(expiry=90)
    same, other = Fingerprint(weights="w"), Fingerprint(weights="v")
    registry.register(registration(1, cards=(ModelCard("m", fingerprint=same),)), now=0)
    registry.register(registration(2, cards=(ModelCard("m", fingerprint=same),)), now=0)
    agreed = one(registry)
    assert agreed is not None
    assert agreed.cards[0].fingerprint == same
    registry.register(registration(3, cards=(ModelCard("m", fingerprint=other),)), now=0)
    mixed = one(registry)
    assert mixed is not None
    assert not mixed.cards[0].fingerprint.weights


def test_it_names_all_who_stand_behind_it(registration: Make):
    registry = Registry(expiry=90)
    registry.register(registration(1), now=0)
    registry.register(registration(2, controllers=("b", "c")), now=0)
    registry.register(registration(3, controllers=("c", "d")), now=0)
    registry.call_failed("127.0.0.1:3", "life-of-3", now=1)
    fleet = one(registry)
    assert fleet is not None
    assert fleet.controllers == ("b", "c", "controller", "d")
