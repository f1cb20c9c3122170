"""A server, and a call as its handler holds it.

As in grpc.aio: a handler is a task; it is cancelled when its caller goes away, by its own will, by the deadline or with
the connection. A stop refuses what is new, lets what runs go on for its grace, and cuts it then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import grpc
import grpc.aio

from llava_grpc.testing.network.calls import Call, Metadata, UnaryCall
from llava_grpc.testing.network.wire import Connection, Pipe, Wire
from llava_grpc.testing.virtual_time import Process


class _Details(NamedTuple):
    """What a generic handler is asked by: `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Metadata


class Server(grpc.aio.Server):
    """See the module. Of one process, at one address."""

    def __init__(self, network: Wire, process: Process, address: str) -> None:
        self.network, self.process, self.address = network, process, address
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._serving = False
        self._calls: dict[ServerCall, None] = {}
        self._ended = asyncio.Event()
        network.servers[process] = self

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._handlers.extend(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Generated code adds each service this way too."""

    def add_insecure_port(self, address: str) -> int:
        raise NotImplementedError("a simulated server listens where it was made for")

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        raise NotImplementedError("a simulated server listens where it was made for")

    async def start(self) -> None:
        """Listen."""
        self._serving = True
        self.network.listen(self)

    async def stop(self, grace: float | None) -> None:
        """See the module."""
        self._serving = False
        self.network.stop_listening(self)
        mine = [connection for connection in self.network.connections if connection.server is self]
        for connection in mine:  # GOAWAY: what runs goes on
            connection.to_client(Pipe(), connection.channel.disconnected, connection)
        if grace and self._calls:
            try:
                async with asyncio.timeout(grace):
                    while self._calls:
                        self._ended.clear()
                        await self._ended.wait()
            except TimeoutError:
                pass
        for call in list(self._calls):
            call.refuse("Cancelling all calls")
        for connection in mine:
            connection.close_server()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        raise NotImplementedError("nodes stop their servers themselves")

    def take(self, connection: Connection, call: Call) -> None:
        """A call came in."""
        if not connection.server_open or call.served is not None:
            return
        served = ServerCall(self, connection, call)
        if not self._serving:
            served.refuse("Server is shutting down")
            return
        served.start(self._handler(call))
        if isinstance(call, UnaryCall) and self.network.random.random() < self.network.duplicating:
            again = ServerCall(self, connection, call, is_heard=False)
            connection.to_server(Pipe(), again.start, self._handler(call))

    def _handler(self, call: Call) -> grpc.RpcMethodHandler[Any, Any] | None:
        details: Any = _Details(call.method, call.metadata)
        found = (handler.service(details) for handler in self._handlers)
        return next((handler for handler in found if handler is not None), None)

    def running(self, method: str) -> int:
        """How many calls of that method run."""
        return sum(call.method == method for call in self._calls)

    def began(self, call: ServerCall) -> None:
        self._calls[call] = None

    def ended(self, call: ServerCall) -> None:
        self._calls.pop(call, None)
        self._ended.set()


class ServerCall:
    """A call at its server; also the context that its handler gets (what is used of grpc.aio.ServicerContext).

    Args:
        is_heard: whether what it answers gets back; not for what came twice.
    """

    def __init__(self, server: Server, connection: Connection, call: Call, *, is_heard: bool = True) -> None:
        loop = server.network.loop
        self.method = call.method
        self._server, self._connection, self._call, self._heard = server, connection, call, is_heard
        self._loop = loop
        self._down = Pipe()
        self._inbox: deque[bytes | None] = deque()
        self._last_heard = b""
        self._news: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._over: BaseException | None = None
        left = call.time_remaining()
        self._deadline = None if left is None else loop.time() + left
        self._timer: asyncio.TimerHandle | None = None
        self._serialize: Callable[[Any], bytes] | None = None
        self._deserialize: Callable[[bytes], Any] | None = None
        if is_heard:
            call.served = self

    # ------------------------------------------------------------------------------------------------ for the network

    def start(self, handler: grpc.RpcMethodHandler[Any, Any] | None) -> None:
        """Run the handler."""
        if handler is None:
            self._end(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return
        self._serialize, self._deserialize = handler.response_serializer, handler.request_deserializer
        self._connection.served[self] = None
        self._server.began(self)
        if self._deadline is not None:
            self._timer = self._loop.call_at(self._deadline, self.lost)
        self._task = self._loop.create_task(self._run(handler), name=self.method)
        self._task.add_done_callback(self._forget)

    def feed(self, message: bytes | None) -> None:
        """A message of the caller's, or None for their end."""
        self._inbox.append(message)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def lost(self) -> None:
        """Nobody waits for the answer any more."""
        if self._task is not None and not self._task.done():
            self._over = self._over or grpc.aio.InternalError("the caller is gone")
            self._task.cancel()

    def refuse(self, why: str) -> None:
        """The server stops."""
        self._end(grpc.StatusCode.UNAVAILABLE, why)
        self.lost()

    def _forget(self, task: asyncio.Task[None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._connection.served.pop(self, None)
        self._server.ended(self)

    async def _run(self, method: grpc.RpcMethodHandler[Any, Any]) -> None:
        handler: Any = method  # its types are those of grpc's threads
        try:
            if handler.request_streaming:
                await handler.stream_stream(None, self)
            else:
                assert self._call.first is not None, "its message came with it"
                self._last_heard = message = self._call.first
                request = message if self._deserialize is None else self._deserialize(message)
                if handler.response_streaming:
                    await handler.unary_stream(request, self)
                else:
                    response = await handler.unary_unary(request, self)
                    self._check()
                    self._send(self._serialized(response))
            self._check()
            self._end(grpc.StatusCode.OK, "")
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            self._end(grpc.StatusCode.CANCELLED, "Cancelled on the server side")
            raise
        except grpc.aio.BaseError as error:
            self._end(grpc.StatusCode.UNKNOWN, str(error))
        except Exception as error:
            self._end(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")
            self._loop.call_exception_handler({"message": f"unexpected in {self.method}", "exception": error})

    def _send(self, message: bytes) -> None:
        self._server.network.on_answer(self._server.process, self.method, self._last_heard, message)
        if self._heard and self._connection.server_open:
            self._connection.to_client(self._down, self._call.take, message)

    def _end(self, code: grpc.StatusCode, details: str, trailers: Metadata = ()) -> None:
        if self._over is None:
            self._over = grpc.aio.UsageError("RPC already finished.")
            if self._heard and self._connection.server_open:
                self._connection.to_client(self._down, self._call.end, code, details, trailers)

    def _check(self) -> None:
        """Raise why nothing more can be said, where that is so."""
        if self._over is not None:
            raise self._over

    def _serialized(self, message: Any) -> bytes:
        return message if self._serialize is None else self._serialize(message)

    # ------------------------------------------------------------------------------------------------ for the handler

    async def read(self) -> Any:
        """The caller's next message, or EOF."""
        while not self._inbox:
            self._check()
            self._news = self._loop.create_future()
            await self._news
        message = self._inbox[0]
        if message is None:
            return grpc.aio.EOF
        self._inbox.popleft()
        self._last_heard = message
        return message if self._deserialize is None else self._deserialize(message)

    async def write(self, message: Any) -> None:
        """Send a message."""
        self._check()
        self._send(self._serialized(message))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        """End the call with a status. Raises AbortError."""
        self._check()
        self._end(code, details, trailing_metadata)
        self._over = grpc.aio.AbortError("Locally aborted.")
        raise self._over

    def invocation_metadata(self) -> Metadata:
        """What the caller sent along."""
        return self._call.metadata

    def time_remaining(self) -> float | None:
        """Seconds to the deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - self._loop.time())

    def peer(self) -> str:
        """Who calls."""
        return f"simulated:{self._connection.client.name}"
