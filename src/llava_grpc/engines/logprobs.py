"""How likely the model found each token of an answer, and what it would rather have said.

The distribution is the model's own: the softmax of its logits, before bias, penalties, temperature, filters and noise,
as vLLM has it by default. So what is told does not depend on how a token was chosen; it does depend on the numerics of
the batch in its last bits, which a continued answer need not share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llava_grpc.core.stream import AlternativeToken, Delta, TokenLogprob

Spell = Callable[[int], bytes]
"""A token's bytes in UTF-8."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Natural logarithms: of the token's probability, and the likeliest tokens with theirs, likeliest first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def likelihoods(logits: Tensor, chosen: Sequence[int], counts: Sequence[int]) -> list[Likelihood]:
    """For each row of logits [R, V] float32 the token `chosen` from it, and its `counts` likeliest tokens."""
    total = logits.logsumexp(1, keepdim=True)
    own = logits.gather(1, torch.tensor(chosen, device=logits.device)[:, None]) - total
    most = min(max(counts), logits.shape[1])
    largest = logits.topk(most, 1)
    ids, values = largest.indices.tolist(), (largest.values - total).tolist()
    return [
        Likelihood(token_id, logprob, tuple(zip(ids[row][:count], values[row][:count], strict=True)))
        for row, (token_id, logprob, count) in enumerate(zip(chosen, own[:, 0].tolist(), counts, strict=True))
    ]


class Teller:
    """Keeps what is known of tokens until their Delta comes: text may be held back.

    Args:
        spell: a token's bytes.
    """

    def __init__(self, spell: Spell) -> None:
        self._spell = spell
        self._kept: deque[TokenLogprob] = deque()

    def keep(self, likelihood: Likelihood) -> None:
        """What is known of the answer's next token."""
        spell = self._spell
        top = tuple(AlternativeToken(token_id, logprob, spell(token_id)) for token_id, logprob in likelihood.top)
        token_id = likelihood.token_id
        self._kept.append(TokenLogprob(token_id, likelihood.logprob, spell(token_id), top))

    def attach(self, delta: Delta) -> Delta:
        """The Delta with what is known of its tokens, which are the next ones."""
        return replace(delta, logprobs=tuple(self._kept.popleft() for _ in delta.token_ids))
