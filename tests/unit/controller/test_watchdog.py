"""The watchdog over a simulated network, in virtual time."""

import asyncio
from contextlib import closing
from random import Random

from llava_grpc.config import ControllerSettings, ServerSettings
from llava_grpc.controller.fleet import Fleet
from llava_grpc.controller.watchdog import Watchdog
from llava_grpc.rpc.world import World
from llava_grpc.testing.network import Network
from llava_grpc.testing.virtual_time import VirtualLoop


def test_a_question_whose_streams_have_ended_ends_with_the_watchdog():
    loop = VirtualLoop()
    network = Network(loop, Random(1))
    controller, worker = network.process("controller", "c"), network.process("worker", "w")

    async def life() -> None:
        world = World(open_channel=network.open_channel, clock=loop.time, random=Random(1))
        watchdog = Watchdog(Fleet.from_settings(ControllerSettings(server=ServerSettings(port=1)), world))
        running = asyncio.create_task(watchdog.run())
        stream = watchdog.watch("w:1", "a life", lambda: None)
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if len(controller.open_tasks()) > 2:  # it asks
                break
        watchdog.leave(stream)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def main() -> None:
        node = await worker.spawn(network.bind_server(ServerSettings(host="w", port=1), (), ()))
        await worker.spawn(node.server.start())
        worker.freeze()
        await controller.spawn(life())
        assert controller.open_tasks() == []

    with closing(loop):
        loop.run(main())
