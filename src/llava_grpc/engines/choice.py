"""How each request of a batch chooses its next token, from what the model says to scores whose argmax is the choice.

Law: a row depends on its own request alone; one that is plainly greedy is not touched and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from llava_grpc.engines.logprobs import Likelihood, likelihoods
from llava_grpc.engines.penalties import Rules, Shaper, shape_in_place
from llava_grpc.engines.sampling import Draw, Row, sample_in_place


@dataclass(frozen=True, slots=True)
class Choice:
    """How a request's tokens are chosen and what is told of them.

    Attributes:
        draw: None is greedy.
        rules: what is done to its logits before; None is nothing.
        logprobs: how many likeliest tokens to tell beside each one's own likelihood; None tells nothing.
    """

    draw: Draw | None = None
    rules: Rules | None = None
    logprobs: int | None = None


GREEDY = Choice()


@dataclass(frozen=True, slots=True)
class _Open:
    """A request under way; positions count from the end of its prompt."""

    choice: Choice
    prompt_length: int
    shaper: Shaper | None


class Chooser:
    """The choices of all open requests. For each batch: `prepare`, `choose`, `likelihoods`, and `take` for each token.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}  # those that are not plainly greedy
        self._drawn: list[Row] = []
        self._shaped: list[tuple[int, Shaper]] = []
        self._told: list[tuple[int, int]] = []  # rows, and how many alternatives
        self._raw: Tensor | None = None

    def add(self, key: str, choice: Choice, token_ids: Sequence[int], prompt_length: int) -> None:
        """A request: its prompt has `prompt_length` of `token_ids`, the rest is its answer so far."""
        if choice != GREEDY:
            rules = choice.rules
            shaper = None if rules is None else Shaper(rules, token_ids[:prompt_length], token_ids[prompt_length:])
            self._open[key] = _Open(choice, prompt_length, shaper)

    def remove(self, key: str) -> None:
        """The request has ended; one that is not there is no error."""
        self._open.pop(key, None)

    def clear(self) -> None:
        """All have."""
        self._open.clear()

    def prepare(self, batch: Iterable[tuple[str, int]]) -> None:
        """Notes the rows of the next batch: for each its request, and how many tokens prompt and answer have."""
        self._drawn, self._shaped, self._told, self._raw = [], [], [], None
        for index, (key, length) in enumerate(batch):
            if (request := self._open.get(key)) is None:
                continue
            choice = request.choice
            if choice.draw is not None:
                self._drawn.append(Row(index, choice.draw, length - request.prompt_length))
            if request.shaper is not None:
                self._shaped.append((index, request.shaper))
            if choice.logprobs is not None:
                self._told.append((index, choice.logprobs))

    def choose(self, scores: Tensor) -> Tensor:
        """Logits [B, V] float32, which it may change, to scores whose argmax is each row's choice."""
        if self._told:
            self._raw = scores[[index for index, _ in self._told]]  # a copy, as they came from the model
        shape_in_place(scores, self._shaped)
        return sample_in_place(scores, self._drawn)

    def likelihoods(self, token_ids: Sequence[int]) -> dict[int, Likelihood]:
        """By row, of the tokens that were chosen for the rows of the batch."""
        if self._raw is None:
            return {}
        indices = [index for index, _ in self._told]
        chosen = [token_ids[index] for index in indices]
        return dict(zip(indices, likelihoods(self._raw, chosen, [count for _, count in self._told]), strict=True))

    def take(self, key: str, token_id: int) -> None:
        """The request's answer has one more token."""
        if (request := self._open.get(key)) is not None and request.shaper is not None:
            request.shaper.take(token_id)
