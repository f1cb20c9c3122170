"""Conversations about pictures: some new, some from a pool that everybody asks about.

A conversation begins with a picture and goes on, after some thought, for as many turns as the lot has it; its prompts
begin with the same short system prompt, then the picture, then what was said. So a later turn shares everything with
the turn before and its answer, and another conversation about the same picture shares system prompt and picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

from llava_grpc.core.demand import Piece
from llava_grpc.sim.workload import MOST_ANSWER_TOKENS, Request, lognormal

SYSTEM = Piece(b"system", 35)


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How people talk about pictures.

    `pool`: pictures that many ask about, each as often. `new`: the share of conversations about a picture that nobody
    asked about before. `turns`: on average, at least 1 (geometric). `think`: seconds from an answer to the next
    question, on average (exponential). `picture_tokens`: of one picture.
    """

    pool: int
    new: float
    turns: float
    think: float
    picture_tokens: int


def conversations(count: int, habits: Habits, random: Random) -> list[Request]:
    """Conversations of so many requests in all: the first request of each, all at 0 (see `arriving`)."""
    found: list[Request] = []
    left = count
    while left:
        turns = 1
        while turns < left and random.random() >= 1 / habits.turns:
            turns += 1
        name = b"%d" % len(found)
        new = random.random() < habits.new
        picture = b"new " + name if new else b"pool %d" % random.randrange(habits.pool)
        found.append(_conversation(name, picture, turns, habits, random))
        left -= turns
    return found


def arriving(asked: Iterable[Request], times: Iterator[float]) -> list[Request]:
    """The same, each at its time."""
    return [request._replace(at=at) for request, at in zip(asked, times, strict=False)]


def _conversation(name: bytes, picture: bytes, turns: int, habits: Habits, random: Random) -> Request:
    pieces = [SYSTEM, Piece(SYSTEM.key + b", " + picture, habits.picture_tokens)]
    asked: list[Request] = []
    for turn in range(turns):
        question, answer = lognormal(random, 40, 0.8, 2048), lognormal(random, 120, 0.8, MOST_ANSWER_TOKENS)
        pieces.append(Piece(b"question %d of %s" % (turn, name), question))
        said = Piece(b"answer %d of %s" % (turn, name), answer)
        asked.append(
            Request(
                random.expovariate(1 / habits.think) if turn else 0.0,
                prompt=sum(piece.tokens for piece in pieces),
                answer=answer,
                pieces=tuple(pieces),
                pictures=(picture,),
                stands=(1,),
                said=said,
            )
        )
        pieces.append(said)
    following = None
    for request in reversed(asked):
        following = request._replace(then=following)
    assert following is not None, "a conversation has a turn"
    return following
