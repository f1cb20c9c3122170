"""Between the engine's threads and the event loop: slots, hand-over, cancellation, timings.

Laws:
1. The worker alone owns its slots: a request that finds none is refused at once, never queued here. One that finds a
   slot whose request was cancelled waits for the step under way, which frees it.
2. A slot is free again when the engine has said that the request is over, not when the client has gone.
3. Nothing that the engine does blocks the event loop; what it hands over costs the loop one wake-up a step, however
   many requests the step served.
4. The first token never waits. Later ones wait for their turn when many frames leave (`core.pacing`); Deltas that have
   piled up meanwhile leave as one frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from llava_grpc.core.admission import RETRY_WHEN_FULL
from llava_grpc.core.pacing import FrameBudget
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.stream import Delta, Finished, FinishReason, Timings
from llava_grpc.engines.base import Began, Ended, Engine, EngineEvent, Failed, Progress, Ticket
from llava_grpc.errors import AllSlotsTakenError, EngineFailedError, LlavaGrpcError, ShuttingDownError

PREPARING_THREADS = 4
"""Requests whose pictures and prompts are prepared at the same time."""

_log = logging.getLogger(__name__)


class Answer:
    """One request under way. Iterate its `events`; `close` it in any case."""

    def __init__(self, received_at: float, budget: FrameBudget, clock: Callable[[], float]) -> None:
        self._received_at = received_at
        self._budget = budget
        self._clock = clock
        self._queue = self._first_token = self._total = 0.0
        self._pending: deque[Delta | Ended | Failed] = deque()
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self._ticket: Ticket | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nobody listens any more: its slot comes free when the step under way ends."""
        return self._closed

    def stamp(self, event: EngineEvent, now: float) -> None:
        """Note when things happened; called from the engine's thread as they do."""
        if isinstance(event, Began):
            self._queue = now - self._received_at
        elif isinstance(event, Delta):
            self._first_token = self._first_token or now - self._received_at
        else:
            self._total = now - self._received_at

    def deliver(self, event: Delta | Ended | Failed) -> None:
        """Take an event on the event loop."""
        self._pending.append(event)
        self._news.set()
        if not isinstance(event, Delta):
            self._ended.set()

    def bind(self, ticket: Ticket) -> None:
        """The engine has taken the request up."""
        self._ticket = ticket
        if self._closed:
            ticket.cancel()

    def close(self) -> None:
        """Nobody listens any more: stop computing if that is still going on."""
        self._closed = True
        if self._ticket is not None:
            self._ticket.cancel()

    async def events(self) -> AsyncIterator[Delta | Finished]:
        """Deltas, joined where several have come, and the Finished.

        Raises:
            ShuttingDownError: the engine was closed before the answer was complete.
            LlavaGrpcError: the engine failed.
        """
        first = True
        while True:
            await self._news.wait()
            if not first:
                await self._turn()
            first = False
            self._news.clear()
            joined: Delta | None = None
            while self._pending:
                event = self._pending.popleft()
                if isinstance(event, Delta):
                    joined = event if joined is None else joined.joined(event)
                    continue
                if joined is not None:
                    yield joined
                if isinstance(event, Failed):
                    raise event.error
                if event.reason is FinishReason.CANCELLED:  # nobody who reads on has cancelled it
                    raise ShuttingDownError("the engine was closed")
                timings = Timings(self._queue, self._first_token, self._total)
                yield Finished(event.reason, event.usage, timings, event.stop_sequence)
                return
            if joined is not None:
                yield joined

    async def _turn(self) -> None:
        """Wait for this stream's turn to send a frame, if it must; the end of the answer does not wait."""
        if self._ended.is_set():
            return
        wait = self._budget.reserve(self._clock())
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._ended.wait()


class EngineHost:
    """See the module. Made and used on one event loop."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._preparing = ThreadPoolExecutor(PREPARING_THREADS, thread_name_prefix="prepare")
        self._handed_over: deque[tuple[Answer, Delta | Ended | Failed]] = deque()
        self._flush_is_due = False
        self._budget = FrameBudget()
        self._running: set[Answer] = set()
        self._promised = 0
        self._slot_freed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def engine(self) -> Engine:
        """The engine hosted."""
        return self._engine

    @property
    def running(self) -> int:
        """Slots taken."""
        return len(self._running)

    async def start(self, progress: Progress) -> None:
        """Start the engine, off the event loop.

        Raises:
            EngineStartError: it cannot be started.
        """
        try:
            await self._loop.run_in_executor(self._preparing, self._engine.start, progress)
        except BaseException:
            self._preparing.shutdown(wait=False)
            raise

    async def submit(self, request: GenerationRequest) -> Answer:
        """Take a slot and have the request prepared.

        Raises:
            AllSlotsTakenError: no slot is free.
            InvalidRequestError, NotFoundError: the request is at fault.
            EngineFailedError: the engine is.
        """
        await self._free_slot()
        answer = Answer(self._clock(), self._budget, self._clock)
        self._running.add(answer)
        self._idle.clear()
        preparing = self._loop.run_in_executor(self._preparing, self._prepare, request, answer)
        preparing.add_done_callback(lambda done: self._release_if_refused(answer, done))
        try:
            # Shielded: a thread cannot be cancelled, and the ticket that it comes back with must be.
            await asyncio.shield(preparing)
        except asyncio.CancelledError:
            answer.close()
            raise
        return answer

    async def _free_slot(self) -> None:
        """Return when a slot is free, which is at once or after the step under way.

        Raises:
            AllSlotsTakenError: all are taken by requests that go on.
        """
        slots = self._engine.slots
        while len(self._running) >= slots:
            staying = sum(not answer.closed for answer in self._running)
            if staying + self._promised >= slots:
                raise AllSlotsTakenError(f"all {slots} slots are taken", retry_after=RETRY_WHEN_FULL)
            self._promised += 1
            try:
                await self._slot_freed.wait()
            finally:
                self._promised -= 1

    def _prepare(self, request: GenerationRequest, answer: Answer) -> None:
        def sink(event: EngineEvent) -> None:
            self._hand_over(answer, event)

        try:
            ticket = self._engine.submit(request, sink)
        except LlavaGrpcError:
            raise
        except Exception as error:
            _log.exception("the engine failed while preparing request %s", request.request_id)
            raise EngineFailedError(f"the engine failed while preparing: {type(error).__name__}") from error
        answer.bind(ticket)

    def _release_if_refused(self, answer: Answer, preparing: asyncio.Future[None]) -> None:
        if preparing.cancelled() or preparing.exception() is not None:
            self._release(answer)

    def _hand_over(self, answer: Answer, event: EngineEvent) -> None:
        """From the engine's thread to the loop. One wake-up serves all that comes before the loop gets to it."""
        answer.stamp(event, self._clock())
        if isinstance(event, Began):
            return
        self._handed_over.append((answer, event))
        if not self._flush_is_due:
            self._flush_is_due = True
            try:
                self._loop.call_soon_threadsafe(self._flush)
            except RuntimeError:  # the loop is closed: nobody is left to listen
                _log.debug("an event came after the loop was closed")

    def _flush(self) -> None:
        self._flush_is_due = False  # before draining: what comes from now on asks for another flush
        while self._handed_over:
            answer, event = self._handed_over.popleft()
            if not isinstance(event, Delta):
                self._release(answer)
            answer.deliver(event)

    def _release(self, answer: Answer) -> None:
        self._running.discard(answer)
        self._slot_freed.set()  # wakes all who wait; who comes too late waits again
        self._slot_freed = asyncio.Event()
        if not self._running:
            self._idle.set()

    async def drained(self) -> None:
        """Wait until no request is running."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop the engine; requests under way end as cancelled."""
        await self._loop.run_in_executor(self._preparing, self._engine.close)
        self._preparing.shutdown(wait=False)
