"""An answer as it comes.

Laws: nothing is lost or doubled: the offsets of the deltas follow on one another, or the stream fails. A stream ends in
exactly one way: complete (`finished` is set), or with one error, which is raised again whenever it is asked further.
Leaving it early, by `break`, the end of its `async with` or `cancel`, cancels the call, and with it the decoding.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import grpc.aio

from llava_grpc.client.calls import was_cancelled_here
from llava_grpc.core.stream import Delta, Event, Finished, Queued, Started, TokenLogprob
from llava_grpc.errors import EngineFailedError, LlavaGrpcError, RequestCancelledError
from llava_grpc.rpc.convert import event_from_pb
from llava_grpc.rpc.status import explain_rpc_error


class AnswerStream:
    """The deltas of one answer; iterate it, or await `text()`. For one reader at a time.

    Attributes:
        request_id: the request's name, also in the nodes' logs.
        queued: where the request stands, while it waits for a slot.
        started: who answers, once that is known.
        finished: why it ended and what it took, once it is complete.
    """

    def __init__(
        self,
        call: grpc.aio.UnaryStreamCall[Any, Any],
        request_id: str,
        address: str,
        on_complete: Callable[[str], None] | None = None,
    ) -> None:
        self.request_id = request_id
        self.queued: Queued | None = None
        self.started: Started | None = None
        self.finished: Finished | None = None
        self._call = call
        self._frames = aiter(call)
        self._address = address
        self._on_complete = on_complete
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._failure: LlavaGrpcError | None = None
        self._complete = False

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
            self._failure = RequestCancelledError(why)
            self._call.cancel()

    async def _next_event(self) -> Event | None:
        """Take one frame in. None at the end, and for a frame of a kind unknown to this release."""
        if self._failure is not None:
            raise self._failure
        try:
            frame = await anext(self._frames, None)
        except grpc.aio.AioRpcError as error:
            self._failure = self._failure or explain_rpc_error(error, self._address)
            raise self._failure from error
        except asyncio.CancelledError:
            if was_cancelled_here():
                self.leave()
                raise
            self._failure = self._failure or RequestCancelledError("the client was closed")
            raise self._failure from None
        if self._failure is not None:  # cancelled while the frame was on its way
            raise self._failure
        if frame is None:
            self._end()
            return None
        event = event_from_pb(frame)
        if event is not None:
            self._take(event)
        return event

    def _take(self, event: Event) -> None:
        if self.finished is not None:
            raise self._defect("something came after the end of the answer")
        if isinstance(event, Started):
            if self.started is not None:
                raise self._defect("the answer started twice")
            self.started = event
        elif isinstance(event, Queued):
            self.queued = event
        elif self.started is None:
            raise self._defect("the answer has no start")
        elif isinstance(event, Delta):
            here, there = len(self._token_ids), event.end_offset - len(event.token_ids)
            if there != here:
                what = "are missing" if there > here else "came twice"
                raise self._defect(f"tokens {min(here, there)} to {max(here, there)} of the answer {what}")
            self._pieces.append(event.text)
            self._token_ids.extend(event.token_ids)
            self._logprobs.extend(event.logprobs)
        else:
            self.finished = event

    def _end(self) -> None:
        if self.finished is None:
            raise self._defect("the answer broke off without its end")
        self._complete = True
        if self._on_complete is not None:
            self._on_complete(self.text_so_far)

    def _defect(self, cause: str) -> LlavaGrpcError:
        self._failure = EngineFailedError(
            f"{cause} (request {self.request_id})", remedy="Send the request again, and report it: this is a defect"
        )
        self._call.cancel()
        return self._failure
