"""A worker's end of a stream of heartbeats.

Laws: it is known at once when the stream ends, not at the next heartbeat; whoever opens a stream closes it, and nothing
of it runs on after that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc.aio

from llava_grpc.errors import DeadlineExceededError, ServerUnreachableError
from llava_grpc.rpc.joining import Metadata
from llava_grpc.rpc.status import explain_rpc_error
from llava_grpc.v1 import controller_pb2 as pb
from llava_grpc.v1.controller_pb2_grpc import ControllerServiceStub

ANSWER_TIMEOUT = 10.0
"""Seconds that a controller has to answer the first heartbeat."""


class HeartbeatStream:
    """See the module. `begin`, then `keep`, then `close`.

    Args:
        channel: to the controller.
        controller: its address, for what is said of errors.
        heartbeat: makes the next one. Called as it is sent.
        metadata: what shows that the worker may join.

    `begin` and `keep` raise LlavaGrpcError where the stream broke, or could not be opened; that is a
    ProtocolVersionError where the controller is older than these streams.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        controller: str,
        heartbeat: Callable[[], pb.HeartbeatsRequest],
        metadata: Metadata = (),
    ) -> None:
        self._controller = controller
        self._heartbeat = heartbeat
        stub: Any = ControllerServiceStub(channel)
        self._call = stub.Heartbeats(metadata=metadata)
        self._news: asyncio.Task[Any] = asyncio.ensure_future(self._call.read())
        self._writing = asyncio.Lock()

    async def begin(self) -> bool:
        """Send the first heartbeat; whether the controller knows the worker."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self.send()
                return await self._answer()
        except TimeoutError:
            raise DeadlineExceededError(
                f"{self._controller} did not answer a heartbeat within {ANSWER_TIMEOUT:g} s"
            ) from None

    async def keep(self, interval: float, first: float) -> None:
        """Send heartbeats, the first in `first` seconds and then one every `interval`, until the controller does not
        know the worker any more."""
        clock = asyncio.get_running_loop().time
        due = clock() + first
        while True:
            done, _ = await asyncio.wait({self._news}, timeout=max(0.0, due - clock()))
            if not done:
                await self.send()
                due = clock() + interval
            elif not await self._answer():
                return

    async def send(self) -> None:
        """Send a heartbeat now, beside those that are due."""
        # A call that is over refuses; the answer that is read from it says why.
        async with self._writing:
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                await self._call.write(self._heartbeat())

    async def close(self) -> None:
        """End it. May be called at any stage."""
        self._call.cancel()
        await asyncio.gather(self._news, return_exceptions=True)

    async def _answer(self) -> bool:
        await asyncio.wait({self._news})  # a bare await would cancel the call with the one who waits
        try:
            answer = self._news.result()
        except grpc.aio.AioRpcError as rpc_error:
            raise explain_rpc_error(rpc_error, self._controller) from rpc_error
        except asyncio.CancelledError:
            raise ServerUnreachableError(f"the channel to {self._controller} was closed") from None
        if answer is grpc.aio.EOF:
            raise ServerUnreachableError(f"{self._controller} ended the stream of heartbeats")
        if answer.known:
            self._news = asyncio.ensure_future(self._call.read())
        return bool(answer.known)
