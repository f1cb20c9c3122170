"""A channel: connects when first used, says how it is, connects again by itself.

As measured of gRPC: a refused connection fails the calls that wait for it, and those that begin while it is tried
again; a machine that says nothing is given up after five seconds; tries follow each other within half a second; a
connection that breaks leaves the channel idle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio

from llava_grpc.testing.network.calls import BothWaysCall, Call, Metadata, StreamCall, UnaryCall
from llava_grpc.testing.network.wire import Connection, Pipe, Wire
from llava_grpc.testing.virtual_time import Process

if TYPE_CHECKING:
    from llava_grpc.testing.network.servers import Server

CONNECT_TIMEOUT = 5.0
BACKOFF_FIRST, BACKOFF_MOST, BACKOFF_FACTOR = 0.1, 0.5, 1.6
"""Seconds between two tries, with a fifth of jitter."""

_State = grpc.ChannelConnectivity
_Serializer = Callable[[Any], bytes] | None
_Deserializer = Callable[[bytes], Any] | None


class Channel(grpc.aio.Channel):
    """See the module. Belongs to a process."""

    def __init__(self, network: Wire, process: Process, address: str) -> None:
        self.network, self.process, self.address = network, process, address
        self._state = _State.IDLE
        self._changed: list[asyncio.Future[None]] = []
        self._connection: Connection | None = None
        self._waiting: list[Call] = []
        self._open: dict[Call, None] = {}
        self._closing = False
        self._try = 0
        self._backoff = BACKOFF_FIRST

    # ------------------------------------------------------------------------------------------------ for the network

    def disconnected(self, connection: Connection) -> None:
        """The connection is broken, or takes no new calls."""
        if self._connection is connection:
            self._connection = None
            if self._state is not _State.SHUTDOWN:
                self._turn(_State.IDLE)

    def ended(self, call: Call) -> None:
        """The call is over."""
        if call in self._open:
            del self._open[call]
            self.network.calling[self.process, call.method] -= 1
        if not self._open:
            self._wake()

    def _connect(self) -> None:
        self._try += 1
        if self._state is not _State.TRANSIENT_FAILURE:  # which lasts until a try succeeds
            self._turn(_State.CONNECTING)
        network, attempt = self.network, self._try
        network.loop.call_later(CONNECT_TIMEOUT, self._failed, attempt, "timed out", context=self.process.context)
        server = network.listening.get(self.address)
        if server is not None:
            network.send(self.process, server.process, Pipe(), self._reach, server, attempt)
        elif network.host_of(self.address) not in network.dark:
            back = 2 * network.random.uniform(0.0002, 0.001)
            network.loop.call_later(back, self._failed, attempt, "Connection refused", context=self.process.context)

    def _reach(self, server: Server, attempt: int) -> None:
        """In the server's process."""
        if self.network.listening.get(server.address) is server:
            connection = Connection(self.network, self, server)
            self.network.connections[connection] = None
            connection.to_client(Pipe(), self._connected, connection, attempt)
        else:
            self.network.send(server.process, self.process, Pipe(), self._failed, attempt, "Connection refused")

    def _connected(self, connection: Connection, attempt: int) -> None:
        if attempt != self._try or self._state is _State.SHUTDOWN or not connection.client_open:
            connection.close_client("given up meanwhile")
            return
        self._try += 1  # its timeout is void
        self._backoff = BACKOFF_FIRST
        self._connection = connection
        waiting, self._waiting = self._waiting, []
        self._turn(_State.READY)
        for call in waiting:
            if not call.done():
                call.begin(connection)

    def _failed(self, attempt: int, why: str) -> None:
        if attempt != self._try or self._state is _State.SHUTDOWN:
            return
        self._try += 1
        waiting, self._waiting = self._waiting, []
        self._turn(_State.TRANSIENT_FAILURE)
        for call in waiting:
            call.end(grpc.StatusCode.UNAVAILABLE, f"failed to connect to {self.address}: {why}")
        pause = self._backoff * self.network.random.uniform(0.8, 1.2)
        self._backoff = min(self._backoff * BACKOFF_FACTOR, BACKOFF_MOST)
        self.network.loop.call_later(pause, self._again, self._try, context=self.process.context)

    def _again(self, attempt: int) -> None:
        if attempt == self._try and self._state is _State.TRANSIENT_FAILURE and self.process.alive:
            self._connect()

    def _turn(self, state: grpc.ChannelConnectivity) -> None:
        if state is not self._state:
            self._state = state
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, []
        for future in changed:
            if not future.done():
                future.set_result(None)

    def _begin(self, call: Call) -> None:
        if self._closing:
            raise grpc.aio.UsageError("Channel is closed.")
        self._open[call] = None
        self.network.calling[self.process, call.method] += 1
        if self._connection is not None:
            call.begin(self._connection)
        elif self._state is _State.TRANSIENT_FAILURE:
            details = f"failed to connect to {self.address}"
            self.network.loop.call_soon(call.end, grpc.StatusCode.UNAVAILABLE, details)
        else:
            self._waiting.append(call)
            if self._state is _State.IDLE:
                self._connect()

    # ------------------------------------------------------------------------------------------------- for the caller

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """How it is."""
        if try_to_connect and self._state is _State.IDLE:
            self._connect()
        return self._state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until it is no longer so."""
        while self._state is last_observed_state:
            await self._until_changed()

    async def channel_ready(self) -> None:
        """Wait until it is connected."""
        while self.get_state(try_to_connect=True) is not _State.READY:
            await self._until_changed()

    async def _until_changed(self) -> None:
        future: asyncio.Future[None] = self.network.loop.create_future()
        self._changed.append(future)
        await future

    async def close(self, grace: float | None = None) -> None:
        """No new calls; those that are open get `grace` seconds to end."""
        self._closing = True
        try:
            if grace and self._open:
                async with asyncio.timeout(grace):
                    while self._open:
                        await self._until_changed()
        except TimeoutError:
            pass
        finally:
            for call in list(self._open):
                call.cancel()
            self._turn(_State.SHUTDOWN)
            if self._connection is not None:
                self._connection.close_client("the channel was closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def unary_unary(
        self,
        method: str,
        request_serializer: _Serializer = None,
        response_deserializer: _Deserializer = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """A way to make such calls."""

        def call(request: Any, *, timeout: float | None = None, metadata: Metadata = (), **options: Any) -> UnaryCall:
            one = UnaryCall(self, method, request_serializer, response_deserializer, timeout, metadata)
            one.send(request)
            self._begin(one)
            return one

        return call

    def unary_stream(
        self,
        method: str,
        request_serializer: _Serializer = None,
        response_deserializer: _Deserializer = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """A way to make such calls."""

        def call(request: Any, *, timeout: float | None = None, metadata: Metadata = (), **options: Any) -> StreamCall:
            one = StreamCall(self, method, request_serializer, response_deserializer, timeout, metadata)
            one.send(request)
            self._begin(one)
            return one

        return call

    def stream_stream(
        self,
        method: str,
        request_serializer: _Serializer = None,
        response_deserializer: _Deserializer = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """A way to make such calls; messages are written, not iterated."""

        def call(*, timeout: float | None = None, metadata: Metadata = (), **options: Any) -> BothWaysCall:
            one = BothWaysCall(self, method, request_serializer, response_deserializer, timeout, metadata)
            self._begin(one)
            return one

        return call

    def stream_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """No contract of this project has such calls."""
        raise NotImplementedError(f"{method}: calls that stream requests alone are not simulated")
