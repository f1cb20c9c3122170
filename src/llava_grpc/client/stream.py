"""An answer as it comes.

Laws: nothing is lost or doubled: the offsets of the deltas follow on one another, or the stream fails. A stream ends in
exactly one way: complete (`finished` is set), or with one error, which is raised again whenever it is asked further.
Leaving it early, by `break`, the end of its `async with` or `cancel`, cancels the call, and with it the decoding.

A call that breaks is followed by another one, which goes on after the tokens that came; `failover` says whether and
when. Whoever reads the stream makes that happen: no task runs beside it, so leaving ends everything at any moment. The
request, with its pictures, is kept until the stream ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import grpc.aio

from llava_grpc.client.calls import was_cancelled_here
from llava_grpc.client.failover import check_goes_on, going_on
from llava_grpc.client.route import Attempts, GenerateCall
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.stream import Delta, Event, Finished, FinishReason, Queued, Started, TokenLogprob
from llava_grpc.errors import (
    EngineFailedError,
    LlavaGrpcError,
    RequestCancelledError,
    ShuttingDownError,
    WorkerLostError,
)
from llava_grpc.rpc.convert import event_from_pb
from llava_grpc.rpc.status import explain_rpc_error


class AnswerStream:
    """The deltas of one answer; iterate it, or await `text()`. For one reader at a time.

    Attributes:
        request_id: the request's name, also in the nodes' logs.
        queued: where the request stands, while it waits for a slot.
        started: who answered first, once that is known.
        answering: who answers now; another than `started` where an attempt failed.
        attempts: how often the request was sent, 1 where nothing failed.
        resumed: how often this client had the answer go on after its first token. (What a controller resumed behind it
            is in `finished.resumes`.)
        finished: why it ended and what it took, once it is complete.

    Raises:
        MessageTooLargeError, SamplingInvalidError: the request cannot be sent.
    """

    def __init__(
        self, request: GenerationRequest, attempts: Attempts, on_complete: Callable[[str], None] | None = None
    ) -> None:
        self.request_id = request.request_id
        self.queued: Queued | None = None
        self.started: Started | None = None
        self.answering: Started | None = None
        self.attempts = 0
        self.resumed = 0
        self.finished: Finished | None = None
        self._request: GenerationRequest | None = request
        self._emitted = len(request.emitted_token_ids)
        self._attempts = attempts
        self._on_complete = on_complete
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._failure: LlavaGrpcError | None = None
        self._complete = False
        self._left = asyncio.Event()
        self._call: GenerateCall | None = None
        self._frames: AsyncIterator[Any] | None = None
        self._started_here = False
        self._send()

    @property
    def text_so_far(self) -> str:
        """The text that has come until now."""
        return "".join(self._pieces)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens that have come until now."""
        return tuple(self._token_ids)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Of the tokens that have come until now, if they were asked for."""
        return tuple(self._logprobs)

    @property
    def done(self) -> bool:
        """Whether nothing more will come: complete, failed or cancelled."""
        return self._complete or self._failure is not None

    async def text(self) -> str:
        """The whole answer; waits for its end.

        Raises:
            LlavaGrpcError: it did not come to its end.
        """
        while await self.next_delta() is not None:
            pass
        return self.text_so_far

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas()

    async def _deltas(self) -> AsyncIterator[Delta]:
        try:
            while (delta := await self.next_delta()) is not None:
                yield delta
        finally:
            self.leave()

    async def next_delta(self) -> Delta | None:
        """The next delta, or None at the end of a complete answer.

        Raises:
            LlavaGrpcError: the answer was cut short; the class says why.
        """
        while not self._complete:
            event = await self._next_event()
            if isinstance(event, Delta):
                return event
        return None

    async def events(self) -> AsyncIterator[Event]:
        """All that comes: Started, the deltas, Finished."""
        try:
            while not self._complete:
                if (event := await self._next_event()) is not None:
                    yield event
        finally:
            self.leave()

    async def cancel(self) -> None:
        """Cancel the request, unless it is complete; whoever reads it gets RequestCancelledError."""
        self.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self, why: str = "the request was cancelled by its own client") -> None:
        """Cancel without waiting, unless it is complete. On the event loop's thread only."""
        if not self.done:
            self._fail(RequestCancelledError(why))

    def _send(self) -> None:
        """Make an attempt: the first one, or one that goes on where the answer stands.

        Raises:
            MessageTooLargeError, SamplingInvalidError: the request cannot be sent.
        """
        assert self._request is not None, "an answer that ended is not sent again"
        request = going_on(self._request, self.answering, self._token_ids, self.attempts)
        self._call = self._attempts.generate(request)
        self._frames = aiter(self._call)
        self._started_here = False
        self.attempts += 1

    async def _next_event(self) -> Event | None:
        """Take one frame in. None at the end, and for what the reader need not see."""
        if self._failure is not None:
            raise self._failure
        try:
            frame = await self._read()
            if frame is None:
                self._end()
                return None
            event = event_from_pb(frame)
            if isinstance(event, Finished) and event.reason is FinishReason.CANCELLED:  # not by us
                raise ShuttingDownError(f"{self._attempts.address} ended the stream before the answer")
            if isinstance(event, Started) and self.answering is not None and self._token_ids:
                check_goes_on(self.answering, event, len(self._token_ids))
        except LlavaGrpcError as error:
            await self._go_on(error)
            return None
        return event if event is not None and self._take(event) else None

    async def _read(self) -> Any:
        """The next frame; None at the end of a complete answer.

        Raises:
            LlavaGrpcError: the attempt failed, or the stream was left.
        """
        assert self._frames is not None, "an answer that ended is not read"
        frame, address = None, self._attempts.address
        try:
            frame = await anext(self._frames, None)
        except grpc.aio.AioRpcError as error:
            if self.finished is None:  # else the answer is complete: what broke after it concerns nobody
                raise explain_rpc_error(error, address) from error
        except asyncio.CancelledError:
            if was_cancelled_here():
                self.leave()
                raise
            raise RequestCancelledError("the client was closed") from None
        if self._failure is not None:  # left while the frame was on its way
            raise self._failure
        if frame is None and self.finished is None:
            raise WorkerLostError(f"the answer broke off without its end: {address} ended the stream")
        return frame

    async def _go_on(self, error: LlavaGrpcError) -> None:
        """The attempt failed: make another one when it is time for it.

        Raises:
            LlavaGrpcError: there is to be none, or the stream was left.
        """
        if self._failure is None:
            self._cancel_call()
            try:
                await self._attempts.another(error, self._left)
                if self._failure is None:
                    self._send()
                    return
            except LlavaGrpcError as final:
                self._fail(final)
            except asyncio.CancelledError:
                self.leave()
                raise
        assert self._failure is not None
        raise self._failure

    def _take(self, event: Event) -> bool:
        """Take in what came; whether the reader is to see it."""
        if self.finished is not None:
            raise self._defect("something came after the end of the answer")
        if isinstance(event, Started):
            return self._take_started(event)
        if isinstance(event, Queued):
            self._attempts.answered()
            self.queued = event
            return not self._token_ids  # in the middle of an answer no place in a queue is told
        if not self._started_here:
            raise self._defect("the answer has no start")
        if isinstance(event, Delta):
            here, there = self._emitted + len(self._token_ids), event.end_offset - len(event.token_ids)
            if there != here:
                what = "are missing" if there > here else "came twice"
                raise self._defect(f"tokens {min(here, there)} to {max(here, there)} of the answer {what}")
            self._pieces.append(event.text)
            self._token_ids.extend(event.token_ids)
            self._logprobs.extend(event.logprobs)
            if event.token_ids:
                self._attempts.progressed()
        else:
            self.finished = event
        return True

    def _take_started(self, event: Started) -> bool:
        if self._started_here:
            raise self._defect("the answer started twice")
        self._attempts.answered(begun=True)
        self._started_here, self.answering = True, event
        if self.started is not None:
            self.resumed += bool(self._token_ids)
            return False
        self.started = event
        return True

    def _end(self) -> None:
        self._complete = True
        self._let_go()
        if self._on_complete is not None:
            self._on_complete(self.text_so_far)

    def _defect(self, cause: str) -> LlavaGrpcError:
        return self._fail(
            EngineFailedError(
                f"{cause} (request {self.request_id})", remedy="Send the request again, and report it: this is a defect"
            )
        )

    def _fail(self, error: LlavaGrpcError) -> LlavaGrpcError:
        """The stream has ended with an error: this one, unless it had one before."""
        self._failure = self._failure or error
        self._let_go()
        return self._failure

    def _let_go(self) -> None:
        self._left.set()
        self._cancel_call()
        self._request = self._frames = None

    def _cancel_call(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
