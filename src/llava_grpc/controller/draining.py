"""ControllerService.Drain: a worker is told to drain, and what it says of its progress is passed on.

Law: the controller decides nothing here. The worker takes nothing new, tells all its controllers and leaves; it does so
whether or not anybody listens.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from llava_grpc.controller.fleet import Fleet
from llava_grpc.errors import (
    LlavaGrpcError,
    ServerUnreachableError,
    WorkerLostError,
    WorkerNotFoundError,
    WorkerUnreachableError,
)
from llava_grpc.rpc.joining import join_metadata
from llava_grpc.rpc.status import explain_rpc_error
from llava_grpc.v1 import controller_pb2 as pb
from llava_grpc.v1 import worker_pb2
from llava_grpc.v1.worker_pb2_grpc import WorkerServiceStub

SILENCE = 10.0
"""Seconds without a word, of a worker that says something every second, after which it is given up."""


async def drain_worker(
    fleet: Fleet, request: pb.ControllerServiceDrainRequest, context: grpc.aio.ServicerContext[Any, Any]
) -> None:
    """Have a worker drain, and write its progress to the context.

    Raises:
        WorkerNotFoundError: no such worker is on the register.
        WorkerUnreachableError: it does not answer.
        WorkerLostError: it fell silent before it was through.
        LlavaGrpcError: it refuses.
    """
    address = request.address
    worker = fleet.registry.at(address)
    if worker is None:
        raise WorkerNotFoundError(f"no worker of address {address!r} is on the register")
    message = worker_pb2.WorkerServiceDrainRequest(grace=request.grace if request.HasField("grace") else None)
    stub: Any = WorkerServiceStub(fleet.channel(address, worker.incarnation))
    call = stub.Drain(message, metadata=join_metadata(fleet.settings.join_token))
    clock = asyncio.get_running_loop().time
    heard = done = False
    try:
        async with asyncio.timeout(SILENCE) as limit:
            async for progress in call:
                limit.reschedule(clock() + SILENCE)
                if not heard:  # its own heartbeat says so too; whichever comes first
                    fleet.registry.drain(address, worker.incarnation)
                heard, done = True, progress.done
                await context.write(
                    pb.ControllerServiceDrainResponse(
                        running=progress.running, ended=progress.ended, grace_left=progress.grace_left, done=done
                    )
                )
    except TimeoutError:
        raise _lost(address, heard, f"for {SILENCE:g} s") from None
    except grpc.aio.AioRpcError as rpc_error:
        if done:
            return
        error = explain_rpc_error(rpc_error, address)
        raise (
            _lost(address, heard, error.cause) if isinstance(error, ServerUnreachableError) else error
        ) from rpc_error
    finally:
        call.cancel()
    if not done:
        raise _lost(address, heard, "any more")


def _lost(address: str, heard: bool, how: str) -> LlavaGrpcError:
    if heard:
        return WorkerLostError(
            f"worker {address} was lost before it had drained ({how})",
            remedy="Look at its log; its streams go on elsewhere",
        )
    return WorkerUnreachableError(
        f"worker {address} does not answer ({how})",
        remedy="It has not been told: try again when it answers, or end its process",
    )
