"""The requests of a drill, and the answers that they have where nothing breaks.

Law: every request carries its seed, so that it has one answer, whoever gives it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from llava_grpc.client import AnswerStream, AsyncClient
from llava_grpc.core.prompt import Conversation, GenerationRequest, Image, Role, Turn
from llava_grpc.core.sampling import Sampling
from llava_grpc.core.stream import FinishReason, TokenLogprob, Usage
from llava_grpc.demo import sample_pictures
from llava_grpc.demo.questions import DESCRIPTION_REQUESTS
from llava_grpc.rpc.identity import new_request_id

MODEL_TOLERANCE = 1e-3
"""By how much a log-probability of a model may differ: its last bits depend on what else is in the batch."""
TIMEOUT = 120.0
"""Seconds for an answer without a fault."""


@dataclass(frozen=True)
class Whole:
    """A complete answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    reason: FinishReason
    stop_sequence: str
    usage: Usage

    @classmethod
    def of(cls, stream: AnswerStream) -> Whole:
        """What a stream brought that has come to its end."""
        end = stream.finished
        assert end is not None
        return cls(stream.text_so_far, stream.token_ids, stream.logprobs, end.reason, end.stop_sequence, end.usage)

    def same_as(self, other: Whole, tolerance: float) -> bool:
        """Byte for byte; log-probabilities within `tolerance`."""
        if replace(self, logprobs=()) != replace(other, logprobs=()) or len(self.logprobs) != len(other.logprobs):
            return False
        return all(_alike(*pair, tolerance) for pair in zip(self.logprobs, other.logprobs, strict=True))


@dataclass(frozen=True)
class Question:
    """A request, and its answer where nothing breaks."""

    request: GenerationRequest
    whole: Whole
    tolerance: float = 0.0

    def is_answered_by(self, whole: Whole) -> bool:
        """Whether that is the answer."""
        return self.whole.same_as(whole, self.tolerance)

    def asked_by(self, chance: Random) -> GenerationRequest:
        """The request under a name of its own."""
        return replace(self.request, request_id=new_request_id(chance))


def request(chance: Random, shortest: int, longest: int) -> GenerationRequest:
    """A random one: greedy or sampled, with or without a picture, penalties and log-probabilities, of so many tokens
    (that it ends early is excluded)."""
    shown = [Image(data=chance.choice(sample_pictures()).read_bytes())] if chance.random() < 0.4 else []
    sampled, penalised = chance.random() < 0.6, chance.random() < 0.4
    sampling = Sampling(
        temperature=chance.choice((0.5, 0.8, 1.2)) if sampled else 0.0,
        top_p=chance.choice((1.0, 0.95, 0.8)) if sampled else 1.0,
        top_k=chance.choice((0, 0, 40)) if sampled else 0,
        max_new_tokens=chance.randint(shortest, longest),
        seed=chance.randrange(2**64),
        repetition_penalty=chance.choice((1.1, 1.3)) if penalised else 1.0,
        presence_penalty=chance.choice((0.0, 0.6)) if penalised else 0.0,
        frequency_penalty=chance.choice((0.3, 0.7)) if penalised else 0.0,
        ignore_eos=True,
        logprobs=chance.choice((0, 2)) if chance.random() < 0.25 else None,
    )
    question = f"{chance.choice(DESCRIPTION_REQUESTS)} ({chance.randrange(1000)})"
    prompt = Conversation((Turn(Role.USER, (*shown, question)),))
    return GenerationRequest(request_id=new_request_id(chance), model="", prompt=prompt, sampling=sampling)


async def questions(
    client: AsyncClient, chance: Random, count: int, *, tokens: tuple[int, int], at_once: int, tolerance: float = 0.0
) -> list[Question]:
    """So many, of `tokens` from the one number to the other; a third of them end at a stop string."""
    requests = [request(chance, *tokens) for _ in range(count)]
    wholes = await answers(client, requests, at_once)
    stopped = [number for number in range(count) if chance.random() < 1 / 3 and wholes[number].text]
    for number in stopped:
        requests[number] = _stopping(requests[number], wholes[number].text, chance)
    again = await answers(client, [requests[number] for number in stopped], at_once)
    for number, whole in zip(stopped, again, strict=True):
        wholes[number] = whole
    return [Question(*pair, tolerance) for pair in zip(requests, wholes, strict=True)]


async def answers(client: AsyncClient, requests: Sequence[GenerationRequest], at_once: int) -> list[Whole]:
    """What they are answered where nothing breaks, in order.

    Raises:
        LlavaGrpcError: something did.
    """
    room = asyncio.Semaphore(at_once)

    async def answer(one: GenerationRequest) -> Whole:
        async with room, client.send(one, timeout=TIMEOUT) as stream:
            await stream.text()
        return Whole.of(stream)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(one)) for one in requests]
    return [task.result() for task in tasks]


def _stopping(one: GenerationRequest, text: str, chance: Random) -> GenerationRequest:
    """The request with two stop strings: one from the later part of its answer, and one that only begins there."""
    begin = chance.randrange(len(text) // 2, len(text))
    near = text[chance.randrange(len(text)) :][:3] + "\x00"
    return replace(one, sampling=replace(one.sampling, stop=(text[begin : begin + 5], near)))


def _alike(one: TokenLogprob, other: TokenLogprob, tolerance: float) -> bool:
    """The same token, as likely; of its rivals how likely they are counts, since equals may change places."""
    likelihoods, others = ([entry.logprob, *(rival.logprob for rival in entry.top)] for entry in (one, other))
    return (one.token_id, one.utf8, len(likelihoods)) == (other.token_id, other.utf8, len(others)) and all(
        abs(first - second) <= tolerance for first, second in zip(likelihoods, others, strict=True)
    )
