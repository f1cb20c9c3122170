"""A worker node: binds, loads its engine, serves, joins its controllers, and leaves in good order.

Law: a taken port is found before anything is loaded, and the worker serves (with health NOT_SERVING) while it loads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import uuid

import grpc.aio

from llava_grpc import __version__
from llava_grpc.config import WorkerSettings
from llava_grpc.core.registry import Registration
from llava_grpc.engines.base import Progress, load_engine
from llava_grpc.rpc.channels import open_channel
from llava_grpc.rpc.server import NodeServer, bind_server
from llava_grpc.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from llava_grpc.worker.host import EngineHost
from llava_grpc.worker.membership import Membership
from llava_grpc.worker.servicer import WorkerServicer

_log = logging.getLogger(__name__)

_SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name,
)


class WorkerNode:
    """See the module. `start`, then `wait` until it must end, then `stop`."""

    def __init__(self, settings: WorkerSettings, progress: Progress = lambda message: None) -> None:
        self._settings = settings
        self._progress = progress
        self._incarnation = uuid.uuid4().hex
        self._memberships: list[Membership] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._channels: list[grpc.aio.Channel] = []
        self._host: EngineHost | None = None
        self._servicer: WorkerServicer | None = None
        self._node: NodeServer | None = None
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
        settings = self._settings
        servicer = self._servicer = WorkerServicer(self._incarnation)
        node = self._node = await bind_server(settings.server, _SERVICES, ())
        # The generated types ask for subclasses whose streams are generators; ours write to the context.
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, node.server)  # type: ignore[arg-type]
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, node.server)  # type: ignore[arg-type]
        self.address = servicer.address = settings.address or self._own_address(node.port)
        await node.server.start()
        # In a thread: importing an engine's library takes seconds, and health is to answer meanwhile.
        engine = await asyncio.to_thread(load_engine, settings.engine_name, settings.engine)
        host = EngineHost(engine)
        await host.start(self._progress)
        self._host = servicer.host = host
        await node.set_serving(True)
        card = engine.card
        _log.info("serving %s at %s with %d slots, engine %s", card.name, self.address, engine.slots, engine.name)
        for controller in settings.controllers:
            self._join(controller)

    def _join(self, controller: str) -> None:
        channel = open_channel(controller)
        self._channels.append(channel)
        assert self._servicer is not None
        engine = self.host.engine
        membership = Membership(
            controller=controller,
            channel=channel,
            registration=Registration(
                address=self.address,
                incarnation=self._incarnation,
                cards=(engine.card,),
                speed=engine.speed,
                slots=engine.slots,
                check_heartbeat=self._settings.check_heartbeat,
                version=__version__,
                kv_tokens=engine.kv_tokens,
                cached_pictures=engine.cached_pictures,
            ),
            load=self._servicer.load,
            join_token=self._settings.join_token,
        )
        self._memberships.append(membership)
        self._tasks.append(asyncio.create_task(membership.run(), name=f"membership of {controller}"))

    async def registered(self) -> None:
        """Wait until every controller has registered this worker."""
        await asyncio.gather(*(membership.registered.wait() for membership in self._memberships))

    async def wait(self) -> None:
        """Wait until the node must end.

        Raises:
            MembershipError, RegistrationInvalidError: a controller refused it for good.
        """
        if self._tasks:
            await asyncio.gather(*self._tasks)
        else:
            await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        """Leave the fleet, let running streams end within the grace time, stop. May be called at any stage."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._servicer is not None:
            self._servicer.draining = True
        if self._node is not None:
            await self._node.set_serving(False)
        await asyncio.gather(*(membership.leave() for membership in self._memberships))
        if self._node is not None:
            await self._node.server.stop(self._settings.server.grace)
        if self._host is not None:
            await self._host.close()
        for channel in self._channels:
            await channel.close()
        _log.info("stopped")

    def _own_address(self, port: int) -> str:
        """Where others reach this node when nothing else was said."""
        host = self._settings.server.host
        if host in ("0.0.0.0", "::", ""):
            host = _address_towards(self._settings.controllers)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address_towards(controllers: tuple[str, ...]) -> str:
    """This machine's address on the way to the first controller. Nothing is sent: a UDP connect only looks it up."""
    for controller in controllers:
        host, _, port = controller.rpartition(":")
        with contextlib.suppress(OSError, ValueError):
            family = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
            with socket.socket(family[0], socket.SOCK_DGRAM) as probe:
                probe.connect(family[4])
                return str(probe.getsockname()[0])
    return socket.gethostname()
