"""What options do to a request's logits before anything is drawn: bias, penalties, and tokens that may not come yet.

In this order, as in `model.generate` and vLLM: the bias is added; scores of tokens seen in prompt or answer are divided
by the repetition penalty where positive, else multiplied (Keskar et al. 2019, CTRL); frequency and presence penalties
are subtracted for tokens of the answer (OpenAI's definition); tokens that end the answer are ruled out while it is
shorter than `min_new_tokens`.

Laws:

1. A state is a function of prompt and answer alone: one rebuilt from a token log is the one that was lost.
2. The cost of a step grows with the different tokens of a prompt and its answer, not with the vocabulary, and a request
   without these options costs nothing.
3. A picture counts as the token that stands for it in the prompt, as it does for `model.generate`: the ids of its
   features are beyond the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from llava_grpc.core.sampling import Sampling

SPARE = 64
"""Tokens of an answer for which a state has room from the start."""


@dataclass(frozen=True, slots=True)
class Rules:
    """One request's options, as far as they concern this module.

    Attributes:
        vocabulary: number of tokens that the model predicts.
        end_ids: tokens that end the answer.
        image_id: the token that stands for a picture; any number outside the vocabulary where there is none.
    """

    vocabulary: int
    bias: tuple[tuple[int, float], ...] = ()
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    min_new_tokens: int = 0
    end_ids: frozenset[int] = frozenset()
    image_id: int = -1

    @classmethod
    def of(cls, sampling: Sampling, *, vocabulary: int, end_ids: frozenset[int], image_id: int) -> Rules | None:
        """The request's rules; None where it has none of these options."""
        rules = cls(
            vocabulary,
            sampling.logit_bias,
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
            sampling.min_new_tokens,
            ends := frozenset(id_ for id_ in end_ids if id_ < vocabulary),
            image_id,
        )
        nothing = cls(vocabulary, end_ids=ends, image_id=image_id)
        return None if rules == nothing else rules


class Shaper:
    """The state of one request's rules: for every token that they touch, what is to be done with its score.

    Args:
        rules: see there.
        prompt: ids of the prompt; those beyond the vocabulary are pictures'.
        answer: ids of the answer so far.
    """

    def __init__(self, rules: Rules, prompt: Sequence[int], answer: Iterable[int] = ()) -> None:
        self._rules = rules
        self._counts: dict[int, int] = {}
        self._made = 0
        seen = self._seen(prompt) if rules.repetition != 1 else []
        barred = rules.end_ids if rules.min_new_tokens else frozenset()
        touched = sorted({*seen, *barred, *(token_id for token_id, _ in rules.bias)})
        self._places = {token_id: place for place, token_id in enumerate(touched)}
        room = len(touched) + SPARE
        self._ids = numpy.zeros(room, numpy.int64)
        self._ids[: len(touched)] = touched
        self._terms = numpy.zeros((3, room), numpy.float32)  # bias, repetition, penalty: see `shape_in_place`
        self._terms[1] = 1.0
        self._terms[0, self._at(token_id for token_id, _ in rules.bias)] = [bias for _, bias in rules.bias]
        self._terms[1, self._at(seen)] = rules.repetition
        self._terms[2, self._at(barred)] = numpy.inf
        for token_id in answer:
            self.take(token_id)

    @property
    def ids(self) -> NDArray[numpy.int64]:
        """The tokens touched [n]."""
        return self._ids[: len(self._places)]

    @property
    def terms(self) -> NDArray[numpy.float32]:
        """For each, its bias, its repetition penalty, and what is subtracted [3, n]."""
        return self._terms[:, : len(self._places)]

    def take(self, token_id: int) -> None:
        """The answer has one more token."""
        rules = self._rules
        self._made += 1
        if rules.repetition != 1 or rules.presence or rules.frequency:
            place = self._place(token_id)
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
            self._terms[1:, place] = rules.repetition, self._penalty(token_id)
        if self._made == rules.min_new_tokens:
            self._terms[2, self._at(rules.end_ids)] = [self._penalty(end) for end in rules.end_ids]

    def _penalty(self, token_id: int) -> float:
        """Computed from the count, not added up: the same after any number of cuts."""
        count = self._counts.get(token_id, 0)
        return self._rules.frequency * count + (self._rules.presence if count else 0.0)

    def _seen(self, prompt: Sequence[int]) -> list[int]:
        ids = numpy.unique(numpy.asarray(prompt, numpy.int64))
        words: list[int] = ids[ids < self._rules.vocabulary].tolist()
        if len(words) < len(ids) and 0 <= self._rules.image_id < self._rules.vocabulary:
            words.append(self._rules.image_id)
        return words

    def _at(self, token_ids: Iterable[int]) -> list[int]:
        return [self._places[token_id] for token_id in token_ids]

    def _place(self, token_id: int) -> int:
        """Where the token is; a new one gets a place. Tables may move: take them after this, not before."""
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = len(self._places)
            if place == len(self._ids):
                self._ids = numpy.concatenate((self._ids, numpy.zeros_like(self._ids)))
                self._terms = numpy.concatenate((self._terms, numpy.zeros_like(self._terms)), axis=1)
            self._ids[place] = token_id
            self._terms[:, place] = 0.0, 1.0, 0.0
        return place


def shape_in_place(scores: Tensor, rows: Sequence[tuple[int, Shaper]]) -> None:
    """Applies each shaper to its row of scores [B, V] float32."""
    if not rows:
        return
    vocabulary = scores.shape[1]
    places = torch.from_numpy(numpy.concatenate([shaper.ids + index * vocabulary for index, shaper in rows]))
    terms = torch.from_numpy(numpy.concatenate([shaper.terms for _, shaper in rows], axis=1))
    places, terms = places.to(scores.device), terms.to(scores.device)
    bias, repetition, penalty = terms
    flat = scores.view(-1)
    touched = flat[places] + bias
    touched = torch.where(touched > 0, touched / repetition, touched * repetition) - penalty
    flat[places] = touched
