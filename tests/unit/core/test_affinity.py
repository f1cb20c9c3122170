"""Who is likely to hold what: bounded, forgetful, and gone with its worker."""

from random import Random

from llava_grpc.core.affinity import HOLDERS, AffinityIndex
from llava_grpc.core.demand import Demand, Piece


def talk(name: str, turns: int, tokens: int = 100, pictures: tuple[bytes, ...] = ()) -> Demand:
    return Demand(tuple(Piece(f"{name}{turn}".encode(), tokens) for turn in range(turns)), pictures)


def test_the_longest_beginning_counts():
    index = AffinityIndex()
    index.remember(1, talk("a", 1))
    index.remember(2, talk("a", 3))
    assert index.tokens(talk("a", 5)) == {1: 100, 2: 300}
    assert index.tokens(talk("a", 2)) == {1: 100, 2: 200}
    assert index.tokens(talk("b", 2)) == {}


def test_pictures_are_known_wherever_they_stand():
    index = AffinityIndex()
    index.remember(1, talk("a", 1, pictures=(b"cat", b"dog")))
    index.remember(2, talk("b", 1, pictures=(b"dog",)))
    assert index.pictures(talk("c", 1, pictures=(b"dog", b"cat"))) == {1: 2, 2: 1}


def test_what_was_used_least_lately_is_forgotten_first():
    index = AffinityIndex()
    for name in "abc":
        index.remember(1, talk(name, 2), prefix_room=400)
    assert index.tokens(talk("a", 2)) == {}, "two conversations of 200 tokens fit"
    assert index.tokens(talk("b", 2)) == {1: 200}
    index.remember(1, talk("b", 2), prefix_room=400)
    index.remember(1, talk("d", 2), prefix_room=400)
    assert index.tokens(talk("b", 2)) == {1: 200}, "it was used since"
    assert index.tokens(talk("c", 2)) == {}


def test_of_a_conversation_its_end_is_forgotten_before_its_beginning():
    index = AffinityIndex()
    index.remember(1, talk("a", 4), prefix_room=250)
    assert index.tokens(talk("a", 4)) == {1: 200}


def test_a_worker_that_has_left_holds_nothing_and_nothing_of_it_is_kept():
    index = AffinityIndex()
    index.remember(1, talk("a", 2, pictures=(b"cat",)))
    index.remember(2, talk("a", 1))
    index.forget(1)
    index.forget(1)
    assert index.tokens(talk("a", 2)) == {2: 100}
    assert index.pictures(talk("a", 2, pictures=(b"cat",))) == {}
    index.forget(2)
    assert not index._prefix_holders
    assert not index._picture_holders


def test_what_everybody_holds_is_remembered_of_the_last_few():
    index = AffinityIndex()
    for row in range(100):
        index.remember(row, talk("system", 1))
    assert set(index.tokens(talk("system", 1))) == set(range(100 - HOLDERS, 100))


def test_holders_and_shelves_agree_after_any_history():
    for seed in range(50):
        random, index = Random(seed), AffinityIndex()
        for _ in range(200):
            row = random.randrange(30)
            if random.random() < 0.05:
                index.forget(row)
            else:
                pictures = (f"p{random.randrange(20)}".encode(),)
                index.remember(row, talk(f"c{random.randrange(8)}-", random.randrange(1, 5), pictures=pictures), 500, 3)
        for holders, shelves in ((index._prefix_holders, index._prefixes), (index._picture_holders, index._pictures)):
            assert all(holders.values()), f"seed {seed}: an empty entry is left"
            assert all(len(rows) <= HOLDERS for rows in holders.values()), f"seed {seed}"
            for key, rows in holders.items():
                assert all(key in shelves[row].items for row in rows), f"seed {seed}: {key!r} is held by nobody"
            for shelf in shelves.values():
                assert shelf.load == sum(shelf.items.values()) <= max(shelf.room, max(shelf.items.values())), seed
