"""The echo engine: deterministic answers without a model, for tests, drills and load.

Token k is a hash of the prompt, the seed, the options that choose tokens and all tokens before it, so that an answer
continued from a wrong token log, or with an option forgotten, is a different answer. Log-probabilities are made up from
the same hash. Its timing is the simplest, each request at its own pace, or that of a batching engine, which is the
simulator's model of one (`sim.service.Batch`).

Options (`--engine-option name=value`):
    tokens              length of an answer before it ends by itself (default 32)
    token_interval_ms   time between two tokens of a request (default 0: as fast as it goes)
    first_token_ms      time before the first one (default 0)
    start_ms            time that starting takes (default 0)
    request_ms, picture_ms, prompt_token_ms, step_ms, step_sequence_ms
                        with any of these it times as a batching engine: prompts are read one after another, while
                        nothing else goes on, and take so long each, for every picture not seen lately, and for every
                        token; then steps, which take so long each and for every running request, make one token for
                        each (default 0)
    kv_tokens, cached_pictures
                        what it says that its caches have room for; it has none (default 0: unknown)
    fail_after          every request fails after so many tokens, with ENGINE_FAILED
    hang_after          every request makes so many tokens and then nothing more
    crash_after         the process dies, without a word, when a request has made so many tokens
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.sampling import DEFAULT_MAX_NEW_TOKENS
from llava_grpc.core.stream import Delta, Fingerprint, FinishReason, ModelCard, TokenLogprob, Usage
from llava_grpc.engines.base import Began, Ended, Engine, EngineStartError, EngineStats, Failed, Progress, Sink
from llava_grpc.engines.echo_timing import Apart, Batching, Timing
from llava_grpc.engines.limits import check_answer, check_limit, check_vocabulary
from llava_grpc.engines.text import AnswerText
from llava_grpc.engines.token_chain import VOCABULARY, TokenChain, decode, digest_of, prompt_pieces, token_text
from llava_grpc.errors import EngineFailedError, PromptTooLongError
from llava_grpc.sim.service import Costs

CONTEXT_TOKENS = 32_768
IMAGE_TOKENS = 16
PICTURES_REMEMBERED = 1024
COSTS = ("request", "picture", "prompt_token", "step", "step_sequence")


@dataclass(frozen=True, slots=True)
class _Options:
    tokens: int = 32
    token_interval_ms: float = 0.0
    first_token_ms: float = 0.0
    start_ms: float = 0.0
    request_ms: float | None = None
    picture_ms: float | None = None
    prompt_token_ms: float | None = None
    step_ms: float | None = None
    step_sequence_ms: float | None = None
    kv_tokens: int = 0
    cached_pictures: int = 0
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
                values[name] = value = float(text) if name.endswith("_ms") else int(text)
            except ValueError:
                raise EngineStartError(f"engine echo: option {name} is {text!r}, not a number") from None
            if not (math.isfinite(value) and value >= 0):
                raise EngineStartError(f"engine echo: option {name} is {text!r}; it must be finite and not negative")
        return cls(**values)  # type: ignore[arg-type]

    def timing(self) -> Timing[_Answer]:
        """As the options have it.

        Raises:
            EngineStartError: they ask for both kinds.
        """
        costs = {name: getattr(self, f"{name}_ms") for name in COSTS}
        if all(cost is None for cost in costs.values()):
            return Apart(self.first_token_ms / 1000, self.token_interval_ms / 1000)
        if self.first_token_ms or self.token_interval_ms:
            raise EngineStartError(
                "engine echo: first_token_ms and token_interval_ms are for requests at their own pace; leave them out, "
                f"or leave out {', '.join(f'{name}_ms' for name, cost in costs.items() if cost is not None)}"
            )
        return Batching(Costs(**{name: (cost or 0.0) / 1000 for name, cost in costs.items()}))


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
        self._timing = self._options.timing()
        self._open: set[_Answer] = set()
        self._cancelled: list[_Answer] = []
        self._seen: dict[bytes, None] = {}
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

    @property
    def kv_tokens(self) -> int:
        return self._options.kv_tokens

    @property
    def cached_pictures(self) -> int:
        return self._options.cached_pictures

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
        pictures = [digest_of(image) for image in request.images]
        with self._condition:
            if self._closing:
                raise EngineFailedError("the engine is closed")
            self._open.add(answer)
            self._timing.add(answer, prompt_tokens + answer.made, self._new_pictures(pictures), time.monotonic())
            self._condition.notify()
        return answer

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._open), tokens_generated=self._tokens)

    def close(self) -> None:
        with self._condition:
            self._closing = True
            self._cancelled.extend(self._open)
            for answer in self._open:
                answer.cancelled = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def wake(self, answer: _Answer) -> None:
        """Look at `answer` at once: it was cancelled."""
        with self._condition:
            if answer in self._open:
                self._cancelled.append(answer)
                self._condition.notify()

    def _new_pictures(self, digests: Sequence[bytes]) -> int:
        """How many were not seen lately; now they were."""
        new = len(set(digests) - self._seen.keys())
        for digest in digests:
            self._seen.pop(digest, None)
            self._seen[digest] = None
        while len(self._seen) > PICTURES_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return new

    def _run(self) -> None:
        while True:
            with self._condition:
                while not ((step := self._timing.take(time.monotonic())) or self._cancelled):
                    if self._closing and not self._open:
                        return
                    due = self._timing.due()
                    self._condition.wait(None if due is None else max(0.0, due - time.monotonic()))
                cancelled, self._cancelled = self._cancelled, []
            now = time.monotonic()
            for answer in cancelled:
                if answer in self._open:
                    self._advance(answer)
            going_on = [answer for answer in step if answer in self._open and self._advance(answer)]
            with self._condition:
                for answer in cancelled:
                    self._timing.remove(answer)
                if step:
                    self._timing.go_on(going_on, now)

    def _advance(self, answer: _Answer) -> bool:
        """One token for `answer`; whether it wants more."""
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
            return self._over(answer, Failed(EngineFailedError(f"a fault was asked for after {answer.made} tokens")))
        if options.hang_after == answer.made:
            return False  # it stays open; a cancel ends it
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
        return True

    def _end(self, answer: _Answer, reason: FinishReason, stop_sequence: str = "") -> bool:
        complete = reason is not FinishReason.CANCELLED and not stop_sequence
        if complete and answer.text is not None and (rest := answer.text.finish()):
            answer.tell(rest)
        prompt_tokens, image_tokens = answer.usage
        return self._over(answer, Ended(reason, Usage(prompt_tokens, image_tokens, answer.made), stop_sequence))

    def _over(self, answer: _Answer, event: Ended | Failed) -> bool:
        with self._condition:
            self._open.discard(answer)
        answer.sink(event)
        return False
