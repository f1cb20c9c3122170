from dataclasses import replace
from random import Random

import pytest

from drills.mix import Whole, request
from llava_grpc.core.stream import AlternativeToken, FinishReason, TokenLogprob, Usage

LOGPROBS = (TokenLogprob(1, -0.5, b"a", (AlternativeToken(2, -0.7, b"b"),)), TokenLogprob(3, -0.1, b"c"))
WHOLE = Whole("a c", (1, 3), LOGPROBS, FinishReason.STOP, "", Usage(5, 0, 2))


@pytest.mark.parametrize(
    "change",
    [
        {"text": "a d"},
        {"token_ids": (1, 4)},
        {"token_ids": (1,)},
        {"logprobs": LOGPROBS[:1]},
        {"logprobs": (LOGPROBS[0], replace(LOGPROBS[1], logprob=-0.2))},
        {"logprobs": (replace(LOGPROBS[0], top=(AlternativeToken(2, -0.9, b"b"),)), LOGPROBS[1])},
        {"logprobs": (replace(LOGPROBS[0], top=()), LOGPROBS[1])},
        {"reason": FinishReason.LENGTH},
        {"stop_sequence": "c"},
        {"usage": Usage(5, 0, 3)},
    ],
    ids=str,
)
def test_whatever_differs_is_seen(change: dict[str, object]):
    assert WHOLE.same_as(WHOLE, 0.0)
    assert not replace(WHOLE, **change).same_as(WHOLE, 1e-3)


def test_the_last_bits_of_a_models_log_probabilities_may_differ():
    close = replace(WHOLE, logprobs=(LOGPROBS[0], replace(LOGPROBS[1], logprob=-0.1001)))
    assert close.same_as(WHOLE, 1e-3)
    assert not close.same_as(WHOLE, 0.0)


def test_a_seed_gives_the_same_requests_and_they_are_of_every_kind():
    requests, again = ([request(source, 10, 60) for _ in range(60)] for source in (Random("7 x"), Random("7 x")))
    assert requests == again
    samplings = [one.sampling for one in requests]
    assert {sampling.temperature == 0.0 for sampling in samplings} == {True, False}
    assert {sampling.repetition_penalty == 1.0 for sampling in samplings} == {True, False}
    assert {sampling.logprobs is None for sampling in samplings} == {True, False}
    assert {bool(one.images) for one in requests} == {True, False}
