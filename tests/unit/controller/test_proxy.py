"""What a controller asks of workers that are busy with others' requests, in virtual time."""

import asyncio
from contextlib import closing
from random import Random
from typing import Any

from llava_grpc.client import AsyncClient
from llava_grpc.config import ControllerSettings, ServerSettings
from llava_grpc.controller.app import ControllerNode
from llava_grpc.controller.proxy import DECLINED_PAUSE
from llava_grpc.rpc.world import World
from llava_grpc.testing.network import Network
from llava_grpc.testing.virtual_time import VirtualLoop
from llava_grpc.v1.controller_pb2_grpc import ControllerServiceStub
from llava_grpc.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from llava_grpc.v1.worker_pb2_grpc import add_WorkerServiceServicer_to_server
from tests.support.fake_worker import FakeWorker, declines

TOKEN = "a token"
SECONDS = 2.0


async def takes_its_time(request: Any, context: Any) -> None:
    await asyncio.get_running_loop().create_future()


async def serve(network: Network, worker: FakeWorker, name: str, slots: int) -> None:
    node = await network.bind_server(ServerSettings(host=name, port=1), (), ())
    add_InferenceServiceServicer_to_server(worker, node.server)
    add_WorkerServiceServicer_to_server(worker, node.server)
    worker.address = f"{name}:1"
    await node.server.start()
    async with network.open_channel("c:1") as channel:
        stub: Any = ControllerServiceStub(channel)
        token = (("authorization", f"Bearer {TOKEN}"),)
        await stub.Register(worker.registration(slots=slots), metadata=token)


def test_who_declines_is_not_asked_again_at_once_though_another_one_is_full():
    loop = VirtualLoop()
    network = Network(loop, Random(1))
    full, busy = FakeWorker(takes_its_time), FakeWorker(declines)

    async def ask() -> None:
        async with AsyncClient("c:1", open_channel=network.open_channel) as client:
            streams = [client.generate("one"), client.generate("two")]
            waiting = [asyncio.ensure_future(stream.text()) for stream in streams]
            await asyncio.sleep(SECONDS)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def main() -> None:
        world = World(
            open_channel=network.open_channel, bind_server=network.bind_server, clock=loop.time, random=Random(1)
        )
        settings = ControllerSettings(server=ServerSettings(host="c", port=1, grace=0), join_token=TOKEN)
        controller = network.process("controller", "c")
        node = controller.context.run(ControllerNode, settings, world)
        await controller.spawn(node.start())
        await network.process("full", "f").spawn(serve(network, full, "f", 1))
        await network.process("busy", "b").spawn(serve(network, busy, "b", 8))
        await network.process("client", "u").spawn(ask())
        await controller.spawn(node.stop())

    with closing(loop):
        loop.run(main())
    assert full.calls == 1
    assert 2 < busy.calls < 2 + SECONDS / DECLINED_PAUSE
