"""Sampling that can be replayed: every draw is a function of (seed, position in the answer, token).

The Gumbel-max trick (Gumbel 1954; Maddison, Tarlow and Minka 2014): where G_v are independent standard Gumbel
variables, argmax_v (z_v + G_v) is distributed as softmax(z). So the noise is added to the processed logits and a batch
loop that takes the greedy argmax for every row samples exactly, each row with its own parameters.

The noise comes from a counter-based generator (Salmon, Moraes, Dror and Shaw 2011): token v of the stream with key k
gets SplitMix64's output number v (Steele, Lea and Flood 2014), and k is a mix of seed and position. Nothing depends on
what was drawn before, on the batch, or on the device; an answer that is cut and goes on elsewhere, its tokens given
back as prompt, draws what it would have drawn.

Order, as in `model.generate`: temperature, top-k, top-p, min-p (Nguyen et al. 2024). Greedy rows are not touched. What
comes before all that, for greedy rows too, is in `penalties`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_grpc.core.sampling import Sampling

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_FEW = 64
"""Candidates looked at first: top-p is nearly always decided among these, and finding them is cheaper than sorting."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How one request draws."""

    seed: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @classmethod
    def of(cls, sampling: Sampling) -> Draw | None:
        """The request's way to draw; None where it is greedy. Its seed is set."""
        if sampling.greedy:
            return None
        return cls(sampling.seed or 0, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of logits that is to be sampled: its index, how, and the answer's position (0 for its first token)."""

    index: int
    draw: Draw
    position: int


def sample_in_place(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Scores [B, V] float32 such that their argmax is a sample in each of `rows`; other rows stay as they are."""
    if not rows:
        return scores
    device = scores.device
    whole = len(rows) == scores.shape[0]  # then every row is one of them, in order
    index = None if whole else torch.tensor([row.index for row in rows], device=device)
    chosen = scores if index is None else scores.index_select(0, index)
    temperatures = torch.tensor([[row.draw.temperature] for row in rows], dtype=torch.float32, device=device)
    chosen = chosen / temperatures
    chosen = _top_k(chosen, [row.draw.top_k for row in rows])
    chosen = _top_p(chosen, [row.draw.top_p for row in rows])
    chosen = _min_p(chosen, [row.draw.min_p for row in rows])
    chosen += gumbel_noise([stream_key(row.draw.seed, row.position) for row in rows], scores.shape[1], device)
    return chosen if index is None else scores.index_copy(0, index, chosen)


def stream_key(seed: int, position: int) -> int:
    """The 64-bit key of one draw."""
    return _mix((_mix(seed + _GAMMA) ^ position) * _GAMMA)


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def gumbel_noise(keys: Sequence[int], tokens: int, device: torch.device | None = None) -> Tensor:
    """Standard Gumbel noise [len(keys), tokens], float32.

    Uniforms have 53 bits and keep their relative precision near 0, where the largest noise comes from; they stay below
    1 - 2**-24, so that noise is finite and never pushes a token that is allowed below one that is not.
    """
    counters = torch.arange(1, tokens + 1, dtype=torch.int64, device=device).mul_(_signed(_GAMMA))
    bits = torch.tensor([_signed(key) for key in keys], dtype=torch.int64, device=device)[:, None] + counters
    bits.bitwise_xor_(_shifted(bits, 30)).mul_(_signed(_MIX_1))
    bits.bitwise_xor_(_shifted(bits, 27)).mul_(_signed(_MIX_2))
    bits.bitwise_xor_(_shifted(bits, 31))
    uniform = _shifted(bits, 11).to(torch.float32).mul_(2.0**-53).clamp_(2.0**-54, 1 - 2.0**-24)
    exponential = uniform.neg_().log1p_().neg_()
    return exponential.log_().neg_()


def _signed(value: int) -> int:
    """The same 64 bits as torch's signed integer."""
    return value - 2**64 if value >= 2**63 else value


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Logical shift to the right."""
    return (bits >> by).bitwise_and_(2 ** (64 - by) - 1)


def _top_k(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Each row's `counts` largest, others -inf; 0 means all. Ties with the last one stay."""
    vocabulary = scores.shape[1]
    kept = [count if 0 < count < vocabulary else vocabulary for count in counts]
    most = max((count for count in kept if count < vocabulary), default=0)
    if not most:
        return scores
    largest = scores.topk(most).values
    last = torch.tensor([[min(count, most) - 1] for count in kept], device=scores.device)
    floor = largest.gather(1, last)
    floor[torch.tensor([count == vocabulary for count in kept], device=scores.device)] = -torch.inf
    return scores.masked_fill(scores < floor, -torch.inf)


def _top_p(scores: Tensor, shares: Sequence[float]) -> Tensor:
    """Each row's fewest largest that hold at least `shares` of the probability, others -inf; 1 means all."""
    if all(share >= 1 for share in shares):
        return scores
    vocabulary = scores.shape[1]
    share = torch.tensor([[one] for one in shares], dtype=torch.float32, device=scores.device)
    total = scores.logsumexp(1, keepdim=True)
    few = min(_FEW, vocabulary)
    largest = scores.topk(few).values
    held = (largest - total).exp_().cumsum_(1)
    if few < vocabulary and bool(((held[:, -1:] < share) & (share < 1)).any()):
        largest = scores.sort(1, descending=True).values
        held = (largest - total).exp_().cumsum_(1)
    # The k-th largest stays when those before it hold less than the share; the first always does.
    enough = (held < share).sum(1, keepdim=True).clamp_(max=largest.shape[1] - 1)
    floor = largest.gather(1, enough).masked_fill_(share >= 1, -torch.inf)
    return scores.masked_fill(scores < floor, -torch.inf)


def _min_p(scores: Tensor, shares: Sequence[float]) -> Tensor:
    """Each row's tokens of at least `shares` of the largest probability, others -inf; 0 means all."""
    if not any(shares):
        return scores
    below = [[math.log(share) if share else -math.inf] for share in shares]
    floor = scores.amax(1, keepdim=True) + torch.tensor(below, dtype=torch.float32, device=scores.device)
    return scores.masked_fill(scores < floor, -torch.inf)
