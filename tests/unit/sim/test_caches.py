"""What a worker keeps: bounded, least recently used first, never a piece without what stands before it."""

from random import Random

import pytest

from llava_grpc.core.demand import Piece
from llava_grpc.sim.caches import Caches, Need, Room
from llava_grpc.sim.workload import Request

SYSTEM = Piece(b"s", 10)


def about(picture: bytes, *texts: bytes, said: bytes | None = None) -> Request:
    """A conversation about a picture: system (10 tokens), picture (100), texts (20 each); an answer of 20."""
    pieces = [SYSTEM, Piece(b"s" + picture, 100)]
    for text in texts:
        pieces.append(Piece(pieces[-1].key + text, 20))
    return Request(
        0.0,
        prompt=sum(piece.tokens for piece in pieces),
        answer=20,
        pieces=tuple(pieces),
        pictures=(picture,),
        stands=(1,),
        said=None if said is None else Piece(pieces[-1].key + said, 20),
    )


def test_without_room_everything_is_computed_each_time():
    caches = Caches()
    assert [caches.read(about(b"p", b"a")) for _ in range(2)] == [Need(1, 130)] * 2


def test_a_request_without_pieces_shares_nothing():
    caches = Caches(Room(9, 999))
    assert [caches.read(Request(0.0, prompt=50)) for _ in range(2)] == [Need(0, 50)] * 2


def test_the_longest_prefix_is_spared_and_with_it_the_picture_in_it():
    caches = Caches(Room(pictures=0, tokens=1000))
    assert caches.read(about(b"p", b"a")) == Need(1, 130)
    assert caches.read(about(b"p", b"b")) == Need(0, 20)
    assert caches.read(about(b"q", b"a")) == Need(1, 120)


def test_features_spare_the_picture_and_not_its_tokens():
    caches = Caches(Room(pictures=1, tokens=0))
    assert caches.read(about(b"p", b"a")) == Need(1, 130)
    assert caches.read(about(b"p", b"b")) == Need(0, 130)
    assert caches.read(about(b"q")) == Need(1, 110)
    assert caches.read(about(b"p")) == Need(1, 110)


def test_the_next_turn_finds_the_answer_once_it_ended():
    caches = Caches(Room(9, 1000))
    first, second = about(b"p", b"a", said=b"-"), about(b"p", b"a", b"-", b"b")
    caches.read(first)
    assert caches.need(second) == Need(0, 40)
    caches.answered(first)
    assert caches.need(second) == Need(0, 20)


def test_a_picture_twice_is_seen_once():
    request = about(b"p")._replace(pictures=(b"p", b"p"), stands=(1, 1))
    assert Caches().need(request) == Need(1, 110)


def test_what_is_coming_counts_as_here():
    first, second = about(b"p", b"a"), about(b"p", b"b")
    assert Caches().need(second, {piece.key for piece in first.pieces}) == Need(0, 20)
    assert Caches().need(second, set(first.pictures)) == Need(0, 130)


def test_the_least_recently_used_goes_first():
    caches = Caches(Room(pictures=0, tokens=10 + 2 * 100))
    for picture in (b"p", b"q", b"p", b"r"):
        caches.read(about(picture))
    assert caches.need(about(b"p")).tokens == 0
    assert caches.need(about(b"q")).tokens == 100


def test_a_prompt_longer_than_the_room_keeps_its_beginning():
    caches = Caches(Room(pictures=0, tokens=115))
    caches.read(about(b"p", b"a", b"b"))
    assert caches.need(about(b"p", b"a", b"b")) == Need(0, 40)


@pytest.mark.parametrize("seed", range(20))
def test_no_piece_is_kept_without_those_before_it_and_the_room_is_kept(seed: int):
    random = Random(seed)
    caches = Caches(Room(pictures=3, tokens=400))
    for _ in range(300):
        texts = [random.choice([b"a", b"b", b"c"]) for _ in range(random.randrange(4))]
        request = about(random.choice([b"p", b"q", b"r"]), *texts, said=b"-" if random.random() < 0.5 else None)
        caches.read(request)
        caches.answered(request)
        kept = caches._prefixes
        assert sum(kept.values()) <= 400
        assert len(caches._features) <= 3
        for key in kept:  # every key here is its parent's and one byte more
            assert len(key) == 1 or key[:-1] in kept
