"""Sampling options that exist are within their ranges."""

import math
from typing import Any

import pytest

from llava_grpc.core.sampling import Sampling
from llava_grpc.errors import SamplingInvalidError


@pytest.mark.parametrize(
    "option",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"top_k": -1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"min_p": math.nan},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": 101.0},
        {"repetition_penalty": math.nan},
        {"presence_penalty": 2.1},
        {"presence_penalty": math.nan},
        {"frequency_penalty": -2.1},
        {"frequency_penalty": math.inf},
        {"logit_bias": ((3, 100.5),)},
        {"logit_bias": ((3, math.nan),)},
        {"logit_bias": ((3, 1.0), (3, 2.0))},
        {"logit_bias": ((4, 1.0), (3, 2.0))},
        {"logit_bias": tuple((id_, 1.0) for id_ in range(1025))},
        {"max_new_tokens": 0},
        {"min_new_tokens": -1},
        {"min_new_tokens": 6, "max_new_tokens": 5},
        {"seed": -1},
        {"seed": 2**64},
        {"stop": ("",)},
        {"stop": ("x",) * 17},
        {"logprobs": -1},
        {"logprobs": 21},
    ],
    ids=str,
)
def test_sampling_out_of_range_is_refused(option: dict[str, Any]):
    with pytest.raises(SamplingInvalidError) as caught:
        Sampling(**option)
    assert next(iter(option)).split("_")[0] in caught.value.cause.replace(" ", "_")
    assert caught.value.remedy


@pytest.mark.parametrize(
    "option",
    [
        {"min_p": 1.0},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100.0},
        {"presence_penalty": -2.0},
        {"frequency_penalty": 2.0},
        {"logit_bias": tuple((id_, 100.0) for id_ in range(1024))},
        {"min_new_tokens": 5, "max_new_tokens": 5},
        {"min_new_tokens": 500},
        {"logprobs": 0},
        {"logprobs": 20},
    ],
    ids=lambda option: next(iter(option)),
)
def test_the_ends_of_the_ranges_are_allowed(option: dict[str, Any]):
    Sampling(**option)


def test_greedy_is_llavas_threshold():
    assert Sampling(temperature=0.001).greedy
    assert not Sampling(temperature=0.0011).greedy
