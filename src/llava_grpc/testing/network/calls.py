"""A call as its caller holds it: what of grpc.aio's calls this project's nodes use.

As there: a call that is cancelled, or whose waiting reader is, raises CancelledError; every other end but OK raises
AioRpcError; what had come before the end can be read first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from llava_grpc.testing.network.wire import Connection, Pipe

if TYPE_CHECKING:
    from llava_grpc.testing.network.channels import Channel
    from llava_grpc.testing.network.servers import ServerCall

Metadata = tuple[tuple[str, str | bytes], ...]


class Call:
    """Of any kind. The network calls `begin` once, where it gets that far; `take` and `end` from then on."""

    def __init__(
        self,
        channel: Channel,
        method: str,
        serialize: Callable[[Any], bytes] | None,
        deserialize: Callable[[bytes], Any] | None,
        timeout: float | None,
        metadata: Metadata,
    ) -> None:
        loop = channel.network.loop
        self.method, self.metadata = method, metadata
        self.first: bytes | None = None
        """The message that goes with the call's beginning."""
        self.served: ServerCall | None = None
        """The other end, for the network; None until it is there."""
        self._channel, self._loop = channel, loop
        self._serialize, self._deserialize = serialize, deserialize
        self._connection: Connection | None = None
        self._up = Pipe()
        self._inbox: deque[bytes] = deque()
        self._news: list[asyncio.Future[None]] = []
        self._status: grpc.StatusCode | None = None
        self._details = ""
        self._trailers: Metadata = ()
        self._cancelled_here = False
        self._callbacks: list[Callable[[Any], None]] = []
        self.deadline = None if timeout is None else loop.time() + timeout
        self._timer = None if timeout is None else loop.call_later(timeout, self._too_late)

    # ------------------------------------------------------------------------------------------------ for the network

    def begin(self, connection: Connection) -> None:
        """There is a connection: the call goes out over it."""
        self._connection = connection
        connection.calls[self] = None
        connection.to_server(self._up, connection.server.take, connection, self)
        if connection.is_silent():
            connection.watch()
        self._wake()

    def take(self, message: bytes) -> None:
        """A message came."""
        if self._status is None:
            self._inbox.append(message)
            self._wake()

    def end(self, code: grpc.StatusCode, details: str, trailers: Metadata = ()) -> None:
        """The call is over. The first end counts."""
        if self._status is not None:
            return
        self._status, self._details, self._trailers = code, details, trailers
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.calls.pop(self, None)
        self._channel.ended(self)
        self._wake()
        for callback in self._callbacks:
            callback(self)

    def _too_late(self) -> None:
        if self._status is None:
            self._tell_server()
            self.end(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _tell_server(self) -> None:
        connection = self._connection
        if connection is not None and connection.client_open:
            connection.to_server(self._up, _cancel_served, self)

    def _wake(self) -> None:
        news, self._news = self._news, []
        for future in news:
            if not future.done():
                future.set_result(None)

    # ------------------------------------------------------------------------------------------------- for the caller

    def cancel(self) -> bool:
        """End it; whether it was still going on."""
        if self._status is not None:
            return False
        self._cancelled_here = True
        self._tell_server()
        self.end(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
        return True

    def cancelled(self) -> bool:
        """Whether it ended so."""
        return self._status is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        """Whether it is over."""
        return self._status is not None

    def time_remaining(self) -> float | None:
        """Seconds to its deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - self._loop.time())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call it when the call is over."""
        if self._status is not None:
            callback(self)
        else:
            self._callbacks.append(callback)

    async def code(self) -> grpc.StatusCode:
        """How it ended, once it has."""
        while self._status is None:
            await self._until_news()
        return self._status

    async def _until_news(self) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._news.append(future)
        try:
            await future
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _check_status(self) -> None:
        """Raise how the call ended, unless well."""
        if self._cancelled_here:
            raise asyncio.CancelledError
        assert self._status is not None, "it is over"
        if self._status is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                self._status,
                grpc.aio.Metadata(),
                grpc.aio.Metadata.from_tuple(self._trailers),
                details=self._details,
            )

    def _serialized(self, message: Any) -> bytes:
        return message if self._serialize is None else self._serialize(message)

    def _deserialized(self, message: bytes) -> Any:
        return message if self._deserialize is None else self._deserialize(message)


def _cancel_served(call: Call) -> None:
    if call.served is not None:
        call.served.lost()


class UnaryCall(Call):
    """One message each way: await it."""

    def send(self, request: Any) -> None:
        """At once, before anything else."""
        self.first = self._serialized(request)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        while self._status is None:
            await self._until_news()
        self._check_status()
        return self._deserialized(self._inbox[0])


class StreamCall(Call):
    """Messages come back: iterate it, or read."""

    _frames: AsyncIterator[Any] | None = None

    def send(self, request: Any) -> None:
        """At once, before anything else."""
        self.first = self._serialized(request)

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._frames is None:
            self._frames = self._iterate()
        return self._frames

    async def _iterate(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    async def read(self) -> Any:
        """The next message, or EOF at a good end."""
        while not self._inbox and self._status is None:
            await self._until_news()
        if self._cancelled_here:
            raise asyncio.CancelledError
        if self._inbox:
            return self._deserialized(self._inbox.popleft())
        self._check_status()
        return grpc.aio.EOF


class BothWaysCall(StreamCall):
    """Messages go as well."""

    async def write(self, message: Any) -> None:
        """Send one, once there is a connection."""
        if self._status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        while (connection := self._connection) is None and not self.done():
            await self._until_news()
        if connection is None or self.done():
            self._check_status()
        else:
            connection.to_server(self._up, _feed, self, self._serialized(message))

    async def done_writing(self) -> None:
        """No more will be sent."""
        if self._status is None and self._connection is not None:
            self._connection.to_server(self._up, _feed, self, None)


def _feed(call: Call, message: bytes | None) -> None:
    if call.served is not None:
        call.served.feed(message)
