"""The network as the nodes see it: a way to open channels and one to listen, for whichever process asks."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc

from llava_grpc.config import DEFAULT_MAX_MESSAGE_BYTES, ServerSettings, SettingsError
from llava_grpc.rpc.server import NodeServer
from llava_grpc.testing.network.channels import Channel
from llava_grpc.testing.network.servers import Server
from llava_grpc.testing.network.wire import Wire
from llava_grpc.testing.virtual_time import PROCESS, Process


class Network(Wire):
    """See the module; its methods stand for `rpc.channels.open_channel` and `rpc.server.bind_server`."""

    def process(self, name: str, host: str) -> Process:
        """A new process on a machine."""
        return Process(self.loop, name, host)

    def open_channel(self, address: str, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
        """A channel of the process that runs."""
        return Channel(self, _running(), address)

    async def bind_server(
        self, settings: ServerSettings, services: Iterable[str], handlers: Iterable[grpc.GenericRpcHandler]
    ) -> NodeServer:
        """A server of the process that runs, with health. Its settings' host is a name that leads to its machine, also
        where it led to another one before.

        Raises:
            SettingsError: another process of that machine listens there.
        """
        process = _running()
        server = Server(self, process, f"{settings.host}:{settings.port}")
        holder = self.listening.get(server.address)
        if holder is not None and holder.process.host == process.host:
            raise SettingsError(f"cannot listen on {server.address}: the port is taken")
        server.add_generic_rpc_handlers(handlers)
        health_servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        node = NodeServer(server, settings.port, health_servicer, tuple(services))
        await node.set_serving(False)
        return node


def _running() -> Process:
    process = PROCESS.get()
    if process is None:
        raise RuntimeError("channels and servers belong to processes: use Process.spawn")
    return process
