"""Who asks a simulated cluster what, when, and what becomes of it.

A user asks the real client. Where that gives up with an error that invites to try again, the user does, after a while:
so every request ends, and what users had to bear is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random

from llava_grpc.client import AsyncClient
from llava_grpc.client.prompts import build_prompt, build_request
from llava_grpc.client.stream import AnswerStream
from llava_grpc.core.prompt import GenerationRequest, Priority
from llava_grpc.errors import (
    DeadlineExceededError,
    EngineFailedError,
    LlavaGrpcError,
    ModelNotFoundError,
    RequestCancelledError,
)
from llava_grpc.testing.histories.engine import LONGEST, Whole, undisturbed
from llava_grpc.testing.histories.invariants import Invariant

ASKS_AGAIN = 1.0
"""Seconds after which a user whose request failed asks again."""
WORDS = ("what", "colour", "is", "the", "large", "small", "left", "right", "shape", "猫", "größer", "here")


class Leaves(Enum):
    """How a user goes away before the end."""

    STAYS = "stays"
    CANCELS = "cancels"
    """Cancels the request."""
    VANISHES = "vanishes"
    """The client's process is killed."""


@dataclass(frozen=True, slots=True)
class Order:
    """A request to come. `after`: seconds from asking to leaving; `timeout`: seconds that the answer may take."""

    number: int
    at: float
    client: str
    request: GenerationRequest
    leaves: Leaves = Leaves.STAYS
    after: float = 0.0
    timeout: float | None = None

    def __str__(self) -> str:
        sampling = self.request.sampling
        seed = "no seed" if sampling.seed is None else f"seed {sampling.seed}"
        leaving = "" if self.leaves is Leaves.STAYS else f", {self.leaves.value} after {self.after:.2f} s"
        deadline = "" if self.timeout is None else f", within {self.timeout:g} s"
        return (
            f"at {self.at:6.2f} s: r{self.number} of {self.client} to {self.request.model}, {seed}, "
            f"at most {sampling.max_new_tokens} tokens, stops {sampling.stop}{deadline}{leaving}"
        )


@dataclass(slots=True, eq=False)
class Asked:
    """What became of a request: how often its user asked, what came, how it ended.

    `wrong` is told what must not be; `is_new`: whether a controller started lately, and may not know every model yet.
    """

    order: Order
    wrong: Callable[[Invariant, str], None]
    is_new: Callable[[], bool]
    tries: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)
    """When the client gave up, and why."""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    outcome: str = ""
    resumes: int = 0
    _expected: Whole | None = None

    @property
    def name(self) -> str:
        return f"r{self.order.number}"

    def expected(self, seed: int) -> Whole:
        """The undisturbed answer."""
        if self._expected is None:
            self._expected = undisturbed(self.order.request.with_seed(seed))
        return self._expected

    def take(self, stream: AnswerStream, text: str, token_ids: tuple[int, ...]) -> None:
        """More of the answer came."""
        if stream.started is None:
            return self.wrong(Invariant.ONE_LOG, f"{self.name}: tokens came before the start")
        seed = stream.started.seed
        if self.order.request.sampling.seed not in (None, seed):
            return self.wrong(Invariant.ONE_LOG, f"{self.name}: seed {self.order.request.sampling.seed} became {seed}")
        self.text, self.token_ids = self.text + text, self.token_ids + token_ids
        whole = self.expected(seed)
        if whole.token_ids[: len(self.token_ids)] != self.token_ids or not whole.text.startswith(self.text):
            return self.wrong(
                Invariant.ONE_LOG,
                f"{self.name}: its tokens are {self.token_ids}, {self.text!r}; "
                f"undisturbed they begin {whole.token_ids}, {whole.text!r}",
            )
        return None

    def complete(self, stream: AnswerStream) -> None:
        """The answer is whole."""
        finished = stream.finished
        if finished is None or stream.started is None:
            return self.wrong(Invariant.ONE_END, f"{self.name}: the answer ended without its last frame")
        whole = self.expected(stream.started.seed)
        if (self.text, self.token_ids) != (whole.text, whole.token_ids):
            return self.wrong(
                Invariant.ONE_LOG, f"{self.name}: the answer ended after {self.token_ids} of {whole.token_ids}"
            )
        if (finished.reason, finished.usage, finished.stop_sequence) != (
            whole.end.reason,
            whole.end.usage,
            whole.end.stop_sequence,
        ):
            return self.wrong(Invariant.ONE_LOG, f"{self.name}: the end is {finished}, undisturbed it is {whole.end}")
        self.resumes = stream.resumed + finished.resumes
        self.end("ok")
        return None

    def end(self, outcome: str) -> None:
        """It is over."""
        if self.outcome:
            self.wrong(Invariant.ONE_END, f"{self.name}: ended as {self.outcome!r} and again as {outcome!r}")
        self.outcome = outcome

    async def ask(self, client: AsyncClient) -> None:
        """Be its user."""
        loop = asyncio.get_running_loop()
        left = False
        while True:
            self.tries += 1
            self.text, self.token_ids, self._expected = "", (), None
            stream = client.send(self.order.request, timeout=self.order.timeout)

            def leave(stream: AnswerStream = stream) -> None:
                nonlocal left
                left = True
                stream.leave("its user has had enough")

            leaving = None
            if self.order.leaves is Leaves.CANCELS and self.tries == 1:
                leaving = loop.call_later(self.order.after, leave)
            try:
                async for delta in stream:
                    self.take(stream, delta.text, delta.token_ids)
                return self.complete(stream)
            except RequestCancelledError:
                if not left:
                    self.wrong(Invariant.ONE_END, f"{self.name}: cancelled, and not by its user")
                return self.end("cancelled")
            except DeadlineExceededError as error:
                if self.order.timeout is None:
                    self.wrong(
                        Invariant.ONE_END, f"{self.name}: too late for a deadline that it does not have: {error}"
                    )
                return self.end("too late")
            except LlavaGrpcError as error:
                self.failures.append((loop.time(), error.reason))
                if not (error.retryable or (isinstance(error, ModelNotFoundError) and self.is_new())):
                    wrong = Invariant.ONE_LOG if isinstance(error, EngineFailedError) else Invariant.ONE_END
                    return self.wrong(wrong, f"{self.name}: a fault of the cluster became {error.reason}: {error}")
                if left:
                    return self.end("cancelled")
            finally:
                if leaving is not None:
                    leaving.cancel()
            await asyncio.sleep(ASKS_AGAIN)


def draw_orders(
    random: Random, models: Sequence[str], clients: Sequence[str], *, count: int, begin: float, end: float
) -> tuple[Order, ...]:
    """So many requests between two times, some in bursts."""
    times: list[float] = []
    while len(times) < count:
        at = random.uniform(begin, end)
        times += [at + random.uniform(0, 0.05) for _ in range(random.choice((1, 1, 1, 5)))]
    return tuple(_draw(random, number, at, models, clients) for number, at in enumerate(sorted(times[:count])))


def _draw(random: Random, number: int, at: float, models: Sequence[str], clients: Sequence[str]) -> Order:
    text = " ".join(random.choices(WORDS, k=random.randint(1, 4)))
    request = build_request(
        build_prompt(text, (), None, None),
        model=random.choice(models),
        temperature=random.choice((0.0, 0.7)),
        max_new_tokens=random.choice((1, LONGEST // 2, LONGEST, LONGEST, LONGEST)),
        seed=random.choice((None, random.getrandbits(32))),
        request_id=f"r{number}",
        priority=random.choice((Priority.NORMAL, Priority.NORMAL, Priority.HIGH, Priority.LOW)),
        tenant=random.choice(("", "", "a", "b")),
    )
    leaves = random.choices((Leaves.STAYS, Leaves.CANCELS, Leaves.VANISHES), (16, 3, 1))[0]
    after = random.choice((0.0, 0.05, 0.5, 2.0)) * random.uniform(0.1, 1.5)
    if request.sampling.seed is not None and random.random() < 0.5:
        request = _with_stop(random, request)
    client = f"u{number}" if leaves is Leaves.VANISHES else random.choice(clients)
    return Order(number, at, client, request, leaves, after, random.choice((None, None, None, None, 2.0, 60.0)))


def _with_stop(random: Random, request: GenerationRequest) -> GenerationRequest:
    """The request with two stop strings: one out of the middle of its answer, and one that only begins in it."""
    text = undisturbed(request).text
    begin = random.randrange(len(text))
    stops = (text[begin : begin + random.randint(1, 6)], text[random.randrange(len(text)) :][:2] + "\0")
    return replace(request, sampling=replace(request.sampling, stop=stops))
