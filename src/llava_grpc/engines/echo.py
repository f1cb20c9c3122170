"""The echo engine: deterministic answers without a model, for tests, drills and load.

Token k is a hash of the prompt, the seed, the options that choose tokens and all tokens before it, so that an answer
continued from a wrong token log, or with an option forgotten, is a different answer. Log-probabilities are made up from
the same hash. Each step makes one token for every request that is due, as a batching engine does.

Options (`--engine-option name=value`):
    tokens              length of an answer before it ends by itself (default 32)
    token_interval_ms   time between two tokens of a request (default 0: as fast as it goes)
    first_token_ms      time before the first one (default 0)
    start_ms            time that starting takes (default 0)
    fail_after          every request fails after so many tokens, with ENGINE_FAILED
    hang_after          every request makes so many tokens and then nothing more
    crash_after         the process dies, without a word, when a request has made so many tokens
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.sampling import DEFAULT_MAX_NEW_TOKENS
from llava_grpc.core.stream import Delta, Fingerprint, FinishReason, ModelCard, TokenLogprob, Usage
from llava_grpc.engines.base import Began, Ended, Engine, EngineStartError, EngineStats, Failed, Progress, Sink
from llava_grpc.engines.limits import check_answer, check_limit, check_vocabulary
from llava_grpc.engines.text import AnswerText
from llava_grpc.engines.token_chain import VOCABULARY, TokenChain, decode, prompt_pieces, token_text
from llava_grpc.errors import EngineFailedError, PromptTooLongError

CONTEXT_TOKENS = 32_768
IMAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class _Options:
    tokens: int = 32
    token_interval_ms: float = 0.0
    first_token_ms: float = 0.0
    start_ms: float = 0.0
    fail_after: int | None = None
    hang_after: int | None = None
    crash_after: int | None = None

    @classmethod
    def parse(cls, settings: EngineSettings) -> _Options:
        values: dict[str, float | int] = {}
        for name, text in settings.options.items():
            if name not in cls.__slots__:
                raise EngineStartError(f"engine echo has no option {name!r}; it has {', '.join(sorted(cls.__slots__))}")
            try:
                values[name] = float(text) if name.endswith("_ms") else int(text)
            except ValueError:
                raise EngineStartError(f"engine echo: option {name} is {text!r}, not a number") from None
        return cls(**values)  # type: ignore[arg-type]


@dataclass(slots=True, eq=False)
class _Answer:
    """A request under way; its own ticket."""

    engine: EchoEngine
    sink: Sink
    chain: TokenChain
    limit: int
    ends: FinishReason
    usage: tuple[int, int]
    stop_token_ids: frozenset[int]
    text: AnswerText | None
    made: int
    logprobs: int | None
    told: deque[TokenLogprob] = field(default_factory=deque)
    began: bool = False
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True
        self.engine.wake(self)

    def tell(self, delta: Delta) -> None:
        if self.logprobs is not None:
            delta = replace(delta, logprobs=tuple(self.told.popleft() for _ in delta.token_ids))
        self.sink(delta)


class EchoEngine(Engine):
    """See the module."""

    name = "echo"

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._options = _Options.parse(settings)
        self._condition = threading.Condition()
        self._due: list[tuple[float, int, _Answer]] = []
        self._open: set[_Answer] = set()
        self._order = itertools.count()
        self._tokens = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="echo-engine", daemon=True)

    def start(self, progress: Progress) -> None:
        progress("starting the echo engine")
        if self._options.start_ms:
            time.sleep(self._options.start_ms / 1000)  # the delay that was asked for
        self._thread.start()

    @property
    def card(self) -> ModelCard:
        return ModelCard(
            name=self.settings.model_name or "echo",
            aliases=self.settings.aliases,
            sees_images=True,
            context_tokens=self.settings.context_tokens or CONTEXT_TOKENS,
            fingerprint=Fingerprint(weights="echo", dtype="int", tokenizer="echo", engine="echo 1"),
        )

    @property
    def slots(self) -> int:
        return self.settings.slots or 64

    @property
    def speed(self) -> float:
        return 1.0 if self.settings.speed is None else self.settings.speed

    def submit(self, request: GenerationRequest, sink: Sink) -> _Answer:
        sampling = request.sampling
        images = len(request.images)
        prompt_tokens = sum(len(piece.split()) for piece in prompt_pieces(request)) + IMAGE_TOKENS * images
        room = self.card.context_tokens - prompt_tokens
        check_limit(request, self.settings.max_new_tokens_limit)
        check_vocabulary(request, VOCABULARY)
        if room < (sampling.max_new_tokens or max(sampling.min_new_tokens, 1)):
            raise PromptTooLongError(
                f"the prompt has {prompt_tokens} tokens; with the answer it must fit {self.card.context_tokens}"
            )
        most = sampling.max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, room)
        natural = most + 1 if sampling.ignore_eos else max(self._options.tokens, sampling.min_new_tokens)
        stop_token_ids = frozenset(sampling.stop_token_ids)
        check_answer(request, most, stop_token_ids)
        answer = _Answer(
            engine=self,
            sink=sink,
            chain=TokenChain(request, stop_token_ids),
            limit=min(most, natural),
            ends=FinishReason.STOP if natural <= most else FinishReason.LENGTH,
            usage=(prompt_tokens, IMAGE_TOKENS * images),
            stop_token_ids=stop_token_ids,
            text=(
                AnswerText(decode, (), sampling.stop, request.emitted_token_ids, sampling.min_new_tokens)
                if sampling.stop
                else None
            ),
            made=len(request.emitted_token_ids),
            logprobs=sampling.logprobs,
        )
        with self._condition:
            if self._closing:
                raise EngineFailedError("the engine is closed")
            self._open.add(answer)
            self._schedule(answer, time.monotonic() + self._options.first_token_ms / 1000)
        return answer

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._open), tokens_generated=self._tokens)

    def close(self) -> None:
        with self._condition:
            self._closing = True
            for answer in self._open:
                answer.cancelled = True
                self._schedule(answer, 0.0)
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def wake(self, answer: _Answer) -> None:
        """Look at `answer` at once: it was cancelled."""
        with self._condition:
            if answer in self._open:
                self._schedule(answer, 0.0)

    def _schedule(self, answer: _Answer, due: float) -> None:
        heapq.heappush(self._due, (due, next(self._order), answer))
        self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._due or self._due[0][0] > time.monotonic():
                    if self._closing and not self._open:
                        return
                    self._condition.wait(self._due[0][0] - time.monotonic() if self._due else None)
                now = time.monotonic()
                step = []
                while self._due and self._due[0][0] <= now:
                    step.append(heapq.heappop(self._due)[2])
            for answer in step:
                if answer not in self._open:
                    continue  # ended since; a cancelled one may be in the queue twice
                if self._advance(answer, now):
                    with self._condition:
                        self._open.discard(answer)

    def _advance(self, answer: _Answer, now: float) -> bool:
        """One token for `answer`; whether it is over."""
        if not answer.began:
            answer.began = True
            answer.sink(Began())
        if answer.cancelled:
            return self._end(answer, FinishReason.CANCELLED)
        if answer.text is not None and answer.text.stop_sequence:  # found by an earlier attempt
            return self._end(answer, FinishReason.STOP, answer.text.stop_sequence)
        options = self._options
        if options.crash_after == answer.made:
            os._exit(70)
        if options.fail_after == answer.made:
            answer.sink(Failed(EngineFailedError(f"a fault was asked for after {answer.made} tokens")))
            return True
        if options.hang_after == answer.made:
            return False  # never scheduled again; a cancel wakes it
        if answer.made >= answer.limit:
            return self._end(answer, answer.ends)
        if answer.logprobs is not None:
            answer.told.append(answer.chain.likelihood(answer.logprobs))
        token_id = answer.chain.next()
        answer.made += 1
        self._tokens += 1
        if token_id in answer.stop_token_ids:
            return self._end(answer, FinishReason.STOP)
        if answer.text is None:  # each token is whole text, and nothing is looked for in it
            answer.tell(Delta(token_text(token_id), (token_id,), answer.made))
        else:
            if delta := answer.text.push(token_id):
                answer.tell(delta)
            if answer.text.stop_sequence:
                return self._end(answer, FinishReason.STOP, answer.text.stop_sequence)
        if answer.made >= answer.limit:
            return self._end(answer, answer.ends)
        with self._condition:
            self._schedule(answer, now + options.token_interval_ms / 1000)
        return False

    @staticmethod
    def _end(answer: _Answer, reason: FinishReason, stop_sequence: str = "") -> bool:
        complete = reason is not FinishReason.CANCELLED and not stop_sequence
        if complete and answer.text is not None and (rest := answer.text.finish()):
            answer.tell(rest)
        prompt_tokens, image_tokens = answer.usage
        answer.sink(Ended(reason, Usage(prompt_tokens, image_tokens, answer.made), stop_sequence))
        return True
