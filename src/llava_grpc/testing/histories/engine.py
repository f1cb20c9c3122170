"""What workers of a simulated cluster compute with: the echo engine's answers, a step at a time, in virtual time.

A step makes one token for each open request, as a batching engine does, and takes a seeded time. What a request's
answer is depends on the request alone: `undisturbed` says it, and however often a cluster moves the request from worker
to worker, its client is to get exactly that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.stream import Delta, Fingerprint, FinishReason, ModelCard, Usage
from llava_grpc.engines.base import Began, Ended, Engine, EngineStats, Progress, Sink
from llava_grpc.engines.limits import check_answer
from llava_grpc.engines.text import AnswerText
from llava_grpc.engines.token_chain import TokenChain, decode, prompt_pieces
from llava_grpc.errors import EngineFailedError

STEP = 0.1
"""Mean seconds of a step of a worker at speed 1."""
LONGEST = 8
"""Tokens after which every answer has ended by itself."""


class Sequence:
    """One request's answer, token by token.

    Raises:
        SamplingInvalidError: the tokens emitted so far are not the beginning of an answer.
    """

    def __init__(self, request: GenerationRequest) -> None:
        sampling = request.sampling
        pieces = list(prompt_pieces(request))
        natural = 1 + sum(map(sum, pieces)) % LONGEST
        most = sampling.max_new_tokens or LONGEST
        check_answer(request, most, ())
        self.cancelled = False
        self._limit = min(most, natural)
        self._reason = FinishReason.STOP if natural <= most else FinishReason.LENGTH
        self._prompt_tokens = sum(len(piece.split()) for piece in pieces)
        self._chain = TokenChain(request)
        self._text = AnswerText(decode, (), sampling.stop, request.emitted_token_ids)
        self._made = len(request.emitted_token_ids)
        self.over = False

    def step(self) -> Iterator[Delta | Ended]:
        """What one step gives."""
        if self.cancelled:
            yield self._end(FinishReason.CANCELLED)
            return
        if self._made < self._limit and not self._is_stopped():
            self._made += 1
            if delta := self._text.push(self._chain.next()):
                yield delta
        if self._made >= self._limit and not self._is_stopped() and (rest := self._text.finish()):
            yield rest
        if self._is_stopped():
            yield self._end(FinishReason.STOP)
        elif self._made >= self._limit:
            yield self._end(self._reason)

    def _is_stopped(self) -> bool:
        """Whether a stop string has ended it, be it by the log alone."""
        return bool(self._text.stop_sequence)

    def _end(self, reason: FinishReason) -> Ended:
        self.over = True
        return Ended(reason, Usage(self._prompt_tokens, 0, self._made), self._text.stop_sequence)


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer from its first token to its end."""

    text: str
    token_ids: tuple[int, ...]
    end: Ended


def undisturbed(request: GenerationRequest) -> Whole:
    """The answer to a request (its seed is set) that nothing befalls."""
    sequence, text, token_ids = Sequence(request), "", ()  # type: Sequence, str, tuple[int, ...]
    while True:
        for event in sequence.step():
            if isinstance(event, Ended):
                return Whole(text, token_ids, event)
            text, token_ids = text + event.text, token_ids + event.token_ids


@dataclass(slots=True, eq=False)
class _Open:
    engine: SteppingEngine
    sequence: Sequence
    sink: Sink
    began: bool = False

    def cancel(self) -> None:
        self.sequence.cancelled = True
        self.engine.wake()


class SteppingEngine(Engine):
    """See the module. On the event loop that runs: `submit` is to be called on it.

    Attributes:
        slower: by how much its steps take longer just now.
        hangs: whether it computes nothing just now.
    """

    name = "stepping"

    def __init__(self, settings: EngineSettings, random: Random, model: str, slots: int, speed: float) -> None:
        super().__init__(settings)
        self.slower, self.hangs = 1.0, False
        self._random, self._model, self._slots, self._speed = random, model, slots, speed
        self._open: dict[_Open, None] = {}
        self._tokens = 0
        self._stepping = self._closed = False

    def start(self, progress: Progress) -> None:
        progress("ready")

    @property
    def card(self) -> ModelCard:
        return ModelCard(self._model, fingerprint=Fingerprint(self._model, "int", "none", "echo", self.name))

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def speed(self) -> float:
        return self._speed

    def submit(self, request: GenerationRequest, sink: Sink) -> _Open:
        if self._closed:
            raise EngineFailedError("the engine is closed")
        one = _Open(self, Sequence(request), sink)
        self._open[one] = None
        self.wake()
        return one

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._open), tokens_generated=self._tokens)

    @property
    def wanted(self) -> int:
        """Open requests that nobody has cancelled."""
        return sum(not one.sequence.cancelled for one in self._open)

    def close(self) -> None:
        self._closed = True
        for one in list(self._open):
            one.sequence.cancelled = True
            self._advance(one)

    def go_on(self) -> None:
        """Hang no longer."""
        self.hangs = False
        self.wake()

    def wake(self) -> None:
        """Go on, if there is something to do."""
        if self._open and not (self._stepping or self.hangs):
            self._stepping = True
            seconds = STEP / self._speed * self.slower * self._random.uniform(0.5, 1.5)
            asyncio.get_running_loop().call_later(seconds, self._step)

    def _step(self) -> None:
        self._stepping = False
        if not self.hangs:
            for one in list(self._open):
                self._advance(one)
            self.wake()

    def _advance(self, one: _Open) -> None:
        if not one.began:
            one.began = True
            one.sink(Began())
        for event in one.sequence.step():
            if isinstance(event, Delta):
                self._tokens += 1
            else:
                self._open.pop(one, None)
            one.sink(event)
