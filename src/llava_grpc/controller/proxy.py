"""The data path through the controller: a worker's frames to the client, as the bytes that they are.

Laws: frames are told apart by their first byte and passed on unparsed; only the last one, Finished, is looked into.
Started is held back until the first frame of the
answer itself, so that a worker that dies before it can be replaced unseen. A client that goes away cancels the
worker's stream at once. What to do after a failure is `core.recovery`'s to say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import grpc
import grpc.aio

from llava_grpc.controller.fleet import Fleet
from llava_grpc.core.admission import RETRY_WHEN_FULL, Entry
from llava_grpc.core.dispatcher import Assignment
from llava_grpc.core.recovery import judge
from llava_grpc.core.stream import Queued
from llava_grpc.errors import (
    AllSlotsTakenError,
    DeadlineExceededError,
    EngineFailedError,
    LlavaGrpcError,
    MessageTooLargeError,
    RequestCancelledError,
    WorkerLostError,
)
from llava_grpc.rpc.convert import event_to_pb
from llava_grpc.rpc.status import from_rpc_error
from llava_grpc.v1 import inference_pb2 as pb

GENERATE = "/llava_grpc.v1.InferenceService/Generate"

DECLINED_PAUSE = 0.05
"""Seconds before workers that all declined are asked again."""

_log = logging.getLogger(__name__)
_Context = grpc.aio.ServicerContext[bytes, bytes]


class _Frame(Enum):
    """Frames by the first byte of their serialized form: the field number and wire type of GenerateResponse.event."""

    STARTED = 0x0A
    DELTA = 0x12
    FINISHED = 0x1A
    QUEUED = 0x22


class _Progress:
    """How far a client's stream has come, over all attempts."""

    def __init__(self) -> None:
        self.delivered = False
        self.usage: pb.Usage | None = None


@dataclass(slots=True)
class _Trail:
    """Where a request has been: how often it was tried, which workers it lost, which declined it lately."""

    attempts: int = 0
    lost: set[str] = field(default_factory=set)
    declined: set[str] = field(default_factory=set)


class Proxy:
    """See the module."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def answer(self, context: _Context, model: str, request: bytes, entry: Entry) -> None:
        """Have `request` (a serialized GenerateRequest for `model`) answered by some worker, when one has room.

        Raises:
            LlavaGrpcError: dispatch found nobody, or a worker's failure is final.
        """
        progress = _Progress()
        outcome = RequestCancelledError.reason
        try:
            await self._answer(context, model, request, entry, progress)
            outcome = "ok"
        except LlavaGrpcError as error:
            outcome = error.reason
            raise
        finally:
            usage = progress.usage or pb.Usage()
            self._fleet.finish(entry, outcome, usage.prompt_tokens, usage.completion_tokens)

    async def _answer(self, context: _Context, model: str, request: bytes, entry: Entry, progress: _Progress) -> None:
        fleet = self._fleet
        counters = fleet.dispatcher.counters
        trail = _Trail()

        async def tell(queued: Queued) -> None:
            await context.write(event_to_pb(queued).SerializeToString())

        assignment = await fleet.acquire(model, entry, tell)
        while True:
            _log.info("to worker %s, attempt %d", assignment.address, trail.attempts)
            try:
                await self._stream(context, assignment, _with_attempt(request, trail.attempts), progress)
                return
            except LlavaGrpcError as error:
                failure = error
            finally:
                if progress.usage is not None:
                    counters.charge(
                        entry.tenant,
                        prompt=progress.usage.prompt_tokens - entry.prompt_tokens,
                        answer=progress.usage.completion_tokens,
                    )
                fleet.release(assignment)
            verdict = judge(
                failure,
                delivered=progress.delivered,
                lost=len(trail.lost),
                max_attempts=fleet.settings.max_attempts,
            )
            if verdict.suspect:
                fleet.suspect(assignment.address, assignment.incarnation)
            _log.log(
                logging.WARNING if verdict.suspect else logging.INFO,
                "worker %s: %s: %s%s",
                assignment.address,
                failure.reason,
                failure.cause,
                "; trying another" if verdict.retry else "",
            )
            if not verdict.retry:
                raise failure
            counters.charge(entry.tenant, prompt=-entry.prompt_tokens)  # the next attempt is charged for it
            trail.attempts += 1
            (trail.declined if verdict.declined else trail.lost).add(assignment.incarnation)
            assignment = await self._another(model, entry, trail, tell, failure)

    async def _another(
        self, model: str, entry: Entry, trail: _Trail, tell: Callable[[Queued], Awaitable[None]], why: LlavaGrpcError
    ) -> Assignment:
        """A worker for one more attempt: one that was not tried yet, when one of those has room.

        Where all are well but decline (others keep them busy), they are asked again, for as long as a request may wait.

        Raises:
            LlavaGrpcError: `why` the last attempt failed, where there is nobody: it tells more than that.
        """
        fleet = self._fleet
        try:
            assignment = fleet.dispatcher.assign(model, entry, fleet.clock(), trail.lost | trail.declined)
            if assignment is not None:
                fleet.dispatcher.counters.charge(entry.tenant, prompt=entry.prompt_tokens)
                return assignment
        except LlavaGrpcError:
            if not trail.declined:
                raise why from None
            settings = fleet.settings
            if settings.queue_length == 0 or fleet.clock() >= entry.arrived + settings.queue_wait:
                raise AllSlotsTakenError(
                    f"every worker that serves {model!r} is busy with requests of others", retry_after=RETRY_WHEN_FULL
                ) from None
            trail.declined.clear()
            await asyncio.sleep(DECLINED_PAUSE)
        return await fleet.acquire(model, entry, tell)

    async def _stream(self, context: _Context, assignment: Assignment, request: bytes, progress: _Progress) -> None:
        """Forward one worker's stream to its end.

        Raises:
            WorkerLostError: the transport broke, or the stream ended without its last frame.
            LlavaGrpcError: the worker answered with an error.
        """
        generate: Any = self._fleet.channel(assignment.address, assignment.incarnation).unary_stream(GENERATE)
        call = generate(request, timeout=context.time_remaining())
        held = b""
        try:
            async for frame in call:
                kind = frame[0] if frame else None
                if kind == _Frame.STARTED.value:
                    held = frame
                    continue
                if kind == _Frame.QUEUED.value:  # of a controller that is our worker; the answer has not begun
                    await context.write(frame)
                    continue
                if not progress.delivered:
                    progress.delivered = True
                    self._fleet.was_read(assignment)
                    await context.write(held)
                await context.write(frame)
                if kind == _Frame.FINISHED.value:  # the one frame that is looked into: who is to be charged how much
                    progress.usage = pb.GenerateResponse.FromString(frame).finished.usage
        except grpc.aio.AioRpcError as rpc_error:
            if progress.usage is not None:  # the answer is complete: what broke after it concerns nobody
                _log.info("worker %s: %s after the end of the answer", assignment.address, rpc_error.code().name)
                return
            raise _failure(rpc_error, assignment.address) from rpc_error
        except asyncio.CancelledError:
            # Either the client went away (this task is cancelled) or gRPC cancelled the worker's call under us.
            task = asyncio.current_task()
            if task is not None and task.cancelling() == 0 and call.done():
                raise WorkerLostError(f"the stream of worker {assignment.address} was cut") from None
            raise
        finally:
            call.cancel()
        if progress.usage is None:
            raise WorkerLostError(f"worker {assignment.address} ended the stream before the answer")


def _with_attempt(request: bytes, attempt: int) -> bytes:
    """The request with its attempt set. Joined messages merge and the last scalar counts: no picture is copied twice
    through a parser for the sake of one number."""
    return request + pb.GenerateRequest(attempt=attempt).SerializeToString() if attempt else request


def _failure(rpc_error: grpc.aio.AioRpcError, address: str) -> LlavaGrpcError:
    """What a failed stream means. A status that no llava-grpc worker wrote is the transport's: the worker is lost."""
    typed = from_rpc_error(rpc_error)
    if typed is not None:
        return typed
    details = rpc_error.details() or ""
    match rpc_error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceededError("the deadline passed before the answer was complete")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return MessageTooLargeError(f"worker {address} does not take a message of this size ({details})")
        case grpc.StatusCode.UNIMPLEMENTED:
            return EngineFailedError(f"worker {address} does not know Generate")
        case code:
            return WorkerLostError(f"worker {address} was lost ({code.name}: {details})")
