"""How tokens are chosen and when to stop, as a value.

Law: a value of this module that exists is well-formed; it is checked as it is made and raises the error that the caller
gets to see. Token ids are checked by the engine, which knows the vocabulary.

Ranges are those of OpenAI's API and vLLM where these have the option, but for the repetition penalty, which they leave
open: outside 0.01 to 100 it makes scores overflow before it makes sense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llava_grpc.errors import SamplingInvalidError

GREEDY_BELOW = 0.001
DEFAULT_MAX_NEW_TOKENS = 256
MAX_STOP_STRINGS = 16
MAX_SEED = 2**64 - 1
MAX_PENALTY = 2.0
MAX_REPETITION = 100.0
MAX_BIAS = 100.0
MAX_BIASED_TOKENS = 1024
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Every option; see `SamplingParams` in the contract for what each does. Temperatures of 0.001 and less are greedy,
    as in LLaVA.

    Attributes:
        max_new_tokens: None means 256, or what the context leaves if that is less.
        seed: None means: draw one.
        logit_bias: pairs of token id and bias, in order of id, each id once.
        logprobs: how many likeliest tokens to tell beside each token's own log-probability; None tells nothing.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_new_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        # Comparisons are written so that NaN fails them.
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise _refused(f"temperature is {self.temperature}", "Use 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise _refused(f"top_p is {self.top_p}", "Use a number above 0 and at most 1")
        if self.top_k < 0:
            raise _refused(f"top_k is {self.top_k}", "Use 0 (all tokens) or more")
        if not 0 <= self.min_p <= 1:
            raise _refused(f"min_p is {self.min_p}", "Use a number from 0 (all tokens) to 1")
        if not 1 / MAX_REPETITION <= self.repetition_penalty <= MAX_REPETITION:
            raise _refused(
                f"repetition_penalty is {self.repetition_penalty}",
                f"Use a number from {1 / MAX_REPETITION} to {MAX_REPETITION:.0f}; 1 is none",
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not abs(getattr(self, name)) <= MAX_PENALTY:
                raise _refused(f"{name} is {getattr(self, name)}", "Use a number from -2 to 2")
        self._check_bias()
        self._check_end()
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise _refused(f"seed is {self.seed}", "Use a number from 0 to 2**64 - 1")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise _refused(f"logprobs is {self.logprobs}", f"Ask for 0 to {MAX_LOGPROBS} alternatives")

    def _check_bias(self) -> None:
        if len(self.logit_bias) > MAX_BIASED_TOKENS:
            raise _refused(f"logit_bias has {len(self.logit_bias)} tokens", f"Use at most {MAX_BIASED_TOKENS}")
        if any(ahead >= behind for (ahead, _), (behind, _) in zip(self.logit_bias, self.logit_bias[1:], strict=False)):
            raise _refused("logit_bias is not in order of token id", "Sort it, and name each token once")
        for token_id, bias in self.logit_bias:
            if not abs(bias) <= MAX_BIAS:
                raise _refused(f"logit_bias of token {token_id} is {bias}", "Use a number from -100 to 100")

    def _check_end(self) -> None:
        most = self.max_new_tokens
        if most is not None and most < 1:
            raise _refused(f"max_new_tokens is {most}", "Use at least 1")
        if self.min_new_tokens < 0 or (most is not None and self.min_new_tokens > most):
            raise _refused(
                f"min_new_tokens is {self.min_new_tokens}",
                "Use 0 or more" + ("" if most is None else f", and at most max_new_tokens, {most}"),
            )
        if len(self.stop) > MAX_STOP_STRINGS:
            raise _refused(f"{len(self.stop)} stop strings", f"Use at most {MAX_STOP_STRINGS}")
        if any(not stop for stop in self.stop):
            raise _refused("a stop string is empty", "Leave it out")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature <= GREEDY_BELOW


def _refused(what: str, remedy: str) -> SamplingInvalidError:
    return SamplingInvalidError(what, remedy=remedy)
