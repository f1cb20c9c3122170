"""From a body in OpenAI's shape to the fabric's requests: one for each choice."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence

from llava_grpc.core.prompt import (
    Conversation,
    GenerationRequest,
    Part,
    Priority,
    Prompt,
    RawPrompt,
    Role,
    Turn,
)
from llava_grpc.core.sampling import Sampling
from llava_grpc.gateway.pictures import Pictures
from llava_grpc.gateway.problems import ApiError
from llava_grpc.gateway.schema import ChatRequest, CompletionRequest, ImagePart, Message
from llava_grpc.rpc.identity import SEED_BITS

_ROLES = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}
_PRIORITIES = {"high": Priority.HIGH, "normal": Priority.NORMAL, "low": Priority.LOW}


async def chat_requests(body: ChatRequest, pictures: Pictures, request_id: str) -> list[GenerationRequest]:
    """One for each choice.

    Raises:
        ApiError, InvalidRequestError: something in it makes no sense.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError.at(["top_logprobs"], "needs logprobs to be true")
    turns = [await _turn(number, message, pictures) for number, message in enumerate(body.messages)]
    prompt = Conversation(_one_system_turn(turns))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _choices(body, [prompt], logprobs, request_id)


def completion_requests(body: CompletionRequest, request_id: str) -> list[GenerationRequest]:
    """One for each choice of each prompt, those of the first prompt first.

    Raises:
        ApiError, InvalidRequestError: something in it makes no sense.
    """
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not texts:
        raise ApiError.at(["prompt"], "there is none")
    return _choices(body, [RawPrompt(text) for text in texts], body.logprobs, request_id)


def new_request_id() -> str:
    """A name for a request that came without."""
    return uuid.uuid4().hex


async def _turn(number: int, message: Message, pictures: Pictures) -> Turn:
    content = message.content
    if isinstance(content, str):
        if not content:
            raise ApiError.at(["messages", number, "content"], "is empty")
        return Turn(_ROLES[message.role], (content,))
    if not content:
        raise ApiError.at(["messages", number, "content"], "has no parts")
    parts: list[Part] = []
    for part in content:
        parts.append(await pictures.at(part.image_url.url) if isinstance(part, ImagePart) else part.text)
    return Turn(_ROLES[message.role], tuple(parts))


def _one_system_turn(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Several instructions at the start are one turn."""
    first = next((index for index, turn in enumerate(turns) if turn.role is not Role.SYSTEM), len(turns))
    if first < 2:
        return tuple(turns)
    texts = [part for turn in turns[:first] for part in turn.parts if isinstance(part, str)]
    return Turn(Role.SYSTEM, ("\n\n".join(texts),)), *turns[first:]


def _choices(
    body: ChatRequest | CompletionRequest, prompts: Sequence[Prompt], logprobs: int | None, request_id: str
) -> list[GenerationRequest]:
    several = len(prompts) * body.n > 1
    return [
        GenerationRequest(
            request_id=f"{request_id}-{number}" if several else request_id,
            model=body.model,
            prompt=prompt,
            sampling=_sampling(body, choice, logprobs),
            priority=_PRIORITIES[body.priority or "normal"],
            tenant=body.user or "",
        )
        for number, (prompt, choice) in enumerate((prompt, choice) for prompt in prompts for choice in range(body.n))
    ]


def _sampling(body: ChatRequest | CompletionRequest, choice: int, logprobs: int | None) -> Sampling:
    """OpenAI's defaults where nothing is said: temperature 1, the model's own distribution."""
    stop = body.stop or ()
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),  # vLLM's -1 is all, too
        max_new_tokens=body.most_tokens,
        seed=_seed(body.seed, choice),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_biases(body.logit_bias or {}),
        min_new_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
    )


def _seed(seed: int | None, choice: int) -> int | None:
    """Each choice its own, and the first the one that was asked for."""
    if seed is None:
        return None
    seed %= 2**64  # OpenAI's may be negative
    if not choice:
        return seed
    digest = hashlib.blake2b(f"{seed} {choice}".encode(), digest_size=SEED_BITS // 8)
    return int.from_bytes(digest.digest(), "big")


def _biases(biases: dict[str, float]) -> tuple[tuple[int, float], ...]:
    try:
        return tuple(sorted((int(token_id), bias) for token_id, bias in biases.items()))
    except ValueError:
        raise ApiError.at(["logit_bias"], "the keys are token ids") from None
