"""What every node that listens has in common: limits, health, reflection, channelz, and an honest port.

Law: a port that is taken is an error at once. (gRPC's default is SO_REUSEPORT: a second server starts silently and
splits the traffic.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import grpc
import grpc.aio
from grpc_channelz.v1 import channelz
from grpc_channelz.v1 import channelz_pb2 as channelz_messages
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from llava_grpc.config import ServerSettings, SettingsError

_OVERALL = ""  # the health service's name for the server as a whole


@dataclass(frozen=True, slots=True)
class NodeServer:
    """A bound server, not yet started, with its health."""

    server: grpc.aio.Server
    port: int
    health: health.aio.HealthServicer
    services: tuple[str, ...]

    async def set_serving(self, serving: bool) -> None:
        """Answer health checks, overall and by service, with SERVING or NOT_SERVING."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in (_OVERALL, *self.services):
            await self.health.set(service, status)


def server_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Options for a server."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.so_reuseport", 0),
        ("grpc.enable_channelz", 1),
        # Clients ping while a stream is quiet (a long prompt): at gRPC's defaults they would be sent away for it.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]


async def bind_server(
    settings: ServerSettings, services: Iterable[str], handlers: Iterable[grpc.GenericRpcHandler]
) -> NodeServer:
    """A server on the settings' host and port, with the given handlers of the named services.

    Health says NOT_SERVING until told otherwise.

    Raises:
        SettingsError: the address cannot be listened on (taken, or not this machine's).
    """
    names = tuple(services)
    server = grpc.aio.server(options=server_options(settings.max_message_bytes))
    server.add_generic_rpc_handlers(tuple(handlers))
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    channelz.add_channelz_servicer(server)
    reflection.enable_server_reflection(
        (
            *names,
            health.SERVICE_NAME,
            channelz_messages.DESCRIPTOR.services_by_name["Channelz"].full_name,
            reflection.SERVICE_NAME,
        ),
        server,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.port}")
    except RuntimeError as error:
        raise SettingsError(
            f"cannot listen on {host}:{settings.port}: the port is taken or the host is not this machine's. "
            "Choose another --port (0 takes any free one) or stop what listens there"
        ) from error
    node = NodeServer(server, port, health_servicer, names)
    await node.set_serving(False)
    return node
