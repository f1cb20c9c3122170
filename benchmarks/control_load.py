"""The other processes of bench_control.py, spoken to in lines of JSON on standard input.

    python benchmarks/control_load.py fleet CONTROLLER WORKERS SLOTS   registers so many workers, then says how many
    python benchmarks/control_load.py load CONTROLLER                  requests that are held until they are let go

The workers are real to the controller (an address, a server, a channel and a stream of heartbeats each) but have no
engine: a request gets its first token and then nothing, until all are let go.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from llava_grpc.config import PROTOCOL_VERSION
from llava_grpc.core.stream import Delta, Finished, FinishReason, ModelCard, Queued, Started, Usage
from llava_grpc.rpc.channels import open_channel
from llava_grpc.rpc.convert import card_to_pb, event_from_pb, event_to_pb
from llava_grpc.rpc.server import server_options
from llava_grpc.rpc.status import from_rpc_error
from llava_grpc.v1 import controller_pb2, controller_pb2_grpc, inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from llava_grpc.v1 import inference_pb2 as pb

CARD = ModelCard(name="held")
AT_ONCE = 50
"""Workers that register at the same time."""
STREAMS_A_CHANNEL = 500
ANSWERED = 300.0
"""Seconds after which a request that is held is given up."""


class Worker:
    """One worker of the fleet; `release` lets its requests go."""

    def __init__(self, controller: str, slots: int, release: asyncio.Event) -> None:
        self._controller, self._slots, self._release = controller, slots, release
        self._incarnation = uuid.uuid4().hex
        self._sequence = 0
        self.held = 0

    async def join(self) -> None:
        """Serve, register, and begin to send heartbeats."""
        self._server = grpc.aio.server(options=server_options(2**20))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)  # type: ignore[arg-type]
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)  # type: ignore[arg-type]
        self._address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        self._channel = open_channel(self._controller)
        stub: Any = controller_pb2_grpc.ControllerServiceStub(self._channel)
        await stub.Register(
            controller_pb2.RegisterRequest(
                address=self._address,
                incarnation=self._incarnation,
                protocol_version=PROTOCOL_VERSION,
                models=[card_to_pb(CARD)],
                speed=1.0,
                slots=self._slots,
            )
        )
        self._beats = stub.Heartbeats()
        await self.beat()
        answer = await self._beats.read()
        assert answer.known, "a worker that has just registered is known"

    async def Drain(self, request: object, context: Any) -> None:  # noqa: N802
        """Nobody drains it."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "a worker of a benchmark")

    async def beat(self) -> None:
        """A heartbeat."""
        self._sequence += 1
        await self._beats.write(
            controller_pb2.HeartbeatsRequest(
                address=self._address,
                incarnation=self._incarnation,
                sequence=self._sequence,
                load=controller_pb2.Load(running=self.held),
            )
        )

    async def leave(self) -> None:
        """Go without a word."""
        self._beats.cancel()
        await self._channel.close()
        await self._server.stop(0)

    async def GetStatus(self, request: Any, context: Any) -> worker_pb2.GetStatusResponse:  # noqa: N802
        return worker_pb2.GetStatusResponse(incarnation=self._incarnation)

    async def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        return pb.ListModelsResponse()

    async def Generate(self, request: Any, context: Any) -> None:  # noqa: N802
        self.held += 1
        try:
            await context.write(event_to_pb(Started("", CARD.name, 0, CARD.fingerprint, self._address)))
            await context.write(event_to_pb(Delta("held", (1,), 1)))
            await self._release.wait()
            await context.write(event_to_pb(Finished(FinishReason.STOP, Usage(completion_tokens=1))))
        finally:
            self.held -= 1


async def fleet(controller: str, count: int, slots: int) -> None:
    """Workers, and when they beat."""
    release = asyncio.Event()
    workers = [Worker(controller, slots, release) for _ in range(count)]
    for first in range(0, count, AT_ONCE):
        await asyncio.gather(*(worker.join() for worker in workers[first : first + AT_ONCE]))
    print(json.dumps(count), flush=True)

    async def beat(command: dict[str, Any]) -> int:
        """Heartbeats of all in turn, each every `interval` seconds, for so many `seconds`."""
        began, beats = time.perf_counter(), 0
        while (due := beats * command["interval"] / count) < command["seconds"]:
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            await workers[beats % count].beat()
            beats += 1
        return beats

    async def held(command: dict[str, Any]) -> list[int]:
        """Requests of each worker."""
        return [worker.held for worker in workers]

    async def let_go(command: dict[str, Any]) -> bool:
        """Have all requests end."""
        release.set()
        return True

    await obey({"beat": beat, "held": held, "let_go": let_go})
    await asyncio.gather(*(worker.leave() for worker in workers))


async def load(controller: str) -> None:
    """Requests, and what became of them."""
    channels: list[grpc.aio.Channel] = []
    tasks: list[asyncio.Task[str]] = []

    async def until_event(kind: type[Queued] | type[Delta], channel: grpc.aio.Channel) -> None:
        """Returns when the event has come; the stream goes on."""
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tasks.append(asyncio.create_task(_stream(channel, kind, reached)))
        await reached

    async def hold(command: dict[str, Any]) -> float:
        """So many requests that have a slot, or that wait; seconds until the last of them does."""
        kind = Queued if command["waiting"] else Delta
        began = time.perf_counter()
        count = command["count"]
        fresh = [open_channel(controller) for _ in range(-(-count // STREAMS_A_CHANNEL))]
        channels.extend(fresh)
        await asyncio.gather(*(until_event(kind, fresh[number // STREAMS_A_CHANNEL]) for number in range(count)))
        return time.perf_counter() - began

    async def refused(command: dict[str, Any]) -> list[float]:
        """Seconds until each of so many requests, one after the other, hears that the queue is full."""
        times = []
        for _ in range(command["count"]):
            began = time.perf_counter()
            outcome = await _stream(channels[0], Delta, None)
            times.append(time.perf_counter() - began)
            assert outcome == "QUEUE_FULL", outcome
        return times

    async def ends(command: dict[str, Any]) -> dict[str, int]:
        """How those that were held ended, once all have."""
        return dict(Counter(await asyncio.gather(*tasks)))

    await obey({"hold": hold, "refused": refused, "ends": ends})
    for channel in channels:
        await channel.close()


async def _stream(
    channel: grpc.aio.Channel, kind: type[Queued] | type[Delta], reached: asyncio.Future[None] | None
) -> str:
    """One request to its end: "ok" or the reason of its error. QUEUE_FULL must say when to try again."""
    stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
    try:
        async for frame in stub.Generate(pb.GenerateRequest(raw=pb.RawPrompt(text="hold")), timeout=ANSWERED):
            if reached is not None and not reached.done() and isinstance(event_from_pb(frame), kind):
                reached.set_result(None)
    except grpc.aio.AioRpcError as rpc_error:
        error = from_rpc_error(rpc_error)
        if error is None:
            raise
        if reached is not None and not reached.done():
            reached.set_exception(error)
        if error.reason == "QUEUE_FULL" and (
            rpc_error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or error.retry_after is None
        ):
            raise
        return error.reason
    return "ok"


async def obey(actions: dict[str, Callable[[dict[str, Any]], Awaitable[object]]]) -> None:
    """Commands, one JSON object a line, until standard input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        print(json.dumps(await actions[command["do"]](command)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "fleet":
        asyncio.run(fleet(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        asyncio.run(load(sys.argv[2]))
