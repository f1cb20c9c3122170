"""The data path through the controller: a worker's frames to the client, and on with another worker where one is lost.

Laws: a client that goes away cancels the worker's stream at once. A request holds one assignment at a time and gives
each back. What to do after a failure is `core.recovery`'s to say, what the client gets `controller.relay`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from llava_grpc.controller.fleet import Fleet
from llava_grpc.controller.relay import Frame, Relay
from llava_grpc.controller.watchdog import Watchdog
from llava_grpc.core.admission import RETRY_WHEN_FULL, Entry
from llava_grpc.core.dispatcher import Assignment
from llava_grpc.core.recovery import Trail, Verdict, gave_up
from llava_grpc.core.stream import Queued
from llava_grpc.errors import (
    AllSlotsTakenError,
    DeadlineExceededError,
    EngineFailedError,
    LlavaGrpcError,
    MessageTooLargeError,
    RequestCancelledError,
    ShuttingDownError,
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


@dataclass(slots=True)
class _Request:
    """A request under way: as it stands in the queue, what its client has, where it was. Incarnations."""

    model: str
    entry: Entry
    relay: Relay
    trail: Trail
    tell: Callable[[Queued], Awaitable[None]]
    lost: set[str] = field(default_factory=set)
    declined: set[str] = field(default_factory=set)
    kept: int = 0
    """Bytes held for a resume."""


class Proxy:
    """See the module."""

    def __init__(self, fleet: Fleet, watchdog: Watchdog) -> None:
        self._fleet = fleet
        self._watchdog = watchdog

    async def answer(self, context: _Context, relay: Relay, model: str, entry: Entry) -> None:
        """Have the relay's request, for `model`, answered by some worker, when one has room.

        Raises:
            LlavaGrpcError: dispatch found nobody, or a worker's failure is final.
        """

        async def tell(queued: Queued) -> None:
            await context.write(event_to_pb(queued).SerializeToString())

        fleet = self._fleet
        asked = _Request(model, entry, relay, Trail(fleet.settings.max_attempts), tell)
        outcome = RequestCancelledError.reason
        fleet.retry_budget.request(fleet.clock())
        try:
            await self._answer(context, asked)
            outcome = "ok"
        except LlavaGrpcError as error:
            outcome = error.reason
            raise
        finally:
            fleet.let_go(asked.kept)
            usage = relay.usage or pb.Usage(completion_tokens=relay.log.made)
            if relay.usage is None:
                fleet.dispatcher.counters.charge(entry.tenant, answer=relay.log.made)
            fleet.finish(entry, outcome, usage.prompt_tokens, usage.completion_tokens)

    async def _answer(self, context: _Context, asked: _Request) -> None:
        fleet, relay = self._fleet, asked.relay
        counters, entry = fleet.dispatcher.counters, asked.entry
        assignment = await fleet.acquire(asked.model, entry, asked.tell)
        while True:
            _log.info("to worker %s, attempt %d", assignment.address, relay.sent)
            try:
                await self._stream(context, assignment, asked)
                return
            except LlavaGrpcError as error:
                failure = error
            finally:
                if relay.usage is not None:
                    counters.charge(
                        entry.tenant,
                        prompt=relay.usage.prompt_tokens - entry.prompt_tokens,
                        answer=relay.usage.completion_tokens - relay.log.base,
                    )
                fleet.release(assignment)
            verdict = asked.trail.judge(failure, relay.log.offset, fleet.clock())
            if verdict.suspect:
                fleet.suspect(assignment.address, assignment.incarnation)
            going_on = self._goes_on(verdict, relay)
            _log.log(
                logging.WARNING if verdict.suspect else logging.INFO,
                "worker %s: %s: %s%s",
                assignment.address,
                failure.reason,
                failure.cause,
                "" if not going_on else "; resuming elsewhere" if relay.begun else "; trying another",
            )
            if not going_on:
                raise gave_up(failure, relay.log.offset)
            counters.charge(entry.tenant, prompt=-entry.prompt_tokens)  # the next attempt is charged for it
            (asked.declined if verdict.declined else asked.lost).add(assignment.incarnation)
            try:
                assignment = await self._another(asked, failure)
            except LlavaGrpcError as error:
                raise gave_up(error, relay.log.offset) from failure

    def _goes_on(self, verdict: Verdict, relay: Relay) -> bool:
        """A retry is also to be within the budget for them; going on with an answer and asking another worker than one
        that declined are not."""
        if not verdict.again or verdict.declined or relay.begun:
            return verdict.again
        return self._fleet.retry_budget.retry(self._fleet.clock())

    async def _another(self, asked: _Request, why: LlavaGrpcError) -> Assignment:
        """A worker for one more attempt: one that was not tried yet, when one of those has room.

        Where all who seem to have room decline (others keep them busy), they are asked again, for as long as a request
        may wait.
        An answer that has begun also waits, as long, for a worker that can go on with it to come back.

        Raises:
            LlavaGrpcError: `why` the last attempt failed, where there is nobody: it tells more than that.
        """
        fleet, entry, relay = self._fleet, asked.entry, asked.relay
        if pause := asked.trail.backoff(fleet.world.random):
            await asyncio.sleep(pause)
        if relay.begun_under is not None:
            entry = replace(entry, arrived=fleet.clock(), begun=relay.begun_under)
        try:
            assignment = fleet.dispatcher.assign(asked.model, entry, fleet.clock(), asked.lost | asked.declined)
            if assignment is not None:
                fleet.dispatcher.counters.charge(entry.tenant, prompt=entry.prompt_tokens)
                return assignment
        except LlavaGrpcError:
            if not asked.declined and entry.begun is None:
                raise why from None
            asked.lost.clear()  # whoever is well again may be asked again
        if asked.declined:  # to us they seem to have room: they would be asked again at once, and again
            await self._pause_for_those_who_declined(asked)
        return await fleet.acquire(asked.model, entry, _tell_nobody if relay.begun else asked.tell)

    async def _pause_for_those_who_declined(self, asked: _Request) -> None:
        fleet, settings = self._fleet, self._fleet.settings
        begun = asked.relay.begun
        since = asked.trail.broken_since if begun else asked.entry.arrived
        if (settings.queue_length == 0 and not begun) or fleet.clock() >= since + settings.queue_wait:
            raise AllSlotsTakenError(
                f"every worker that serves {asked.model!r} is busy with requests of others", retry_after=RETRY_WHEN_FULL
            )
        asked.declined.clear()
        await asyncio.sleep(DECLINED_PAUSE)

    async def _stream(self, context: _Context, assignment: Assignment, asked: _Request) -> None:
        """Forward one worker's stream to its end.

        Raises:
            WorkerLostError: the transport broke, the worker fell silent, or the stream ended without its last frame.
            LlavaGrpcError: the worker answered with an error, or cannot go on with the answer.
        """
        fleet, relay = self._fleet, asked.relay
        if fleet.registry.find(assignment.address, assignment.incarnation) is None:  # since it was chosen
            raise ShuttingDownError(f"worker {assignment.address} has left")
        generate: Any = fleet.channel(assignment.address, assignment.incarnation).unary_stream(GENERATE)
        call = generate(relay.next_attempt(), timeout=context.time_remaining())
        watched = self._watchdog.watch(assignment.address, assignment.incarnation, call.cancel)
        vitals = watched.vitals
        try:
            async for frame in call:
                vitals.frames += 1
                kind = frame[0] if frame else None
                if kind == Frame.DELTA:
                    if not vitals.begun:
                        vitals.begun = True
                        fleet.was_read(assignment)
                        self._keep(asked)
                    await relay.deltas(frame)
                elif kind == Frame.STARTED:
                    relay.start(frame)
                elif kind == Frame.FINISHED:
                    await relay.finish(frame)
                elif kind == Frame.QUEUED:
                    await relay.wait(frame)
        except grpc.aio.AioRpcError as rpc_error:
            if relay.usage is not None:  # the answer is complete: what broke after it concerns nobody
                _log.info("worker %s: %s after the end of the answer", assignment.address, rpc_error.code().name)
                return
            raise _failure(rpc_error, assignment.address) from rpc_error
        except asyncio.CancelledError:
            # Either the client went away (this task is cancelled), or the worker's call was cancelled under us: by the
            # watchdog, or by gRPC.
            task = asyncio.current_task()
            if task is not None and task.cancelling() == 0 and call.done():
                if relay.usage is not None:  # the answer is complete: only the call's own end was lost
                    return
                why = watched.silence or f"the stream of worker {assignment.address} was cut"
                raise WorkerLostError(why) from None
            raise
        finally:
            self._watchdog.leave(watched)
            call.cancel()
        if relay.usage is None:
            raise WorkerLostError(f"worker {assignment.address} ended the stream before the answer")

    def _keep(self, asked: _Request) -> None:
        """The answer begins: from now on the request is kept for a resume alone, if there is memory for it."""
        if asked.kept or asked.relay.begun:
            return
        if self._fleet.keep(asked.relay.request_bytes):
            asked.kept = asked.relay.request_bytes
        else:
            asked.relay.drop_request()


async def _tell_nobody(queued: Queued) -> None:
    """In the middle of an answer no place in a queue is told."""


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
