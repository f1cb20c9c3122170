"""What a worker's engine takes for first tokens and steps: the measuring half of fit_service.py."""

from __future__ import annotations

import io
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from random import Random

from PIL import Image as Pillow

from llava_grpc.config import EngineSettings
from llava_grpc.core.prompt import Conversation, GenerationRequest, Image, Prompt, RawPrompt, Role, Sampling, Turn
from llava_grpc.core.stream import Delta, Usage
from llava_grpc.engines.base import Ended, EngineEvent, Failed
from llava_grpc.engines.transformers import TransformersEngine
from llava_grpc.sim.workload import Request

SHORT, LONG = 16, 1024
"""Tokens of the prompts of those that decode."""
AT_ONCE, AT_ONCE_TOKENS = 8, 64
BESIDE = 8
TIMEOUT = 120.0
TEXT, LONG_TEXT, NEW, SEEN, AGAIN = "text", "long text", "new picture", "picture seen before", "prompt sent again"


class Watch:
    """A sink that notes when each token came. Times are those of `time.perf_counter`."""

    def __init__(self, sent: float | None, over: Callable[[], object]) -> None:
        self.sent = time.perf_counter() if sent is None else sent
        self.came: list[tuple[float, int]] = []
        """Seconds, and the tokens of the answer so far."""
        self.usage = Usage()
        self.ended = 0.0
        self._over = over
        self._error: Exception | None = None
        self._begun, self._done = threading.Event(), threading.Event()

    def __call__(self, event: EngineEvent) -> None:
        now = time.perf_counter()
        if isinstance(event, Delta):
            self.came.append((now, event.end_offset))
            self._begun.set()
        elif isinstance(event, Ended | Failed):
            self.ended = now
            if isinstance(event, Failed):
                self._error = event.error
            else:
                self.usage = event.usage
                self.came = self.came or [(now, event.usage.completion_tokens)]
            self._begun.set()
            self._done.set()
            self._over()

    def wait(self) -> Watch:
        """Until it is over."""
        self._wait(self._done)
        return self

    def wait_for_first(self) -> Watch:
        """Until the first token."""
        self._wait(self._begun)
        return self

    def _wait(self, event: threading.Event) -> None:
        if not event.wait(TIMEOUT):
            raise SystemExit(f"no answer within {TIMEOUT:g} s")
        if self._error is not None:
            raise self._error

    @property
    def to_first_token(self) -> float:
        return self.came[0][0] - self.sent

    @property
    def response(self) -> float:
        return self.ended - self.sent


@dataclass(frozen=True)
class Point:
    """One way to get a first token: its prompt as the engine counted it, and the seconds of each round."""

    kind: str
    tokens: int
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Plan:
    """What is asked in a round, in tokens, requests and pixels."""

    text: Sequence[int] = (16, 64, 128, 192, 256, 320, 384, 448, 512)
    long_text: Sequence[int] = (LONG * 3 // 4, LONG)
    picture_text: Sequence[int] = (16, 128, 384)
    running: Sequence[int] = (1, 2, 4, 8, 16)
    answer: int = 64
    pixels: int = 336


class Bench:
    """An engine and what is asked of it. No two prompts begin alike, unless they are to."""

    def __init__(self, settings: EngineSettings, plan: Plan) -> None:
        self.plan = plan
        self.engine = TransformersEngine(settings)
        self.engine.start(lambda text: None)
        # An answer ends where it was told to, so that as many run as are to.
        self.engine._loaded = replace(self.engine._loaded, end_ids=frozenset())
        self.first: dict[tuple[str, int], Point] = {}
        self.steps: dict[tuple[int, int], list[float]] = defaultdict(list)
        """By how many run, and by the tokens of their prompts."""
        self.at_once: list[float] = []
        self.newcomer: list[float] = []
        self.gaps: list[float] = []
        self._random = Random(1)
        self._pictures = 0
        few, many = (self.ask(_question(self.noise(words))).wait().usage.prompt_tokens for words in (1, 201))
        self._per_word = (many - few) / 200
        self._fixed = few - self._per_word

    def noise(self, words: int) -> str:
        """So many words, like no others."""
        letters = "abcdefghijklmnopqrstuvwxyz"
        return " ".join("".join(self._random.choices(letters, k=4)) for _ in range(words))

    def words(self, tokens: int) -> str:
        """Words that make a prompt of about so many tokens."""
        return self.noise(max(1, round((tokens - self._fixed) / self._per_word)))

    def picture(self) -> bytes:
        """A picture like no other, as PNG."""
        self._pictures += 1
        buffer = io.BytesIO()
        colour = (self._pictures * 37 % 256, self._pictures // 7 % 256, self._pictures % 256)
        Pillow.new("RGB", (self.plan.pixels, self.plan.pixels), colour).save(buffer, "PNG")
        return buffer.getvalue()

    def ask(
        self, prompt: Prompt, tokens: int = 2, *, sent: float | None = None, over: Callable[[], object] = int
    ) -> Watch:
        """A request under way. An answer of one token ends before its prompt's pages of the cache can be shared.

        Args:
            sent: when it counts as sent; None: now.
            over: called when it is over.
        """
        request = GenerationRequest(
            request_id="fit", model="", prompt=prompt, sampling=Sampling(max_new_tokens=tokens, seed=1)
        )
        watch = Watch(sent, over)
        self.engine.submit(request, watch)
        return watch

    def text(self, tokens: int) -> Conversation:
        """A question of about so many tokens."""
        return _question(self.words(tokens))

    def round(self) -> None:
        """Everything once; orders differ from round to round."""
        plan = self.plan
        tasks = [partial(self._text, TEXT, tokens) for tokens in plan.text]
        tasks += [partial(self._text, LONG_TEXT, tokens) for tokens in plan.long_text]
        if self.engine.card.sees_images:
            tasks += [partial(self._picture, tokens) for tokens in plan.picture_text]
        tasks += [partial(self._steps, running, SHORT) for running in plan.running]
        tasks += [partial(self._steps, BESIDE, LONG), self._at_once, self._newcomer]
        self._random.shuffle(tasks)
        for task in tasks:
            task()

    def forget(self) -> None:
        """All that was measured so far."""
        for found in (self.first, self.steps, self.at_once, self.newcomer, self.gaps):
            found.clear()

    def _note(self, kind: str, asked: int, watch: Watch) -> None:
        watch.wait()
        point = self.first.setdefault((kind, asked), Point(kind, watch.usage.prompt_tokens, []))
        point.seconds.append(watch.to_first_token)

    def _text(self, kind: str, tokens: int) -> None:
        prompt = self.text(tokens)
        self._note(kind, tokens, self.ask(prompt))
        self._note(AGAIN, tokens, self.ask(prompt))

    def _picture(self, tokens: int) -> None:
        picture = Image(data=self.picture())
        words = self.words(tokens)
        self._note(NEW, tokens, self.ask(_question(picture, words)))
        # The words before it are new, so that no page of the cache is shared: its features alone are at hand.
        self._note(SEEN, tokens, self.ask(RawPrompt(f"{self.words(tokens)} <image>", (picture,))))

    def _decoding(self, running: int, prompt_tokens: int) -> list[Watch]:
        watches = [self.ask(self.text(prompt_tokens), self.plan.answer) for _ in range(running)]
        for watch in watches:
            watch.wait_for_first()
        return watches

    def _steps(self, running: int, prompt_tokens: int) -> None:
        watches = [watch.wait() for watch in self._decoding(running, prompt_tokens)]
        begin, end = max(watch.came[0][0] for watch in watches), min(watch.came[-1][0] for watch in watches)
        inside = [(when, tokens) for when, tokens in watches[0].came if begin <= when <= end]
        (since, before), (until, after) = inside[0], inside[-1]
        self.steps[running, prompt_tokens].append((until - since) / (after - before))

    def _at_once(self) -> None:
        watches = [self.ask(self.text(AT_ONCE_TOKENS)) for _ in range(AT_ONCE)]
        self.at_once.append(statistics.mean(watch.wait().to_first_token for watch in watches))

    def _newcomer(self) -> None:
        watches = self._decoding(BESIDE, SHORT)
        newcomer = self.ask(self.text(LONG)).wait()
        others = [watch.wait().came for watch in watches]
        gaps = [later[0] - sooner[0] for came in others for sooner, later in pairwise(came)]
        self.newcomer.append(newcomer.to_first_token)
        self.gaps.append(max(gaps))

    def open_loop(self, requests: Sequence[Request]) -> list[Watch]:
        """Each at its time, or when a slot comes free after it; all of them when they are over."""
        prompts = [self.text(request.prompt) for request in requests]
        slots = threading.Semaphore(self.engine.slots)
        watches = []
        began = time.perf_counter()
        for request, prompt in zip(requests, prompts, strict=True):
            time.sleep(max(0.0, began + request.at - time.perf_counter()))
            slots.acquire()
            watches.append(self.ask(prompt, request.answer, sent=began + request.at, over=slots.release))
        return [watch.wait() for watch in watches]


def _question(*parts: Image | str) -> Conversation:
    return Conversation((Turn(Role.USER, parts),))
