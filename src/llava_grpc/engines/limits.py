"""What a model's vocabulary and lengths allow of a request. Pure; every engine asks the same questions."""

from __future__ import annotations

from collections.abc import Container, Iterable

from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.errors import SamplingInvalidError


def check_vocabulary(request: GenerationRequest, vocabulary: int) -> None:
    """Every token id that the request names is one of the model's.

    Raises:
        SamplingInvalidError: one is not.
    """
    named: tuple[tuple[str, Iterable[int]], ...] = (
        ("stop token", request.sampling.stop_token_ids),
        ("emitted token", request.emitted_token_ids),
        ("token of logit_bias", (id_ for id_, _ in request.sampling.logit_bias)),
    )
    for what, ids in named:
        wrong = next((id_ for id_ in ids if not 0 <= id_ < vocabulary), None)
        if wrong is not None:
            raise SamplingInvalidError(
                f"the {what} {wrong} is none of the model's {vocabulary}",
                remedy=f"Use token ids from 0 to {vocabulary - 1}",
            )


def check_limit(request: GenerationRequest, limit: int) -> None:
    """The answer asked for is no longer than this worker gives.

    Raises:
        SamplingInvalidError: it is.
    """
    asked = request.sampling.max_new_tokens
    if asked is not None and asked > limit:
        raise SamplingInvalidError(
            f"max_new_tokens is {asked}", remedy=f"Ask for {limit} at most", metadata={"limit": str(limit)}
        )


def check_answer(request: GenerationRequest, most: int, end_ids: Container[int]) -> None:
    """What was emitted already can be the beginning of an answer of `most` tokens that ends at any of `end_ids`.

    Raises:
        SamplingInvalidError: it cannot.
    """
    least = request.sampling.min_new_tokens
    if least > most:
        raise SamplingInvalidError(
            f"min_new_tokens is {least}, and the answer has {most} at most", remedy="Ask for fewer, or a longer answer"
        )
    emitted = request.emitted_token_ids
    remedy = "Send the tokens that were delivered for this very request, with its options"
    if len(emitted) > most:
        raise SamplingInvalidError(
            f"{len(emitted)} tokens were emitted, and the answer has {most} at most", remedy=remedy
        )
    end = next((id_ for id_ in emitted if id_ in end_ids), None)
    if end is not None:
        raise SamplingInvalidError(
            f"the emitted tokens contain {end}, which ends an answer and is never delivered", remedy=remedy
        )
