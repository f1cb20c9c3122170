"""A gateway node: an HTTP server on the running event loop, which stops in good order.

Law: a taken port is an error at once, said like any node's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn

from llava_grpc.client import AsyncClient
from llava_grpc.config import GatewaySettings, SettingsError
from llava_grpc.gateway.openai_api import create_app

_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Says when it listens, and leaves signals to the process that it runs in."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class GatewayNode:
    """See the module. `start`, then `stop`."""

    def __init__(self, settings: GatewaySettings, grace: float = 5.0) -> None:
        self._settings = settings
        self._grace = grace
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self) -> None:
        """Bind and serve.

        Raises:
            SettingsError: the port is taken, or the host is not this machine's.
        """
        settings = self._settings
        listener = _listen(settings.host, settings.port)
        client = AsyncClient(settings.controllers, max_message_bytes=settings.body_bytes)
        config = uvicorn.Config(
            create_app(settings, client),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=round(self._grace),
            server_header=False,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="gateway")
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{port}"
        listens = asyncio.create_task(self._server.listens.wait())
        await asyncio.wait({listens, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        listens.cancel()
        if self._serving.done():
            self._serving.result()
        _log.info("OpenAI-compatible API at %s/v1", self.url)

    async def stop(self) -> None:
        """Take no more requests, let answers end within the grace time, stop. May be called at any stage."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another --port (0 takes any free one) "
            "or stop what listens there"
        ) from error
