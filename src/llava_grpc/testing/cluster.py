"""A whole fabric in one process: a controller and workers on free loopback ports, real gRPC between them.

async with Cluster(workers=2) as cluster:
    client = AsyncClient(cluster.address)
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from llava_grpc.config import ControllerSettings, EngineSettings, ServerSettings, WorkerSettings
from llava_grpc.controller.app import ControllerNode
from llava_grpc.worker.app import WorkerNode

JOIN_TIMEOUT = 60.0
"""Seconds that a worker may take to load and register."""


class Cluster:
    """See the module. Workers run the echo engine unless told otherwise.

    Args:
        workers: how many.
        engine: name of their engine.
        engine_settings: what it is told; `options` given here are the echo engine's delays and faults.
        grace: seconds that running streams get at the end.
        controller: further ControllerSettings by name, e.g. heartbeat_interval.
    """

    def __init__(
        self,
        workers: int = 1,
        *,
        engine: str = "echo",
        engine_settings: EngineSettings | None = None,
        options: Mapping[str, str] | None = None,
        grace: float = 0.0,
        **controller: Any,
    ) -> None:
        settings = engine_settings or EngineSettings()
        if options:
            settings = replace(settings, options=options)
        self._count = workers
        self._engine = engine
        self._engine_settings = settings
        self._grace = grace
        self.controller = ControllerNode(ControllerSettings(server=ServerSettings(port=0, grace=grace), **controller))
        self.workers: list[WorkerNode] = []

    @property
    def address(self) -> str:
        """The controller's."""
        return self.controller.address

    async def __aenter__(self) -> Self:
        await self.controller.start()
        try:
            await asyncio.gather(*(self.add_worker() for _ in range(self._count)))
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        await self.controller.stop()

    async def add_worker(self, **changes: Any) -> WorkerNode:
        """One more worker, registered. `changes` are WorkerSettings by name."""
        settings = WorkerSettings(
            server=ServerSettings(port=0, grace=self._grace),
            engine_name=self._engine,
            engine=self._engine_settings,
            controllers=(self.address,),
            join_token=self.controller.fleet.settings.join_token,
        )
        worker = WorkerNode(replace(settings, **changes))
        self.workers.append(worker)
        await worker.start()
        async with asyncio.timeout(JOIN_TIMEOUT):
            await worker.registered()
        return worker
