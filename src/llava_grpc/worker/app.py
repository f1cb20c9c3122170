"""A worker node: binds, loads its engine, serves, joins its controllers, and leaves in good order.

Law: a taken port is found before anything is loaded, and the worker serves (with health NOT_SERVING) while it loads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from llava_grpc import __version__
from llava_grpc.config import EngineSettings, WorkerSettings
from llava_grpc.core.worker import Registration
from llava_grpc.engines.base import Engine, Progress, load_engine
from llava_grpc.membership.drain import LAST_WORDS, Drain
from llava_grpc.membership.memberships import Memberships
from llava_grpc.rpc.addresses import own_address
from llava_grpc.rpc.identity import new_incarnation
from llava_grpc.rpc.server import NodeServer
from llava_grpc.rpc.world import World
from llava_grpc.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from llava_grpc.worker.host import EngineHost
from llava_grpc.worker.servicer import WorkerServicer

_log = logging.getLogger(__name__)

_SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name,
)


class WorkerNode:
    """See the module. `start`, then `wait` until it must end, then `stop`."""

    def __init__(
        self,
        settings: WorkerSettings,
        progress: Progress = lambda message: None,
        *,
        world: World | None = None,
        load_engine: Callable[[str, EngineSettings], Engine] = load_engine,
    ) -> None:
        self._settings = settings
        self._progress = progress
        self._world = world or World()
        self._load_engine = load_engine
        self._incarnation = new_incarnation(self._world.random)
        self._drain = Drain("the worker", settings.server.grace)
        self._servicer = WorkerServicer(self._incarnation, self._drain, settings, self._world.random)
        self._memberships = Memberships(settings.controllers, self._servicer.load, settings.join_token, self._world)
        self._host: EngineHost | None = None
        self._node: NodeServer | None = None
        self._leaving: asyncio.Task[None] | None = None
        self.address = ""

    @property
    def incarnation(self) -> str:
        """This life of the worker."""
        return self._incarnation

    @property
    def host(self) -> EngineHost:
        """The engine's host. Only after `start`."""
        assert self._host is not None, "not started"
        return self._host

    async def start(self) -> None:
        """Bind, serve, load the engine, and begin to register in the background.

        Raises:
            SettingsError: the port is taken.
            EngineStartError: the engine cannot be started.
        """
        settings, servicer = self._settings, self._servicer
        node = self._node = await self._world.bind_server(settings.server, _SERVICES, ())
        # The generated types ask for subclasses whose streams are generators; ours write to the context.
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, node.server)  # type: ignore[arg-type]
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, node.server)  # type: ignore[arg-type]
        own = own_address(settings.server.host, node.port, settings.controllers)
        self.address = servicer.address = settings.address or own
        await node.server.start()
        self._leaving = asyncio.create_task(self._drain.carry_out(node, self._memberships), name="drain")
        # In a thread: importing an engine's library takes seconds, and health is to answer meanwhile.
        engine = await asyncio.to_thread(self._load_engine, settings.engine_name, settings.engine)
        host = EngineHost(engine, self._world.clock)
        await host.start(self._progress)
        self._host = servicer.host = host
        if self._drain.begun.is_set():  # it was told so while it loaded
            return
        await node.set_serving(True)
        card = engine.card
        _log.info("serving %s at %s with %d slots, engine %s", card.name, self.address, engine.slots, engine.name)
        self._memberships.join(
            Registration(
                address=self.address,
                incarnation=self._incarnation,
                cards=(card,),
                speed=engine.speed,
                slots=engine.slots,
                check_heartbeat=settings.check_heartbeat,
                version=__version__,
                kv_tokens=engine.kv_tokens,
                cached_pictures=engine.cached_pictures,
            )
        )

    async def registered(self) -> None:
        """Wait until every controller has registered this worker."""
        await self._memberships.registered()

    async def wait(self) -> None:
        """Wait until the node must end: it has drained.

        Raises:
            MembershipError, RegistrationInvalidError: a controller refused it for good.
        """
        await self._drain.wait(self._memberships)

    async def stop(self) -> None:
        """Leave the fleet, let running streams end within the grace time, stop. At any stage, any number of times."""
        if self._leaving is not None:
            self._drain.begin()
            await self._leaving
        if self._node is not None:
            await self._node.server.stop(LAST_WORDS)
        host, self._host = self._host, None
        if host is not None:
            await host.close()
        await self._memberships.close()
        _log.info("stopped")
