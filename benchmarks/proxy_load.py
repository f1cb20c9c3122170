"""The other processes of bench_proxy.py: the load generator, and a worker that sends one token a message.

    python benchmarks/proxy_load.py load                   commands on standard input, results on standard output
    python benchmarks/proxy_load.py one-token CONTROLLER   registers with the controller, then says its address

Both speak bytes: nothing is parsed for each frame, so that what is measured is the fabric and not its load.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from itertools import cycle
from typing import Any

import grpc.aio

from llava_grpc.config import PROTOCOL_VERSION
from llava_grpc.core.stream import Delta, Finished, FinishReason, ModelCard, Started, Usage
from llava_grpc.rpc.channels import open_channel
from llava_grpc.rpc.convert import card_to_pb, event_to_pb
from llava_grpc.rpc.server import server_options
from llava_grpc.v1 import controller_pb2, controller_pb2_grpc, worker_pb2
from llava_grpc.v1 import inference_pb2 as pb

GENERATE = "/llava_grpc.v1.InferenceService/Generate"
GET_STATUS = "/llava_grpc.v1.WorkerService/GetStatus"
DELTA, FINISHED = 0x12, 0x1A  # first bytes of frames: field number and wire type of GenerateResponse.event
ONE_TOKEN = "one-token"
SLOTS = 64


# --------------------------------------------------------------------------------------------------- the load generator


class Stream:
    """One request and what came of it."""

    def __init__(self) -> None:
        self.frames = 0
        self.tokens = 0
        self.first_token = 0.0

    async def run(self, channel: grpc.aio.Channel, request: bytes) -> None:
        """Send the request and read its stream to the end."""
        generate: Any = channel.unary_stream(GENERATE)
        began = time.perf_counter()
        frame = b""
        async for frame in generate(request):
            if frame[0] == DELTA:
                self.frames += 1
                self.first_token = self.first_token or time.perf_counter() - began
        self.tokens = pb.GenerateResponse.FromString(frame).finished.usage.completion_tokens


def request_bytes(number: int, model: str, tokens: int) -> bytes:
    """A request unlike any other."""
    return pb.GenerateRequest(
        model=model,
        raw=pb.RawPrompt(text=f"benchmark request number {number}"),
        sampling=pb.SamplingParams(max_new_tokens=tokens, seed=number),
    ).SerializeToString()


async def saturate(channels: list[grpc.aio.Channel], command: dict[str, Any]) -> dict[str, float]:
    """All streams at once, until the last one ends."""
    count, tokens = command["streams"], command["tokens"]
    requests = [request_bytes(command["seed"] + number, command["model"], tokens) for number in range(count)]
    streams = [Stream() for _ in requests]
    began = time.perf_counter()
    await asyncio.gather(
        *(stream.run(channel, data) for stream, channel, data in zip(streams, cycle(channels), requests, strict=False))
    )
    seconds = time.perf_counter() - began
    made = sum(stream.tokens for stream in streams)
    assert made == count * tokens, f"{made} tokens came, {count * tokens} were asked for"
    return {"seconds": seconds, "tokens": made, "frames": sum(stream.frames for stream in streams)}


async def arrive(channels: list[grpc.aio.Channel], command: dict[str, Any]) -> dict[str, list[float]]:
    """Open loop: requests leave at the given times, whatever became of those before; their times to first token."""
    streams, tasks = [], []
    began = time.perf_counter()
    for number, (offset, channel) in enumerate(zip(command["offsets"], cycle(channels), strict=False)):
        await asyncio.sleep(max(0.0, began + offset - time.perf_counter()))
        stream = Stream()
        streams.append(stream)
        data = request_bytes(command["seed"] + number, command["model"], command["tokens"])
        tasks.append(asyncio.create_task(stream.run(channel, data)))
    await asyncio.gather(*tasks)
    return {"first_token": [stream.first_token for stream in streams]}


async def load() -> None:
    """Commands, one JSON object a line, until standard input ends."""
    channels: dict[str, grpc.aio.Channel] = {}
    actions = {"saturate": saturate, "arrive": arrive}
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        targets = [channels.setdefault(target, open_channel(target)) for target in command["targets"]]
        print(json.dumps(await actions[command["do"]](targets, command)), flush=True)
    for channel in channels.values():
        await channel.close()


# ------------------------------------------------------------------------------------------------ the one-token worker


async def one_token(controller: str) -> None:
    """A worker without an engine: frames made beforehand, one token each, as fast as they go, until input ends."""
    incarnation = uuid.uuid4().hex
    card = ModelCard(name=ONE_TOKEN)
    started = event_to_pb(Started("", ONE_TOKEN, 0, card.fingerprint, "")).SerializeToString()
    deltas = [event_to_pb(Delta(" word", (number,), number + 1)).SerializeToString() for number in range(1024)]

    async def generate(request: bytes, context: Any) -> None:
        tokens = pb.GenerateRequest.FromString(request).sampling.max_new_tokens
        await context.write(started)
        for frame in deltas[:tokens]:
            await context.write(frame)
        finished = Finished(FinishReason.LENGTH, Usage(completion_tokens=tokens))
        await context.write(event_to_pb(finished).SerializeToString())

    async def get_status(request: bytes, context: Any) -> bytes:
        return worker_pb2.GetStatusResponse(incarnation=incarnation).SerializeToString()

    server = grpc.aio.server(options=server_options(2**20))
    for path, handler in (
        (GENERATE, grpc.unary_stream_rpc_method_handler(generate)),
        (GET_STATUS, grpc.unary_unary_rpc_method_handler(get_status)),
    ):
        _, service, method = path.split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with open_channel(controller) as channel:
        await controller_pb2_grpc.ControllerServiceStub(channel).Register(
            controller_pb2.RegisterRequest(
                address=address,
                incarnation=incarnation,
                protocol_version=PROTOCOL_VERSION,
                models=[card_to_pb(card)],
                speed=1.0,
                slots=SLOTS,
                check_heartbeat=False,
            )
        )
    print(address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(load() if sys.argv[1] == "load" else one_token(sys.argv[2]))
