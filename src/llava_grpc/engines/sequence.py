"""One request in the decode loop, as values and as what it tells."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from llava_grpc.core.stream import Delta, Usage
from llava_grpc.engines.base import EngineEvent, Sink
from llava_grpc.engines.choice import GREEDY, Choice
from llava_grpc.engines.logprobs import Teller
from llava_grpc.engines.text import AnswerText

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Sequence:
    """One accepted request. The loop's thread alone changes it, but for `cancelled`.

    Attributes:
        name: the request's id, for logs.
        prompt: ids of prompt and pictures.
        image_tokens: how many of them are the pictures'.
        answer: ids of the answer so far, those of earlier attempts included.
        most: length at which the answer ends.
        end_ids: tokens that end it.
        release: frees what it holds outside the decoder.
        choice: how its tokens are chosen.
        teller: keeps their log-probabilities, where these were asked for.
    """

    name: str
    prompt: list[int]
    image_tokens: int
    answer: list[int]
    most: int
    end_ids: frozenset[int]
    text: AnswerText
    sink: Sink
    release: Callable[[], None]
    choice: Choice = GREEDY
    teller: Teller | None = None
    key: str = ""
    cancelled: bool = False
    over: bool = False

    def usage(self) -> Usage:
        """As of now."""
        return Usage(len(self.prompt), self.image_tokens, len(self.answer))

    def tell(self, event: EngineEvent) -> None:
        """To the sink, whose failures are its own."""
        if self.teller is not None and isinstance(event, Delta):
            event = self.teller.attach(event)
        try:
            self.sink(event)
        except Exception:
            logger.exception("the sink of request %s failed", self.name)
            self.cancelled = True
