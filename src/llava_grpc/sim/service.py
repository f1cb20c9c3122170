"""Models of a worker's engine: how long what takes.

`Steady` takes a request's work in seconds, whatever else it does: the server of queueing theory. `Batch` is shaped as a
batching engine: it reads prompts one after another, which holds everything else up, and makes one token for every
running request in each step; a step takes the longer the more run. What it keeps of pictures and prompts (see `caches`)
it does not compute again.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llava_grpc.sim.caches import Caches, Room
from llava_grpc.sim.engine import Clock
from llava_grpc.sim.workload import Job, Request

Done = Callable[[Job], None]


@dataclass(frozen=True, slots=True)
class Spec:
    """A worker to simulate. `speed` is what it has and what it advertises; `room` is that of its caches."""

    speed: float = 1.0
    slots: int = 1
    room: Room = Room()  # noqa: RUF009 - a tuple


class Server(Protocol):
    """Something that answers requests; it is given no more than its slots."""

    def start(self, job: Job) -> None: ...

    def stop(self) -> None:
        """It dies: nothing of what it has under way happens any more."""


ServerKind = Callable[[Clock, Spec, Done], Server]
"""Makes a server that calls when a job is done."""


class Steady:
    """Takes `work / speed` seconds for a request; the answer comes in one piece."""

    __slots__ = ("_clock", "_done", "_speed", "_stopped")

    def __init__(self, clock: Clock, spec: Spec, done: Done) -> None:
        self._clock, self._speed, self._done = clock, spec.speed, done
        self._stopped = False

    def start(self, job: Job) -> None:
        self._clock.at(self._clock.now + job.request.work / self._speed, self._end, job)

    def stop(self) -> None:
        self._stopped = True

    def _end(self, job: Job) -> None:
        if not self._stopped:
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
        "_caches",
        "_clock",
        "_costs",
        "_done",
        "_joining",
        "_leap",
        "_reading",
        "_running",
        "_since",
        "_speed",
        "_steps",
        "_turn",
        "_until",
    )

    def __init__(self, clock: Clock, speed: float, done: Done, costs: Costs, caches: Caches | None = None) -> None:
        self._clock, self._speed, self._done, self._costs = clock, speed, done, costs
        self._caches = Caches() if caches is None else caches
        self._joining: deque[Job] = deque()
        self._running: list[tuple[int, str, Job]] = []
        """By the step after which they end."""
        self._steps = 0
        self._leap = 0
        """Steps under way; 0 while idle or reading a prompt."""
        self._since = 0.0
        self._busy = False
        self._reading: Job | None = None
        self._turn = 0
        """Names what is under way: an event of another turn was overtaken."""
        self._until = 0.0
        """When what is under way ends."""

    def start(self, job: Job) -> None:
        self._joining.append(job)
        if not self._busy:
            self._busy = True
            self._go_on()
        elif self._leap:
            self._cut_short()

    def stop(self) -> None:
        self._turn += 1

    def delay(self, request: Request) -> float:
        """What it would cost all together to start a request now, in seconds, as one who knows everything can tell.

        Its own wait for the first token; what its reading holds up each of the others; and how much longer the steps
        take that it makes with others, for both sides.
        """
        wait = 0.0
        if self._busy:
            wait = self._until - self._clock.now
            if self._leap:
                wait %= self._step()
        coming: set[bytes] = set()
        for job in self._joining:
            need = self._caches.need(job.request, coming)
            wait += self._costs.reading(need.tokens, need.pictures) / self._speed
            coming.update((*(piece.key for piece in job.request.pieces), *job.request.pictures))
        need = self._caches.need(request, coming)
        reading = self._costs.reading(need.tokens, need.pictures) / self._speed
        left = [end - self._steps for end, _, _ in self._running] + [job.request.answer for job in self._joining]
        if self._reading is not None:
            left.append(self._reading.request.answer)
        together = sum(min(one, request.answer) for one in left)
        return wait + reading * (1 + len(left)) + 2 * together * self._costs.step_sequence / self._speed

    def _go_on(self) -> None:
        """Decide what comes next: a prompt before steps."""
        self._leap = 0
        if self._joining:
            self._reading = job = self._joining.popleft()
            job.need = need = self._caches.read(job.request)
            self._after(self._costs.reading(need.tokens, need.pictures) / self._speed, self._read, job)
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

        self._until = self._clock.now + max(0.0, seconds)
        self._clock.at(self._until, happen, job)

    def _read(self, job: Job | None) -> None:
        assert job is not None, "a prompt is somebody's"
        self._reading = None
        job.first_token = self._clock.now
        if job.when_read is not None:
            job.when_read(job)
        heapq.heappush(self._running, (self._steps + job.request.answer - 1, job.key, job))
        self._end_those_due()

    def _stepped(self, _: Job | None) -> None:
        self._steps += self._leap
        self._leap = 0  # a job that is started while others end waits for this turn's end
        self._end_those_due()

    def _end_those_due(self) -> None:
        while self._running and self._running[0][0] <= self._steps:
            job = heapq.heappop(self._running)[2]
            self._caches.answered(job.request)
            self._done(job)
        self._go_on()

    def _step(self) -> float:
        return self._costs.stepping(len(self._running)) / self._speed
