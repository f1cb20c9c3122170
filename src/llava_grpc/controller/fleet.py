"""The controller's shell around the core: registry, dispatcher, and the channels to workers.

One of these a controller; control, inference and reaper share it. All on one event loop, so the core needs no locks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc.aio

from llava_grpc.config import ControllerSettings, SettingsError
from llava_grpc.core.dispatcher import Dispatcher
from llava_grpc.core.registry import Registration, Registry, Worker
from llava_grpc.core.strategies import STRATEGIES
from llava_grpc.rpc.channels import open_channel

STREAMS_MAY_RUN_ON = 3600.0
"""Seconds for which streams from a worker that left the register may go on before its channel is cut."""


@dataclass(slots=True)
class Fleet:
    """See the module."""

    settings: ControllerSettings
    registry: Registry
    dispatcher: Dispatcher
    clock: Callable[[], float] = time.monotonic
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a worker was put on or taken off, for whoever waits for the next expiry."""
    _channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    def from_settings(cls, settings: ControllerSettings) -> Fleet:
        """A fleet with nobody in it.

        Raises:
            SettingsError: there is no strategy of that name.
        """
        strategy = STRATEGIES.get(settings.strategy)
        if strategy is None:
            raise SettingsError(f"no strategy is named {settings.strategy!r}; there are {', '.join(STRATEGIES)}")
        registry = Registry(expiry=settings.heartbeat_expiry)
        return cls(settings, registry, Dispatcher(registry, strategy))

    def admit(self, registration: Registration) -> Worker | None:
        """Put a worker that was reached on the register; the other life that it replaces, if any."""
        replaced = self.registry.register(registration, self.clock())
        if replaced is not None:
            self._drop_channel(replaced)
        self.changed.set()
        return replaced

    def deregister(self, address: str, incarnation: str) -> Worker | None:
        """Take a worker off; None where it was not known."""
        worker = self.registry.deregister(address, incarnation)
        if worker is not None:
            self._drop_channel(worker)
        return worker

    def expire(self) -> list[Worker]:
        """Take off and return the workers that were silent for too long."""
        expired = self.registry.expire(self.clock())
        for worker in expired:
            self._drop_channel(worker)
        return expired

    def channel(self, address: str, incarnation: str) -> grpc.aio.Channel:
        """The channel to one life of a worker; opened when first asked for."""
        channel = self._channels.get(incarnation)
        if channel is None:
            channel = self._channels[incarnation] = open_channel(address, self.settings.server.max_message_bytes)
        return channel

    async def close(self) -> None:
        """Cut all channels."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _drop_channel(self, worker: Worker) -> None:
        channel = self._channels.pop(worker.incarnation, None)
        if channel is not None:
            task = asyncio.create_task(channel.close(grace=STREAMS_MAY_RUN_ON))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
