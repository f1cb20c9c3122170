"""Log-probabilities are the model's own, and come with the Delta of their token."""

import pytest
import torch

from llava_grpc.core.stream import Delta
from llava_grpc.engines.logprobs import Likelihood, Teller, likelihoods


def test_they_are_the_logarithms_of_the_softmax():
    logits = 4 * torch.randn(3, 50, generator=torch.Generator().manual_seed(3))
    expected = logits.log_softmax(1)
    got = likelihoods(logits, [7, 0, 49], [0, 3, 5])
    for row, (one, token_id, count) in enumerate(zip(got, (7, 0, 49), (0, 3, 5), strict=True)):
        assert (one.token_id, len(one.top)) == (token_id, count)
        assert one.logprob == pytest.approx(float(expected[row, token_id]), abs=1e-5)
        assert [id_ for id_, _ in one.top] == expected[row].argsort(descending=True)[:count].tolist()
        assert [value for _, value in one.top] == pytest.approx(
            expected[row].sort(descending=True).values[:count].tolist(), abs=1e-5
        )


def test_no_more_alternatives_than_the_vocabulary_has():
    (one,) = likelihoods(torch.zeros(1, 4), [1], [20])
    assert len(one.top) == 4


def test_what_is_held_back_is_told_with_its_delta():
    teller = Teller(lambda token_id: str(token_id).encode())
    for token_id in (5, 6, 7):
        teller.keep(Likelihood(token_id, -float(token_id), ((1, -0.5),)))
    first, second = teller.attach(Delta("a", (5,), 1)), teller.attach(Delta("b", (6, 7), 3))
    assert [entry.token_id for entry in first.logprobs] == [5]
    assert [(entry.token_id, entry.logprob, entry.utf8) for entry in second.logprobs] == [
        (6, -6.0, b"6"),
        (7, -7.0, b"7"),
    ]
    assert second.logprobs[0].top[0].utf8 == b"1"
