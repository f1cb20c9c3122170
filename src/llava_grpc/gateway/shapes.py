"""Answers in OpenAI's shape: of chat and of completions, whole and in chunks.

A shape is fed the events of all its choices, and gives a chunk for each that has one, and the whole at the end.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llava_grpc.core.stream import Delta, Fingerprint, Finished, Started, TokenLogprob, Usage
from llava_grpc.gateway.answers import Told

Json = dict[str, Any]


class Shape(Protocol):
    """See the module. Choices go by their numbers."""

    object: str

    def opening(self) -> Json | None:
        """What a choice's first chunk says before any text."""

    def part(self, delta: Delta, offset: int) -> Json:
        """What a choice's chunk says; so many characters came before it."""

    def closing(self) -> Json:
        """What its last chunk says beside the reason of its end."""

    def whole(self, text: str, logprobs: Sequence[TokenLogprob]) -> Json:
        """What the whole answer says."""


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    characters: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None


class Reply:
    """The reply to one request; see the module."""

    def __init__(self, shape: Shape, name: str, choices: int, *, tells_usage: bool = False) -> None:
        self._shape = shape
        self._name = name
        self._created = int(time.time())  # for people, as OpenAI's has it
        self._choices = [_Choice() for _ in range(choices)]
        self._model = ""
        self._fingerprint: str | None = None
        self.tells_usage = tells_usage

    @property
    def usage(self) -> Usage:
        """Of all choices so far. The prompt counts once for each, as each was read."""
        ended = [choice.finished.usage for choice in self._choices if choice.finished is not None]
        return Usage(*(sum(getattr(one, name) for one in ended) for name in Usage.__slots__))

    def take(self, number: int, event: Told) -> None:
        """This happened to that choice."""
        choice = self._choices[number]
        match event:
            case Started():
                self._model = event.model
                self._fingerprint = system_fingerprint(event.fingerprint)
            case Delta():
                choice.text.append(event.text)
                choice.characters += len(event.text)
                choice.logprobs += event.logprobs
            case Finished():
                choice.finished = event

    def chunks(self, number: int, event: Told) -> list[Json]:
        """Take it, and what there is to tell of it."""
        offset = self._choices[number].characters
        self.take(number, event)
        match event:
            case Started():
                opening = self._shape.opening()
                return [] if opening is None else [self._chunk(number, opening, None)]
            case Delta():
                return [self._chunk(number, self._shape.part(event, offset), None)]
            case Finished():
                return [self._chunk(number, self._shape.closing(), event.reason.value)]

    def usage_chunk(self) -> Json:
        """The last one, where usage was asked for."""
        return {**self._head(f"{self._shape.object}.chunk"), "choices": [], "usage": usage_object(self.usage)}

    def whole(self) -> Json:
        """All of it."""
        return {
            **self._head(self._shape.object),
            "choices": [
                {
                    "index": number,
                    **self._shape.whole("".join(choice.text), choice.logprobs),
                    "finish_reason": choice.finished.reason.value if choice.finished is not None else None,
                }
                for number, choice in enumerate(self._choices)
            ],
            "usage": usage_object(self.usage),
        }

    def _head(self, kind: str) -> Json:
        # Completions name whole and chunk alike.
        kind = "text_completion" if kind.startswith("text_completion") else kind
        return {
            "id": self._name,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
        }

    def _chunk(self, number: int, says: Json, reason: str | None) -> Json:
        chunk: Json = {
            **self._head(f"{self._shape.object}.chunk"),
            "choices": [{"index": number, **says, "finish_reason": reason}],
        }
        if self.tells_usage:
            chunk["usage"] = None
        return chunk


class Chat:
    """/v1/chat/completions."""

    object = "chat.completion"

    def __init__(self, logprobs: bool) -> None:
        self._logprobs = logprobs

    def opening(self) -> Json:
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def part(self, delta: Delta, offset: int) -> Json:
        return {"delta": {"content": delta.text}, "logprobs": self._told(delta.logprobs)}

    def closing(self) -> Json:
        return {"delta": {}, "logprobs": None}

    def whole(self, text: str, logprobs: Sequence[TokenLogprob]) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._told(logprobs)}

    def _told(self, logprobs: Sequence[TokenLogprob]) -> Json | None:
        if not self._logprobs:
            return None
        return {
            "content": [
                {
                    **_token(one.logprob, one.utf8),
                    "top_logprobs": [_token(other.logprob, other.utf8) for other in one.top],
                }
                for one in logprobs
            ],
            "refusal": None,
        }


class Completion:
    """/v1/completions."""

    object = "text_completion"

    def __init__(self, logprobs: bool) -> None:
        self._logprobs = logprobs

    def opening(self) -> None:
        return None

    def part(self, delta: Delta, offset: int) -> Json:
        return {"text": delta.text, "logprobs": self._told(delta.logprobs, offset)}

    def closing(self) -> Json:
        return {"text": "", "logprobs": None}

    def whole(self, text: str, logprobs: Sequence[TokenLogprob]) -> Json:
        return {"text": text, "logprobs": self._told(logprobs, 0)}

    def _told(self, logprobs: Sequence[TokenLogprob], offset: int) -> Json | None:
        if not self._logprobs:
            return None
        tokens = [_text(one.utf8) for one in logprobs]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [{_text(other.utf8): other.logprob for other in one.top} for one in logprobs],
            "text_offset": offsets,
        }


def usage_object(usage: Usage) -> Json:
    """As OpenAI has it, and the pictures' share of the prompt."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"image_tokens": usage.image_tokens},
    }


def system_fingerprint(fingerprint: Fingerprint) -> str:
    """Equal ones, equal answers to seeded requests."""
    facts = (
        fingerprint.weights,
        fingerprint.dtype,
        fingerprint.quantization,
        fingerprint.tokenizer,
        fingerprint.engine,
    )
    return f"fp_{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"


def _token(logprob: float, utf8: bytes) -> Json:
    return {"token": _text(utf8), "logprob": logprob, "bytes": list(utf8)}


def _text(utf8: bytes) -> str:
    return utf8.decode(errors="replace")
