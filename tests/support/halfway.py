"""Workers that answer as a real one does, but only so far."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from llava_grpc.errors import ShuttingDownError
from llava_grpc.rpc.status import abort
from llava_grpc.v1 import inference_pb2 as pb
from tests.support.fake_worker import Behaviour


def passes_on(real: Any, deltas: int, then: Behaviour, fingerprint: pb.Fingerprint | None = None) -> Behaviour:
    """What the worker behind the stub `real` answers, up to so many Delta frames; then something else.

    `fingerprint` replaces the real one.
    """

    async def behaviour(request: pb.GenerateRequest, context: Any) -> None:
        left = deltas
        call = real.Generate(request)
        async for frame in call:
            if frame.HasField("started") and fingerprint is not None:
                frame.started.fingerprint.CopyFrom(fingerprint)
            if frame.HasField("delta"):
                if not left:
                    break
                left -= 1
            if frame.HasField("finished") and left == 0:
                break
            await context.write(frame)
        else:
            return
        call.cancel()
        await then(request, context)

    return behaviour


async def dies(request: pb.GenerateRequest, context: Any) -> None:
    """As the transport says it."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


async def stops(request: pb.GenerateRequest, context: Any) -> None:
    """In good order."""
    await abort(context, ShuttingDownError("the worker is stopping"))


async def says_cancelled(request: pb.GenerateRequest, context: Any) -> None:
    """Ends the answer as a closing engine does."""
    finished = pb.Finished(reason=pb.FINISH_REASON_CANCELLED)
    await context.write(pb.GenerateResponse(finished=finished))


async def ends(request: pb.GenerateRequest, context: Any) -> None:
    """Without a last frame."""


async def hangs(request: pb.GenerateRequest, context: Any) -> None:
    """Says nothing any more."""
    await asyncio.get_running_loop().create_future()
