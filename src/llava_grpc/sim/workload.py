"""What is asked for, and when. Every draw comes from a seeded source, so that arms can be given the same load."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from llava_grpc.core.demand import Piece
from llava_grpc.core.prompt import Priority
from llava_grpc.errors import LlavaGrpcError

PICTURE_TOKENS = 576
"""Of one picture of 336 pixels under CLIP's patches of 14, as in LLaVA 1.5."""
MOST_ANSWER_TOKENS = 1024
"""The longest answer, and what every request allows."""


class Request(NamedTuple):
    """One request. `at` and `deadline` are in seconds of virtual time; `work` is seconds of a worker of speed 1, for
    servers that count in seconds; `prompt` and `answer` are tokens, for those that count in tokens.

    Where prompts share something, `pieces` and `pictures` are as in `core.demand.Demand` (the tokens of the pieces add
    up to `prompt`), `stands` tells the number of the piece in which each picture stands, and `said` is the answer as a
    piece of the conversation's next prompt. `then` is the conversation's next request; its `at` is counted from the end
    of the answer to this one.
    """

    at: float
    tenant: str = ""
    work: float = 0.0
    prompt: int = 0
    answer: int = 0
    deadline: float | None = None
    pieces: tuple[Piece, ...] = ()
    pictures: tuple[bytes, ...] = ()
    stands: tuple[int, ...] = ()
    said: Piece | None = None
    priority: Priority = Priority.NORMAL
    then: Request | None = None

    @property
    def turns(self) -> int:
        """Requests of the conversation from here on."""
        count, following = 1, self.then
        while following is not None:
            count, following = count + 1, following.then
        return count


class Job:
    """A request on its way through one run, and when what happened to it."""

    __slots__ = (
        "declined",
        "dispatched",
        "error",
        "finished",
        "first_token",
        "key",
        "need",
        "node",
        "number",
        "request",
        "retries",
        "ticket",
        "when_read",
    )

    def __init__(self, number: int, request: Request) -> None:
        self.number = number
        self.key = str(number)
        self.request = request
        self.dispatched = self.first_token = self.finished = math.nan
        self.error: LlavaGrpcError | None = None
        self.node = -1
        self.need: tuple[int, int] | None = None
        """Pictures seen and prompt tokens read for it, by the worker that answered; None where it keeps no account."""
        self.declined = 0
        """How often a worker had no slot for it after all."""
        self.retries = 0
        """How often a worker was lost with it."""
        self.ticket: object = None
        """Whatever the door keeps with it."""
        self.when_read: Callable[[Job], None] | None = None
        """Hears that its first token came, where a server tells that apart from its end."""

    @property
    def wait(self) -> float:
        """Seconds until a worker began with it."""
        return self.dispatched - self.request.at

    @property
    def to_first_token(self) -> float:
        return self.first_token - self.request.at

    @property
    def response(self) -> float:
        return self.finished - self.request.at

    @property
    def in_time(self) -> bool:
        """Whether it was answered, and by its deadline."""
        return self.error is None and (self.request.deadline is None or self.finished <= self.request.deadline)


def jobs(requests: Iterable[Request]) -> Iterator[Job]:
    """Fresh jobs for a run: the first of each conversation. The numbers of its others follow (see `next_turn`)."""
    number = 0
    for request in requests:
        yield Job(number, request)
        number += request.turns


def next_turn(job: Job, now: float) -> Job | None:
    """What its conversation asks next, where it was answered just now and there is more."""
    following = job.request.then
    if following is None or job.error is not None:
        return None
    return Job(job.number + 1, following._replace(at=now + following.at))


def poisson(rate: float, random: Random) -> Iterator[float]:
    """Times of arrivals that know nothing of each other, `rate` a second, without end."""
    now = 0.0
    draw = random.expovariate
    while True:
        now += draw(rate)
        yield now


def bursty(
    rate: float, random: Random, *, burst: float = 4.0, share: float = 0.1, hold: float = 10.0
) -> Iterator[float]:
    """Times of arrivals in bursts (a Markov-modulated Poisson process), `rate` a second in the long run, without end.

    For `share` of the time they come `burst` times as often as on average, `hold` seconds at a time on average.
    """
    if not 0 < share < 1 or not 1 < burst < 1 / share:
        raise ValueError(f"a burst of {burst:g} for {share:g} of the time leaves nothing for the rest")
    rates = (rate * (1 - burst * share) / (1 - share), rate * burst)
    holds = (hold * (1 - share) / share, hold)
    now, state = 0.0, 0
    until = random.expovariate(1 / holds[state])
    while True:
        gap = random.expovariate(rates[state])
        if now + gap <= until:
            now += gap
            yield now
        else:  # an exponential gap knows no past: begin again in the other state
            now, state = until, 1 - state
            until = now + random.expovariate(1 / holds[state])


def exponential(count: int, rate: float, random: Random) -> Iterator[Request]:
    """Poisson arrivals of work that is exponential with mean 1."""
    arrivals = poisson(rate, random)
    return (Request(next(arrivals), work=random.expovariate(1.0)) for _ in range(count))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one request."""

    prompt: int
    answer: int


def chats(count: int, random: Random, *, pictures: float = 1.0) -> list[Lengths]:
    """Lengths shaped as those of chats about pictures: text and answer lognormal (medians 40 and 120 tokens), a picture
    in a share of `pictures`; answers of at most 1,024 tokens."""
    return [
        Lengths(
            prompt=lognormal(random, 40, 0.8, 2048) + (PICTURE_TOKENS if random.random() < pictures else 0),
            answer=lognormal(random, 120, 0.8, MOST_ANSWER_TOKENS),
        )
        for _ in range(count)
    ]


def mean_lengths(lengths: Sequence[Lengths]) -> tuple[float, float]:
    """Of prompt and answer."""
    return (
        sum(length.prompt for length in lengths) / len(lengths),
        sum(length.answer for length in lengths) / len(lengths),
    )


def lognormal(random: Random, median: float, sigma: float, most: int) -> int:
    """A whole number, from 1 to `most`."""
    return max(1, min(most, round(random.lognormvariate(math.log(median), sigma))))
