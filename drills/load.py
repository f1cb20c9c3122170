"""An open loop of requests: each is sent when it is due, whatever became of those before, and judged when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Self

from drills.mix import Question, Whole
from llava_grpc.client import AnswerStream, AsyncClient
from llava_grpc.errors import LlavaGrpcError

TIMEOUT = 90.0
"""Seconds for an answer; one that takes longer is lost."""


@dataclass(eq=False)
class Asked:
    """A request under way, or what became of it."""

    question: Question
    request_id: str
    stream: AnswerStream | None = None
    error: LlavaGrpcError | None = None
    identical: bool = False
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with the first token, or at the end."""

    @property
    def cut(self) -> bool:
        """Whether it was cut after its first token, and went on."""
        stream = self.stream
        return stream is not None and stream.finished is not None and stream.resumed + stream.finished.resumes > 0


@dataclass
class Load:
    """See the module. Sends from the start of its block to `calm` or the end of the block, which cancels what runs.

    Args:
        client: whom to ask.
        questions: drawn from at random.
        rate: requests a second, on average; they come as a Poisson process.
        chance: where both come from.
        most: what comes while so many are under way is not sent: drills are of faults, not of too much work.
    """

    client: AsyncClient
    questions: Sequence[Question]
    rate: float
    chance: Random
    most: int = 180
    ended: list[Asked] = field(default_factory=list)
    cut: int = 0
    """How many of those that have ended were cut."""
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _sending: asyncio.Task[None] | None = None

    async def more(self, count: int) -> None:
        """Wait until so many more have ended."""
        target = len(self.ended) + count
        async with self._news:
            await self._news.wait_for(lambda: len(self.ended) >= target)

    def ask(self) -> tuple[Asked, asyncio.Task[None]]:
        """One more, now; with the task that it ends with."""
        question = self.chance.choice(self.questions)
        request = question.asked_by(self.chance)
        asked = Asked(question, request.request_id)

        async def answer() -> None:
            try:
                async with self.client.send(request, timeout=TIMEOUT) as asked.stream:
                    await asked.stream.next_delta()
                    asked.begun.set()
                    await asked.stream.text()
                asked.identical = question.is_answered_by(Whole.of(asked.stream))
            except LlavaGrpcError as error:
                asked.error = error
            asked.begun.set()
            self.ended.append(asked)
            self.cut += asked.cut
            async with self._news:
                self._news.notify_all()

        task = asyncio.create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asked, task

    async def calm(self) -> None:
        """Send no more; returns when everything that was sent has ended."""
        if self._sending is not None:
            self._sending.cancel()
        await asyncio.gather(*self._tasks)

    async def __aenter__(self) -> Self:
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._tasks, *([self._sending] if self._sending is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            due += self.chance.expovariate(self.rate)
            await asyncio.sleep(max(0.0, due - clock()))
            if len(self._tasks) < self.most:
                self.ask()
