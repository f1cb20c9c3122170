"""From what people write to a request: turns, prompts and options, checked before anything is sent."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict, cast

from llava_grpc.client.pictures import Picture, picture, pictures
from llava_grpc.core.prompt import (
    Conversation,
    GenerationRequest,
    Image,
    Priority,
    Prompt,
    RawPrompt,
    Role,
    Turn,
)
from llava_grpc.core.sampling import Sampling
from llava_grpc.errors import PromptInvalidError


class RequestOptions(TypedDict, total=False):
    """Options that travel with the request. What is left out takes the default named."""

    model: str
    """Name or alias; may be left out where only one model is served."""
    temperature: float
    """0, the default, takes the likeliest token each time."""
    top_p: float
    """Keep the likeliest tokens whose probabilities sum to this; default 1, all."""
    top_k: int
    """Keep this many of the likeliest tokens; default 0, all."""
    max_new_tokens: int | None
    """The longest answer; default 256, or what the context leaves."""
    seed: int | None
    """Makes sampling repeatable; drawn if left out, and told by `started.seed`."""
    stop: str | Sequence[str]
    """The answer ends before the first of these strings."""
    stop_token_ids: Sequence[int]
    """The answer ends at any of these tokens."""
    min_p: float
    """Keep tokens at least this likely, as a share of the likeliest one's probability; default 0, all."""
    repetition_penalty: float
    """Above 1, tokens of prompt and answer are less likely to come again; default 1, none; 0.01 to 100."""
    presence_penalty: float
    """Above 0, tokens of the answer are less likely to come again; default 0; -2 to 2."""
    frequency_penalty: float
    """The same, for each time that they came; default 0; -2 to 2."""
    logit_bias: Mapping[int, float]
    """Added to tokens' scores, by id; -100 to 100."""
    min_new_tokens: int
    """The answer does not end by itself or at a stop before it has so many tokens; default 0."""
    ignore_eos: bool
    """The answer does not end by itself."""
    logprobs: int | None
    """Tell each token's log-probability, and those of this many likeliest ones, in `Delta.logprobs`; default not."""
    request_id: str
    """Names the request in every node's log; drawn if left out."""
    priority: Priority
    """Which requests go first where they wait for a slot; default NORMAL."""
    tenant: str
    """On whose account: tenants that wait get equal shares."""


class GenerateOptions(RequestOptions, total=False):
    """All options of one request."""

    timeout: float | None
    """Seconds for the whole answer; default the client's."""


def split(options: GenerateOptions) -> tuple[RequestOptions, float | None]:
    """The options that travel with the request, and the timeout, which is the call's."""
    rest = {name: value for name, value in options.items() if name != "timeout"}
    return cast(RequestOptions, rest), options.get("timeout")


PromptLike = str | Conversation | Sequence[Turn]


def user(*parts: str | Picture) -> Turn:
    """What the person says: texts and pictures in order. A string is text; a picture from a path is a `Path`, or
    `picture("cat.png")`."""
    return Turn(Role.USER, tuple(part if isinstance(part, str) else picture(part) for part in parts))


def assistant(text: str) -> Turn:
    """What the model said."""
    return Turn(Role.ASSISTANT, (text,))


def system(text: str) -> Turn:
    """Instructions to the model, at the start of a conversation."""
    return Turn(Role.SYSTEM, (text,))


def build_prompt(
    prompt: PromptLike | None, images: Picture | Iterable[Picture], system_text: str | None, raw: str | None
) -> Prompt:
    """The prompt from any of its forms.

    Raises:
        PromptInvalidError: none or several forms at once, or what `Conversation` refuses.
    """
    shown = pictures(images)
    if raw is not None:
        if prompt is not None or system_text is not None:
            raise PromptInvalidError(
                "a raw prompt goes with no other prompt", remedy="Give either raw=..., or a prompt and system=..."
            )
        return RawPrompt(_unicode(raw), shown)
    if prompt is None:
        raise PromptInvalidError("there is no prompt", remedy="Give text, turns, or raw=...")
    turns = _turns(prompt, shown)
    if system_text is not None:
        turns = (system(system_text), *turns)
    for turn in turns:
        for part in turn.parts:
            if isinstance(part, str):
                _unicode(part)
    return Conversation(turns)


def _turns(prompt: PromptLike, shown: tuple[Image, ...]) -> tuple[Turn, ...]:
    if isinstance(prompt, str):
        if not prompt.strip() and not shown:
            raise PromptInvalidError("the prompt is empty", remedy="Ask something")
        return (Turn(Role.USER, (*shown, prompt)),)  # pictures first: the order LLaVA was trained with
    if shown:
        raise PromptInvalidError(
            "pictures beside a conversation have no place in it", remedy="Put them into a turn: user(picture, text)"
        )
    return prompt.turns if isinstance(prompt, Conversation) else tuple(prompt)


def build_request(
    prompt: Prompt,
    *,
    model: str = "",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    stop_token_ids: Sequence[int] = (),
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    min_new_tokens: int = 0,
    ignore_eos: bool = False,
    logprobs: int | None = None,
    request_id: str = "",
    priority: Priority = Priority.NORMAL,
    tenant: str = "",
) -> GenerationRequest:
    """The request around a prompt, with a name.

    Raises:
        SamplingInvalidError: an option outside its range.
        RequestIdInvalidError: a name unfit for logs.
    """
    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        seed=seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(stop_token_ids),
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=tuple(sorted((logit_bias or {}).items())),
        min_new_tokens=min_new_tokens,
        ignore_eos=ignore_eos,
        logprobs=logprobs,
    )
    return GenerationRequest(
        request_id=request_id or uuid.uuid4().hex[:16],
        model=model,
        prompt=prompt,
        sampling=sampling,
        priority=priority,
        tenant=tenant,
    )


def _unicode(text: str) -> str:
    """The text, unless it has halves of characters (a terminal's bytes that were not UTF-8)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptInvalidError("the prompt is not valid Unicode", remedy="Send it as UTF-8") from None
    return text
