"""A worker that answers as a test tells it to: its transport, not its engine, is the thing tested."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from llava_grpc.config import PROTOCOL_VERSION
from llava_grpc.errors import AllSlotsTakenError
from llava_grpc.rpc.status import abort
from llava_grpc.v1 import controller_pb2, inference_pb2, worker_pb2
from llava_grpc.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from llava_grpc.v1.worker_pb2_grpc import add_WorkerServiceServicer_to_server

Behaviour = Callable[[inference_pb2.GenerateRequest, Any], Awaitable[None]]


class FakeWorker:
    """Says who it is, and answers Generate with a behaviour. Counts the calls.

    Attributes:
        mute: it does not say who it is any more, as one that was stopped.
        tokens: that it says it has made.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.incarnation = uuid.uuid4().hex
        self.address = ""
        self.calls = 0
        self.mute = False
        self.tokens = 0

    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:  # noqa: N802
        return inference_pb2.ListModelsResponse()

    async def GetStatus(self, request: Any, context: Any) -> worker_pb2.GetStatusResponse:  # noqa: N802
        if self.mute:
            await asyncio.get_running_loop().create_future()
        load = controller_pb2.Load(running=self.calls)
        return worker_pb2.GetStatusResponse(incarnation=self.incarnation, load=load, tokens_generated=self.tokens)

    async def Drain(self, request: Any, context: Any) -> None:  # noqa: N802
        await context.write(worker_pb2.WorkerServiceDrainResponse(done=True))

    async def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> None:  # noqa: N802
        self.calls += 1
        await self.behaviour(request, context)

    def registration(self, **changes: Any) -> controller_pb2.RegisterRequest:
        values: dict[str, Any] = {
            "address": self.address,
            "incarnation": self.incarnation,
            "protocol_version": PROTOCOL_VERSION,
            "models": [inference_pb2.Model(name="echo")],
            "speed": 1.0,
            "slots": 8,
        }
        return controller_pb2.RegisterRequest(**{**values, **changes})


@asynccontextmanager
async def fake_worker(behaviour: Behaviour | FakeWorker) -> AsyncIterator[FakeWorker]:
    """A serving one, not yet registered."""
    server = grpc.aio.server()
    worker = behaviour if isinstance(behaviour, FakeWorker) else FakeWorker(behaviour)
    add_InferenceServiceServicer_to_server(worker, server)
    add_WorkerServiceServicer_to_server(worker, server)
    worker.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield worker
    finally:
        await server.stop(0)


async def dies_at_once(request: inference_pb2.GenerateRequest, context: Any) -> None:
    """What a client sees of a worker that died: UNAVAILABLE with nobody's details."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


async def dies_after_started(request: inference_pb2.GenerateRequest, context: Any) -> None:
    """Takes the request up, then dies."""
    await context.write(inference_pb2.GenerateResponse(started=inference_pb2.Started(worker_address="the dead one")))
    await dies_at_once(request, context)


async def ends_early(request: inference_pb2.GenerateRequest, context: Any) -> None:
    """Ends the stream in good order but without an answer."""


async def declines(request: inference_pb2.GenerateRequest, context: Any) -> None:
    """Has no slot: others keep it busy."""
    await abort(context, AllSlotsTakenError("all 1 slots are taken"))


async def breaks_after_the_end(request: inference_pb2.GenerateRequest, context: Any) -> None:
    """Delivers a whole answer, then dies before the call's own end."""
    await context.write(inference_pb2.GenerateResponse(started=inference_pb2.Started()))
    delta = inference_pb2.Delta(text=["one"], token_ids=[1], end_offset=1)
    await context.write(inference_pb2.GenerateResponse(delta=delta))
    await context.write(inference_pb2.GenerateResponse(finished=inference_pb2.Finished()))
    await dies_at_once(request, context)
