"""Penalties against transformers' own processors and against the formulas, and states rebuilt from a log."""

import random

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from llava_grpc.core.sampling import Sampling
from llava_grpc.engines.penalties import Rules, Shaper, shape_in_place

VOCABULARY = 300
IMAGE = 7
ENDS = frozenset({2, 9})


def rules(**options) -> Rules:
    made = Rules.of(Sampling(**options), vocabulary=VOCABULARY, end_ids=ENDS, image_id=IMAGE)
    assert made is not None
    return made


def shaped(logits: torch.Tensor, *shapers: Shaper) -> torch.Tensor:
    scores = logits.clone()
    shape_in_place(scores, list(enumerate(shapers)))
    return scores


def test_a_request_without_these_options_has_no_rules():
    plain = Sampling(temperature=0.7, top_p=0.9, min_p=0.1, seed=1, stop=("x",), ignore_eos=True, logprobs=3)
    assert Rules.of(plain, vocabulary=VOCABULARY, end_ids=ENDS, image_id=IMAGE) is None


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_transformers(penalty):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(1, VOCABULARY, generator=generator)
    prompt, answer = [5, 5, 17, 200], [17, 40, 299]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + answer]), logits.clone())
    assert torch.equal(shaped(logits, Shaper(rules(repetition_penalty=penalty), prompt, answer)), expected)


def test_a_picture_counts_as_the_token_that_stands_for_it():
    logits = torch.ones(1, VOCABULARY)
    got = shaped(logits, Shaper(rules(repetition_penalty=2.0), [VOCABULARY, VOCABULARY + 5000, 11]))
    assert (got != 1).nonzero()[:, 1].tolist() == [IMAGE, 11]
    blind = Rules(VOCABULARY, repetition=2.0, image_id=VOCABULARY + 1)
    assert (shaped(logits, Shaper(blind, [VOCABULARY, 11])) != 1).nonzero()[:, 1].tolist() == [11]


def test_presence_and_frequency_are_of_the_answer_alone():
    logits = torch.zeros(1, VOCABULARY)
    got = shaped(logits, Shaper(rules(presence_penalty=0.5, frequency_penalty=0.25), [1, 3, 3], [4, 5, 4, 4]))
    expected = torch.zeros(VOCABULARY)
    expected[4], expected[5] = -0.5 - 3 * 0.25, -0.5 - 0.25
    assert torch.equal(got[0], expected)


def test_the_order_is_bias_repetition_then_what_is_subtracted():
    logits = torch.full((1, VOCABULARY), -1.0)
    made = rules(logit_bias=((4, 3.0), (6, -1.0)), repetition_penalty=2.0, presence_penalty=0.5)
    got = shaped(logits, Shaper(made, [6], [4]))[0]
    assert (got[4], got[6], got[5]) == ((-1 + 3) / 2 - 0.5, (-1 - 1) * 2, -1)


def test_ends_are_ruled_out_until_the_answer_is_long_enough():
    logits = torch.zeros(1, VOCABULARY)
    shaper = Shaper(rules(min_new_tokens=2, logit_bias=((2, 100.0),)), [1])
    for token_id in (20, 21):
        assert shaped(logits, shaper).isneginf().nonzero()[:, 1].tolist() == sorted(ENDS)
        shaper.take(token_id)
    assert shaped(logits, shaper)[0, 2] == 100
    assert shaped(logits, shaper)[0, 9] == 0


def test_rows_do_not_mix_and_others_are_untouched():
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(2))
    first, last = Shaper(rules(repetition_penalty=1.5), [3]), Shaper(rules(logit_bias=((8, -4.0),)), [])
    scores = logits.clone()
    shape_in_place(scores, [(0, first), (2, last)])
    assert torch.equal(scores[1], logits[1])
    assert (scores != logits).nonzero().tolist() == [[0, 3], [2, 8]]


@pytest.mark.parametrize("seed", range(20))
def test_a_state_rebuilt_from_the_log_at_any_cut_is_the_state(seed):
    chance = random.Random(seed)
    made = rules(
        repetition_penalty=chance.choice((1.0, 1.2)),
        presence_penalty=chance.choice((0.0, 0.3)),
        frequency_penalty=chance.choice((0.0, 0.1)),
        min_new_tokens=chance.choice((0, 10)),
        logit_bias=((3, chance.uniform(-5, 5)), (9, 1.0)),
    )
    prompt = [chance.randrange(2 * VOCABULARY) for _ in range(200)]
    answer = [chance.choice([one for one in range(VOCABULARY) if one not in ENDS]) for _ in range(120)]
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    whole = Shaper(made, prompt)
    for length, token_id in enumerate(answer):
        assert torch.equal(shaped(logits, whole), shaped(logits, Shaper(made, prompt, answer[:length]))), seed
        whole.take(token_id)
