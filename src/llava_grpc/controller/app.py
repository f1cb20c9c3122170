"""A controller node: binds, serves, reaps, stops in good order."""

from __future__ import annotations

import asyncio
import logging

from llava_grpc.config import ControllerSettings
from llava_grpc.controller.control import ControlServicer
from llava_grpc.controller.fleet import Fleet
from llava_grpc.controller.inference import InferenceServicer
from llava_grpc.controller.reaper import reap
from llava_grpc.core.registry import Registry
from llava_grpc.rpc.server import NodeServer
from llava_grpc.rpc.world import World
from llava_grpc.v1 import controller_pb2, controller_pb2_grpc, inference_pb2

_log = logging.getLogger(__name__)

_SERVICES = (
    controller_pb2.DESCRIPTOR.services_by_name["ControllerService"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
)


class ControllerNode:
    """See the module. `start`, then `stop`."""

    def __init__(self, settings: ControllerSettings, world: World | None = None) -> None:
        self._settings = settings
        self._world = world or World()
        self._fleet = Fleet.from_settings(settings, self._world)
        self._control = ControlServicer(self._fleet)
        self._inference = InferenceServicer(self._fleet)
        self._node: NodeServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.address = ""

    @property
    def fleet(self) -> Fleet:
        """Its fleet."""
        return self._fleet

    @property
    def registry(self) -> Registry:
        """Who is there."""
        return self._fleet.registry

    async def start(self) -> None:
        """Bind and serve.

        Raises:
            SettingsError: the port is taken.
        """
        settings = self._settings
        node = self._node = await self._world.bind_server(settings.server, _SERVICES, (self._inference.handler(),))
        # The generated types ask for subclasses whose streams are generators; ours write to the context.
        controller_pb2_grpc.add_ControllerServiceServicer_to_server(self._control, node.server)  # type: ignore[arg-type]
        host = settings.server.host
        self.address = f"[{host}]:{node.port}" if ":" in host else f"{host}:{node.port}"
        await node.server.start()
        await node.set_serving(True)
        self._tasks = [
            asyncio.create_task(reap(self._fleet), name="reaper"),
            asyncio.create_task(self._inference.watchdog.run(), name="watchdog"),
        ]
        _log.info("controller at %s, strategy %s", self.address, settings.strategy)

    async def stop(self) -> None:
        """Refuse new work, let running streams end within the grace time, stop. May be called at any stage."""
        self._inference.draining = True
        if self._node is not None:
            await self._node.set_serving(False)
            await self._control.close()
            await self._node.server.stop(self._settings.server.grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._fleet.close()
        _log.info("stopped")
