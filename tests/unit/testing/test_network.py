"""The simulated network against the real one: what a caller and a handler see is the same. And what befalls it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest

from llava_grpc.config import ServerSettings
from llava_grpc.rpc.channels import open_channel
from llava_grpc.rpc.server import bind_server
from llava_grpc.testing.network import Network
from llava_grpc.testing.network.wire import CLIENT_PING
from llava_grpc.testing.virtual_time import VirtualLoop

Seen = list[Any]
Say = Callable[..., None]


class Handlers:
    """A service of every kind of call, of bytes."""

    def __init__(self) -> None:
        self.seen: Seen = []
        self.cancelled = asyncio.Event()
        self.calls = 0

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "test.Test",
            {
                "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
                "Refuse": grpc.unary_unary_rpc_method_handler(self.refuse),
                "Break": grpc.unary_stream_rpc_method_handler(self.break_off),
                "Count": grpc.unary_stream_rpc_method_handler(self.count),
                "Hang": grpc.unary_stream_rpc_method_handler(self.hang),
                "Talk": grpc.stream_stream_rpc_method_handler(self.talk),
            },
        )

    async def echo(self, request: bytes, context: Any) -> bytes:
        self.calls += 1
        metadata = dict(context.invocation_metadata() or ())
        return request + str(metadata.get("key", "")).encode()

    async def refuse(self, request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "not here", trailing_metadata=(("why-bin", b"\0because"),))
        raise AssertionError("abort does not return")

    async def break_off(self, request: bytes, context: Any) -> None:
        await context.write(b"one")
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async def count(self, request: bytes, context: Any) -> None:
        for number in range(int(request)):
            await context.write(str(number).encode())

    async def hang(self, request: bytes, context: Any) -> None:
        self.seen.append(context.time_remaining() is not None)
        await context.write(b"hanging")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.cancelled.set()

    async def talk(self, requests: Any, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            if message == b"enough":
                return
            await context.write(message.upper())


def said(error: grpc.aio.AioRpcError) -> tuple[Any, ...]:
    return error.code(), error.details(), dict(error.trailing_metadata() or ())


async def scenario(channel: grpc.aio.Channel, handlers: Handlers, seen: Seen) -> None:
    """Every kind of call and end; `seen` gets what the caller sees."""
    echo = channel.unary_unary("/test.Test/Echo")
    seen.append(await echo(b"hello ", metadata=(("key", "value"),), timeout=10))
    seen.append(channel.get_state())
    try:
        await channel.unary_unary("/test.Test/Refuse")(b"")
    except grpc.aio.AioRpcError as error:
        seen.append(said(error))
    try:
        await channel.unary_unary("/test.Test/Unknown")(b"")
    except grpc.aio.AioRpcError as error:
        seen.append(error.code())
    seen.append([frame async for frame in channel.unary_stream("/test.Test/Count")(b"3")])
    call = channel.unary_stream("/test.Test/Break")(b"")
    frames = []
    try:
        async for frame in call:
            frames.append(frame)
    except grpc.aio.AioRpcError as error:
        seen.append((frames, error.code(), error.details(), call.done()))
    call = channel.unary_stream("/test.Test/Hang")(b"", timeout=60)
    seen.append(await call.read())
    seen.append((call.cancel(), call.cancel(), call.done(), call.cancelled()))
    await handlers.cancelled.wait()
    try:
        await call.read()
    except asyncio.CancelledError:
        seen.append("cancelled")
    handlers.cancelled.clear()
    call = channel.unary_stream("/test.Test/Hang")(b"", timeout=0.2)
    try:
        frames = [frame async for frame in call]
    except grpc.aio.AioRpcError as error:
        seen.append(error.code())
    await handlers.cancelled.wait()
    handlers.cancelled.clear()
    call = channel.unary_stream("/test.Test/Hang")(b"")
    await call.read()
    reader = asyncio.create_task(call.read())
    await asyncio.sleep(0)
    reader.cancel()
    seen.append(
        [isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(reader, return_exceptions=True)]
    )
    await handlers.cancelled.wait()
    seen.append(call.cancelled())
    talk = channel.stream_stream("/test.Test/Talk")()
    await talk.write(b"a")
    await talk.write(b"b")
    seen.append([await talk.read(), await talk.read()])
    await talk.write(b"enough")
    seen.append((await talk.read() is grpc.aio.EOF, await talk.code()))
    try:
        await talk.write(b"c")
    except asyncio.InvalidStateError:
        seen.append("over")
    await channel.close()
    seen.append(channel.get_state())
    seen.append(handlers.seen)


async def nobody_there(channel: grpc.aio.Channel, seen: Seen) -> None:
    try:
        await channel.unary_unary("/test.Test/Echo")(b"")
    except grpc.aio.AioRpcError as error:
        seen.append(error.code())
    seen.append(
        channel.get_state() in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.CONNECTING)
    )
    await channel.close()


async def really() -> Seen:
    seen: Seen = []
    handlers = Handlers()
    node = await bind_server(ServerSettings(port=0), (), (handlers.handler(),))
    await node.server.start()
    async with asyncio.timeout(30):
        await scenario(open_channel(f"127.0.0.1:{node.port}"), handlers, seen)
    await node.server.stop(0)
    await nobody_there(open_channel(f"127.0.0.1:{node.port}"), seen)
    return seen


class Stage:
    """A server and a client in the simulated network, each on a machine of its own."""

    def __init__(self, seed: int = 1) -> None:
        self.loop = VirtualLoop()
        self.network = Network(self.loop, Random(seed))
        self.server_process = self.network.process("server", "s")
        self.client_process = self.network.process("client", "c")
        self.handlers = Handlers()
        self.server: Any = None

    async def serve(self) -> None:
        node = await self.network.bind_server(ServerSettings(host="s", port=1), (), (self.handlers.handler(),))
        self.server = node.server
        await node.server.start()

    def play(self, client: Callable[[], Awaitable[None]], befall: Callable[[], None] | None = None, at: float = 1.0):
        """Run a client; something befalls the network at a time."""

        async def main() -> None:
            await self.server_process.spawn(self.serve())
            if befall is not None:
                self.loop.call_at(at, befall)
            await self.client_process.spawn(as_coroutine(client))

        with closing(self.loop):
            self.loop.run(main())
        assert self.loop.defects == []


async def as_coroutine(client: Callable[[], Awaitable[None]]) -> None:
    await client()


def simulated() -> Seen:
    seen: Seen = []
    stage = Stage()

    async def client() -> None:
        await scenario(stage.network.open_channel("s:1"), stage.handlers, seen)
        await nobody_there(stage.network.open_channel("s:2"), seen)

    stage.play(client)
    return seen


async def test_calls_end_as_they_do_in_earnest():
    real = await really()
    pretended = await asyncio.to_thread(simulated)  # an event loop of its own
    assert pretended == real


def hang_until_it_ends(stage: Stage, ends: Seen) -> Callable[[], Awaitable[None]]:
    async def client() -> None:
        channel = stage.network.open_channel("s:1")
        call = channel.unary_stream("/test.Test/Hang")(b"")
        try:
            async for frame in call:
                ends.append(frame)
        except grpc.aio.AioRpcError as error:
            ends.extend([error.code(), error.details(), stage.loop.time(), channel.get_state()])

    return client


def test_a_dead_process_is_missed_at_once():
    stage, ends = Stage(), []

    def kill() -> None:
        stage.server_process.kill()
        stage.network.died(stage.server_process)

    stage.play(hang_until_it_ends(stage, ends), kill)
    frame, code, details, when, state = ends
    assert (frame, code, details) == (b"hanging", grpc.StatusCode.UNAVAILABLE, "Socket closed")
    assert 1.0 < when < 1.1
    assert state is grpc.ChannelConnectivity.IDLE


@pytest.mark.parametrize("what", ["power", "partition", "one way", "suspended"])
def test_silence_is_found_by_pings(what: str):
    stage, ends = Stage(), []
    network = stage.network

    def befall() -> None:
        if what == "power":
            network.lights_out("s")
            stage.server_process.kill()
            network.died(stage.server_process)
        elif what == "suspended":
            stage.server_process.freeze()
            network.silence_began()
        else:
            network.cut("s", "c")
            if what == "partition":
                network.cut("c", "s")

    stage.play(hang_until_it_ends(stage, ends), befall)
    every, patience = CLIENT_PING
    _, code, details, when, _ = ends
    assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "keepalive watchdog timeout")
    assert 1.0 + patience < when < 1.0 + every + patience


def test_a_short_partition_loses_nothing():
    stage, frames = Stage(), []

    async def client() -> None:
        channel = stage.network.open_channel("s:1")
        talk = channel.stream_stream("/test.Test/Talk")()
        await talk.write(b"a")
        frames.append(await talk.read())
        stage.network.cut("c", "s")
        stage.loop.call_later(2.0, stage.network.mend, "c", "s")
        for message in (b"b", b"c", b"d"):
            await talk.write(message)
        frames.extend([await talk.read() for _ in range(3)])
        frames.append(stage.loop.time() > 2.0)
        talk.cancel()

    stage.play(client)
    assert frames == [b"A", b"B", b"C", b"D", True]


@pytest.mark.parametrize("seed", range(20))
def test_frames_keep_their_order_however_a_slow_way_is_cut_and_mended(seed: int):
    stage, frames = Stage(seed), []
    network, way = stage.network, stage.network.way("s", "c")
    way.slower = 300.0

    async def client() -> None:
        for cut in range(10):
            stage.loop.call_later(0.1 + 0.2 * cut, network.cut, "s", "c")
            stage.loop.call_later(0.2 + 0.2 * cut, network.mend, "s", "c")
        channel = network.open_channel("s:1")
        frames.extend([frame async for frame in channel.unary_stream("/test.Test/Count")(b"30")])

    stage.play(client)
    assert frames == [str(number).encode() for number in range(30)]


def test_a_channel_that_closes_still_connects_for_the_calls_that_wait():
    stage, ends = Stage(), []

    async def client() -> None:
        channel = stage.network.open_channel("s:1")
        stage.server_process.freeze()
        stage.loop.call_later(2.0, stage.server_process.thaw)
        answer = asyncio.ensure_future(channel.unary_unary("/test.Test/Echo")(b"waits"))
        await asyncio.sleep(1.0)
        closing = asyncio.ensure_future(channel.close(grace=60.0))
        await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.UsageError):
            channel.unary_unary("/test.Test/Echo")(b"too late")
        ends.append(await answer)
        await closing
        ends.append(channel.get_state())

    stage.play(client)
    assert ends == [b"waits", grpc.ChannelConnectivity.SHUTDOWN]


def test_a_stalled_event_loop_answers_pings_but_nothing_else():
    stage, ends = Stage(), []

    async def client() -> None:
        channel = stage.network.open_channel("s:1")
        await channel.unary_unary("/test.Test/Echo")(b"")
        stage.server_process.freeze(answers_pings=True)
        stage.network.silence_began()
        stage.loop.call_later(60.0, stage.server_process.thaw)
        ends.append(await channel.unary_unary("/test.Test/Echo")(b"at last"))
        ends.append(stage.loop.time() > 60.0)

    stage.play(client)
    assert ends == [b"at last", True]


def test_a_reset_breaks_what_was_under_way_and_a_call_may_arrive_twice():
    stage, ends = Stage(), []
    stage.network.duplicating = 1.0

    async def client() -> None:
        channel = stage.network.open_channel("s:1")
        ends.append(await channel.unary_unary("/test.Test/Echo")(b"once"))
        await asyncio.sleep(0.5)
        ends.append(stage.handlers.calls)
        await hang_until_it_ends(stage, ends)()

    stage.play(client, lambda: stage.network.reset("s", "c"))
    assert ends[:2] == [b"once", 2]
    assert ends[3:5] == [grpc.StatusCode.UNAVAILABLE, "Connection reset by peer"]


def test_a_stopping_server_lets_calls_end_within_its_grace_and_cuts_the_rest():
    stage, ends = Stage(), []

    def stop() -> None:
        stage.server_process.spawn(stage.server.stop(3.0))

    stage.play(hang_until_it_ends(stage, ends), stop)
    _, code, _, when, _ = ends
    assert code is grpc.StatusCode.UNAVAILABLE
    assert 4.0 <= when < 4.1


def test_a_channel_finds_a_server_that_comes_back():
    stage, ends = Stage(), []

    async def client() -> None:
        channel = stage.network.open_channel("s:1")
        await channel.unary_unary("/test.Test/Echo")(b"")
        stage.server_process.kill()
        stage.network.died(stage.server_process)
        await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/test.Test/Echo")(b"")
        again = stage.network.process("server again", "s")
        stage.loop.call_later(14.0, again.spawn, stage.serve())
        await channel.channel_ready()
        ends.append(stage.loop.time())
        ends.append(await channel.unary_unary("/test.Test/Echo")(b"back"))

    stage.play(client)
    assert 14.0 < ends[0] < 14.7
    assert ends[1] == b"back"
