"""What a request asks of a worker, as far as dispatch can tell without tokenizer or model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Piece(NamedTuple):
    """A piece of a prompt. `key` names it together with all before it: equal keys, equal prompts up to here.

    `tokens` is an estimate of this piece alone.
    """

    key: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks for. All numbers are estimates but `most_answer_tokens`.

    `pieces`: the prompt in order, cut where a later request may share it (a conversation's turns). `pictures`: names
    (digests) of its pictures, wherever they stand. `most_answer_tokens`: the longest answer that it allows.
    """

    pieces: tuple[Piece, ...] = ()
    pictures: tuple[bytes, ...] = ()
    most_answer_tokens: int = 0
    prompt_tokens: int = field(init=False)
    """Of the whole prompt."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_tokens", sum([piece.tokens for piece in self.pieces]))


def plain(prompt_tokens: int, most_answer_tokens: int = 0) -> Demand:
    """A demand that shares nothing with any other."""
    return Demand((Piece(b"", prompt_tokens),) if prompt_tokens else (), (), most_answer_tokens)


NOTHING = Demand()
"""The demand of a request of which nothing is known."""
