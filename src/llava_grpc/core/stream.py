"""What is answered: the events of a stream, and what is known of a model, as values.

A stream is any number of Queued, one Started, any number of Deltas whose offsets follow on one another, one Finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that decides which tokens come out; exact resume needs equal ones."""

    weights: str = ""
    dtype: str = ""
    quantization: str = "none"
    tokenizer: str = ""
    engine: str = ""

    def may_continue(self, other: Fingerprint) -> bool:
        """Whether an answer begun under `other` can go on here without a gap or a double: the same weights and tokens.

        Token for token it goes on only where the two are equal. What says nothing of itself may be anything.
        """
        unknown = not (self.weights or self.tokenizer)
        return unknown or (self.weights == other.weights and self.tokenizer == other.tokenizer)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that can be asked for. `context_tokens` bounds prompt, pictures and answer together."""

    name: str
    aliases: tuple[str, ...] = ()
    sees_images: bool = True
    context_tokens: int = 2048
    fingerprint: Fingerprint = Fingerprint()

    def answers_to(self, name: str) -> bool:
        """Whether `name` is its name or an alias."""
        return name == self.name or name in self.aliases


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: the whole prompt, of these the pictures', and those generated (with undelivered ones that ended it)."""

    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds since the worker received the request: compute began, first token, end."""

    queue: float = 0.0
    first_token: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits at the controller: how many go before it, and for about how many seconds, if known."""

    position: int
    estimated_wait: float | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has taken the request up."""

    request_id: str
    model: str
    seed: int
    fingerprint: Fingerprint
    worker_address: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class AlternativeToken:
    """A token that might have come in the place of another: its log-probability, and its bytes in UTF-8."""

    token_id: int
    logprob: float
    utf8: bytes = b""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model found a token of the answer, before options and noise; `top` are the likeliest at its place,
    likeliest first."""

    token_id: int
    logprob: float
    utf8: bytes = b""
    top: tuple[AlternativeToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """New text and exactly its tokens; `end_offset` counts the answer's tokens delivered so far, these included.

    `logprobs` has one entry a token if they were asked for, else none.
    """

    text: str
    token_ids: tuple[int, ...]
    end_offset: int
    logprobs: tuple[TokenLogprob, ...] = ()

    def joined(self, later: Delta) -> Delta:
        """This delta and the one that follows it, as one."""
        return Delta(
            self.text + later.text,
            self.token_ids + later.token_ids,
            later.end_offset,
            self.logprobs + later.logprobs,
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of the answer."""

    reason: FinishReason
    usage: Usage
    timings: Timings = Timings()
    stop_sequence: str = ""
    resumes: int = 0
    """How often the controller had another worker go on with it."""


Event = Queued | Started | Delta | Finished
