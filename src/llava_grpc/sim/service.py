"""Models of a worker's engine: how long what takes.

`Steady` takes a request's work in seconds, whatever else it does: the server of queueing theory. `Batch` is shaped as a
batching engine: it reads prompts one after another, which holds everything else up, and makes one token for every
running request in each step; a step takes the longer the more run.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llava_grpc.sim.engine import Clock
from llava_grpc.sim.workload import Job

Done = Callable[[Job], None]


class Server(Protocol):
    """Something that answers requests; it is given no more than its slots."""

    def start(self, job: Job) -> None: ...


ServerKind = Callable[[Clock, float, Done], Server]
"""Makes a server of a speed that calls when a job is done."""


class Steady:
    """Takes `work / speed` seconds for a request; the answer comes in one piece."""

    __slots__ = ("_clock", "_done", "_speed")

    def __init__(self, clock: Clock, speed: float, done: Done) -> None:
        self._clock, self._speed, self._done = clock, speed, done

    def start(self, job: Job) -> None:
        self._clock.at(self._clock.now + job.request.work / self._speed, self._end, job)

    def _end(self, job: Job) -> None:
        job.first_token = self._clock.now
        self._done(job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds at speed 1. Invented, of the order of a 7B model on one GPU."""

    request: float = 0.0
    """Of each prompt, whatever its length."""
    picture: float = 0.0
    """The vision pass of a picture whose features are not at hand."""
    prompt_token: float = 0.00015
    step: float = 0.025
    step_sequence: float = 0.0005

    def reading(self, prompt: float, new_pictures: float = 0.0) -> float:
        """Of a prompt of so many tokens, its pictures' included: from its turn to its first token."""
        return self.request + self.picture * new_pictures + self.prompt_token * prompt

    def stepping(self, running: float) -> float:
        """Of a step that makes one token for each of the running requests."""
        return self.step + self.step_sequence * running

    def seconds(self, prompt: float, answer: float, slots: int) -> float:
        """Of a full worker's time, for one request of such lengths (the first token comes with the prompt)."""
        return self.reading(prompt) + (answer - 1) * self.stepping(slots) / slots


class Batch:
    """A batching engine. Between two changes of the batch all steps are alike, so they pass as one event."""

    __slots__ = (
        "_busy",
        "_clock",
        "_costs",
        "_done",
        "_joining",
        "_leap",
        "_running",
        "_since",
        "_speed",
        "_steps",
        "_turn",
    )

    def __init__(self, clock: Clock, speed: float, done: Done, costs: Costs) -> None:
        self._clock, self._speed, self._done, self._costs = clock, speed, done, costs
        self._joining: deque[Job] = deque()
        self._running: list[tuple[int, str, Job]] = []
        """By the step after which they end."""
        self._steps = 0
        self._leap = 0
        """Steps under way; 0 while idle or reading a prompt."""
        self._since = 0.0
        self._busy = False
        self._turn = 0
        """Names what is under way: an event of another turn was overtaken."""

    def start(self, job: Job) -> None:
        self._joining.append(job)
        if not self._busy:
            self._busy = True
            self._go_on()
        elif self._leap:
            self._cut_short()

    def _go_on(self) -> None:
        """Decide what comes next: a prompt before steps."""
        self._leap = 0
        if self._joining:
            job = self._joining.popleft()
            self._after(self._costs.reading(job.request.prompt) / self._speed, self._read, job)
        elif self._running:
            self._leap, self._since = self._running[0][0] - self._steps, self._clock.now
            self._after(self._leap * self._step(), self._stepped, None)
        else:
            self._busy = False

    def _cut_short(self) -> None:
        """End the leap with the step that is being made."""
        step = self._step()
        self._leap = max(1, min(self._leap, math.ceil((self._clock.now - self._since) / step - 1e-9)))
        self._after(self._since + self._leap * step - self._clock.now, self._stepped, None)

    def _after(self, seconds: float, call: Callable[[Job | None], None], job: Job | None) -> None:
        self._turn = turn = self._turn + 1

        def happen(argument: Job | None) -> None:
            if turn == self._turn:
                call(argument)

        self._clock.at(self._clock.now + max(0.0, seconds), happen, job)

    def _read(self, job: Job | None) -> None:
        assert job is not None, "a prompt is somebody's"
        job.first_token = self._clock.now
        heapq.heappush(self._running, (self._steps + job.request.answer - 1, job.key, job))
        self._end_those_due()

    def _stepped(self, _: Job | None) -> None:
        self._steps += self._leap
        self._leap = 0  # a job that is started while others end waits for this turn's end
        self._end_those_due()

    def _end_those_due(self) -> None:
        while self._running and self._running[0][0] <= self._steps:
            self._done(heapq.heappop(self._running)[2])
        self._go_on()

    def _step(self) -> float:
        return self._costs.stepping(len(self._running)) / self._speed
