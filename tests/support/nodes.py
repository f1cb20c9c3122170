"""Nodes beside those of a Cluster: further controllers, and workers of several controllers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from llava_grpc.config import ControllerSettings, EngineSettings, ServerSettings, WorkerSettings
from llava_grpc.controller.app import ControllerNode
from llava_grpc.worker.app import WorkerNode

JOIN_TIMEOUT = 30.0


@asynccontextmanager
async def controller(*, grace: float = 0.0, port: int = 0, **settings: Any) -> AsyncIterator[ControllerNode]:
    """A serving one. `settings` are ControllerSettings by name."""
    node = ControllerNode(ControllerSettings(server=ServerSettings(port=port, grace=grace), **settings))
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


@asynccontextmanager
async def worker(
    *controllers: str,
    grace: float = 0.0,
    port: int = 0,
    slots: int = 0,
    model: str = "",
    options: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[WorkerNode]:
    """One with the echo engine, registered with all of them. `settings` are WorkerSettings by name."""
    node = WorkerNode(
        WorkerSettings(
            server=ServerSettings(port=port, grace=grace),
            engine_name="echo",
            engine=EngineSettings(slots=slots, model_name=model, options=options or {}),
            controllers=controllers,
            **settings,
        )
    )
    await node.start()
    try:
        async with asyncio.timeout(JOIN_TIMEOUT):
            await node.registered()
        yield node
    finally:
        await node.stop()
