"""Conversations share what a conversation shares, as often as their habits say."""

import itertools
import statistics
from random import Random

import pytest

from llava_grpc.sim.conversations import SYSTEM, Habits, arriving, conversations
from llava_grpc.sim.workload import Request, poisson

HABITS = Habits(pool=50, new=0.5, turns=2.5, think=20.0, picture_tokens=576)


def turns(request: Request) -> list[Request]:
    found = [request]
    while found[-1].then is not None:
        found.append(found[-1].then)
    return found


def test_a_turn_begins_with_the_turn_before_and_its_answer():
    for first in conversations(500, HABITS, Random(1)):
        asked = turns(first)
        assert len(asked) == first.turns
        for before, after in itertools.pairwise(asked):
            assert before.said is not None
            assert before.said.tokens == before.answer
            assert after.pieces[:-1] == (*before.pieces, before.said)
            assert after.at > 0.0
        for request in asked:
            assert request.prompt == sum(piece.tokens for piece in request.pieces)
            assert (request.pictures, request.stands) == (first.pictures, (1,))


def test_two_conversations_about_a_picture_share_it_and_nothing_else():
    asked = conversations(2000, HABITS, Random(1))
    by_picture: dict[bytes, list[Request]] = {}
    for first in asked:
        by_picture.setdefault(first.pictures[0], []).append(turns(first)[-1])
    assert len([picture for picture in by_picture if picture.startswith(b"pool")]) == 50
    for about in by_picture.values():
        keys = [piece.key for request in about for piece in request.pieces[2:]]
        assert len(keys) == len(set(keys))
        assert len({request.pieces[:2] for request in about}) == 1
    assert all(request.pieces[0] == SYSTEM for request in asked)
    assert all(len(about) == 1 for picture, about in by_picture.items() if picture.startswith(b"new"))


def test_shares_and_lengths_are_those_of_the_habits():
    asked = conversations(20_000, HABITS, Random(1))
    assert sum(first.turns for first in asked) == 20_000
    assert statistics.mean(first.turns for first in asked) == pytest.approx(2.5, rel=0.03)
    assert statistics.mean(first.pictures[0].startswith(b"new") for first in asked) == pytest.approx(0.5, abs=0.02)
    thoughts = [request.at for first in asked for request in turns(first)[1:]]
    assert statistics.mean(thoughts) == pytest.approx(20.0, rel=0.03)
    assert asked[:100] == conversations(20_000, HABITS, Random(1))[:100]


def test_each_begins_at_its_time():
    asked = conversations(100, HABITS, Random(1))
    times = [first.at for first in arriving(asked, poisson(3.0, Random(2)))]
    assert len(times) == len(asked)
    assert 0.0 < times[0] < times[-1]
