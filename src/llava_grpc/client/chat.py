"""A conversation that remembers its turns, for both clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, Unpack

from llava_grpc.client.pictures import Picture
from llava_grpc.client.prompts import GenerateOptions, assistant, build_prompt, build_request, split, system, user
from llava_grpc.core.prompt import GenerationRequest, Turn

AnswerT = TypeVar("AnswerT")
_AnswerT_co = TypeVar("_AnswerT_co", covariant=True)


class Sender(Protocol[_AnswerT_co]):
    """`AsyncClient.send` or `Client.send`."""

    def __call__(
        self, request: GenerationRequest, *, timeout: float | None, on_complete: Callable[[str], None]
    ) -> _AnswerT_co: ...


class Chat(Generic[AnswerT]):
    """Made by `client.chat()`. An answer that was cut short leaves no trace.

    Attributes:
        turns: what was said so far; add to it to begin in the middle.
    """

    def __init__(self, send: Sender[AnswerT], system_text: str | None, options: GenerateOptions) -> None:
        self.turns: list[Turn] = [] if system_text is None else [system(system_text)]
        self._send = send
        self._options = options

    def say(self, *parts: str | Picture, **options: Unpack[GenerateOptions]) -> AnswerT:
        """Say something (a string is text, a `Path` a picture); the turns are kept when the answer is complete."""
        said = user(*parts)
        request_options, timeout = split({**self._options, **options})
        request = build_request(build_prompt([*self.turns, said], (), None, None), **request_options)

        def remember(answer: str) -> None:
            self.turns += said, assistant(answer)

        return self._send(request, timeout=timeout, on_complete=remember)
