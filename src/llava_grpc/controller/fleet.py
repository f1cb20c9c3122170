"""The controller's shell around the core: registry, dispatcher, those who wait, and the channels to workers.

One of these a controller; control, inference and reaper share it. All on one event loop, so the core needs no locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc.aio

from llava_grpc.config import ControllerSettings
from llava_grpc.core.admission import Entry, QueueLimits
from llava_grpc.core.dispatcher import Assignment, Dispatcher
from llava_grpc.core.registry import Registry
from llava_grpc.core.retry_budget import RetryBudget
from llava_grpc.core.stall import StallWatch
from llava_grpc.core.states import WorkerState
from llava_grpc.core.stream import Queued
from llava_grpc.core.worker import Registration, Worker
from llava_grpc.plugins import load_strategy
from llava_grpc.rpc.identity import new_incarnation
from llava_grpc.rpc.world import World
from llava_grpc.v1 import worker_pb2
from llava_grpc.v1.worker_pb2_grpc import WorkerServiceStub

if TYPE_CHECKING:
    from llava_grpc.v1.worker_pb2_grpc import WorkerServiceAsyncStub

PROBE_FIRST, PROBE_MOST = 1.0, 10.0
"""Seconds before a suspect is asked whether it lives, doubled each time up to the second number. After a call that
failed not at once: what made it fail may answer for its health all the same."""
PROBE_TIMEOUT = 2.0
TELL_EVERY = 1.0
"""Seconds between two looks at where a request that waits stands."""
STREAMS_MAY_RUN_ON = 3600.0
"""Seconds for which streams from a worker that left the register may go on before its channel is cut."""


@dataclass(slots=True)
class Fleet:
    """See the module."""

    settings: ControllerSettings
    registry: Registry
    dispatcher: Dispatcher
    world: World = field(default_factory=World)
    incarnation: str = ""
    """This life of the controller."""
    retry_budget: RetryBudget = field(default_factory=RetryBudget)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever something new may expire, a worker or a request that waits."""
    _kept: int = 0
    _waiting: dict[str, asyncio.Future[Assignment]] = field(default_factory=dict)
    _probing: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    _closing: dict[asyncio.Task[None], None] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, settings: ControllerSettings, world: World) -> Fleet:
        """A fleet with nobody in it.

        Raises:
            SettingsError: there is no such strategy.
        """
        strategy = load_strategy(settings.strategy)
        stalls = StallWatch.of_interval(settings.heartbeat_interval)
        registry = Registry(expiry=settings.heartbeat_expiry, stalls=stalls)
        limits = QueueLimits(length=settings.queue_length, wait=settings.queue_wait)
        dispatcher = Dispatcher(registry, strategy, random=world.random, limits=limits, strategy_name=settings.strategy)
        return cls(settings, registry, dispatcher, world, new_incarnation(world.random))

    @property
    def clock(self) -> Callable[[], float]:
        """The controller's own."""
        return self.world.clock

    def admit(self, registration: Registration) -> Worker | None:
        """Put a worker that was reached on the register; the other life that it replaces, if any."""
        replaced = self.registry.register(registration, self.clock())
        if replaced is not None:
            self._drop_channel(replaced)
        self.changed.set()
        self.place()
        return replaced

    def heartbeat(
        self, address: str, incarnation: str, sequence: int, running: int, waiting: int, draining: bool = False
    ) -> bool:
        """Take a sign of life; False where no such life is known."""
        worker = self.registry.find(address, incarnation)
        if worker is None:
            return False
        doubted = worker.state is WorkerState.SUSPECT
        self.registry.heartbeat(address, incarnation, sequence, running, waiting, self.clock())
        if draining:
            self.registry.drain(address, incarnation)
        elif doubted:  # nothing else about a heartbeat makes room
            self.place()
        return True

    def suspect(self, address: str, incarnation: str, *, at_once: bool = False) -> bool:
        """The transport to or from a worker broke: no work for it until it gives a sign of life, which is asked for,
        `at_once` or after a while. False where no such life is known."""
        if self.registry.find(address, incarnation) is None:
            return False
        self.registry.call_failed(address, incarnation, self.clock())
        if incarnation not in self._probing:
            pause = 0.0 if at_once else PROBE_FIRST
            self._probing[incarnation] = asyncio.create_task(self._probe(address, incarnation, pause))
        return True

    def answered(self, address: str, incarnation: str, status: worker_pb2.GetStatusResponse) -> None:
        """A worker that was asked whether it lives has answered."""
        self.registry.answered(address, incarnation, status.load.running, status.tokens_generated)
        self.place()

    def hangs(self, address: str, incarnation: str, tokens: int) -> None:
        """A worker answers but computes nothing, having made so many tokens: no work for it until it does."""
        self.registry.hangs(address, incarnation, tokens, self.clock())
        self.suspect(address, incarnation)

    async def _probe(self, address: str, incarnation: str, pause: float) -> None:
        """Ask a suspect who it is, less and less often, until it answers or is off the register."""
        try:
            while (worker := self.registry.find(address, incarnation)) and worker.state is WorkerState.SUSPECT:
                await asyncio.sleep(pause)
                pause = min(max(2 * pause, PROBE_FIRST), PROBE_MOST)
                if self.registry.find(address, incarnation) is None:  # it left while it was let be
                    return
                stub: WorkerServiceAsyncStub = WorkerServiceStub(self.channel(address, incarnation))
                try:
                    status = await stub.GetStatus(worker_pb2.GetStatusRequest(), timeout=PROBE_TIMEOUT)
                except grpc.aio.AioRpcError:
                    continue
                if status.incarnation == incarnation:
                    self.answered(address, incarnation, status)
        finally:
            del self._probing[incarnation]

    def deregister(self, address: str, incarnation: str) -> Worker | None:
        """Take a worker off; None where it was not known."""
        worker = self.registry.deregister(address, incarnation)
        if worker is not None:
            self._drop_channel(worker)
        return worker

    def tick(self) -> float:
        """The controller is awake. To be said every `core.stall.tick_period`; how long the stall was that has just
        ended, or 0."""
        return self.registry.stalls.tick(self.clock())

    def expire(self) -> list[Worker]:
        """Take off and return the workers that were silent for too long."""
        expired = self.registry.expire(self.clock())
        for worker in expired:
            self._drop_channel(worker)
        return expired

    def next_expiry(self) -> float | None:
        """When the next worker, or the next request that waits, runs out of time."""
        due = (self.registry.next_expiry(), self.dispatcher.next_expiry())
        return min((one for one in due if one is not None), default=None)

    def place(self) -> None:
        """Give room that has come to those who wait, and turn away those whose time is up."""
        for entry, outcome in self.dispatcher.place(self.clock()):
            future = self._waiting[entry.key]
            if isinstance(outcome, Assignment):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

    async def acquire(self, model: str, entry: Entry, tell: Callable[[Queued], Awaitable[None]]) -> Assignment:
        """A worker for the request, when one has room. While it waits, `tell` hears where it stands.

        Raises:
            The errors of `Dispatcher.admit`; QueueFullError, DeadlineExceededError: it waited for too long.
        """
        assignment = self.dispatcher.admit(model, entry, self.clock())
        if assignment is not None:
            return assignment
        future: asyncio.Future[Assignment] = asyncio.get_running_loop().create_future()
        self._waiting[entry.key] = future
        self.place()  # somebody else may have had to make way
        self.changed.set()
        told: Queued | None = None
        try:
            while not future.done():
                outlook = self.dispatcher.outlook(model, entry, self.clock())
                if told is None or outlook.position != told.position:
                    await tell(outlook)
                    told = outlook
                await asyncio.wait({future}, timeout=TELL_EVERY)
            return future.result()
        except BaseException:
            self.dispatcher.forget(model, entry)
            if future.done() and future.exception() is None:  # a slot came as the client went
                self.release(future.result())
            raise
        finally:
            del self._waiting[entry.key]

    def was_read(self, assignment: Assignment) -> None:
        """The request's first token came."""
        self.dispatcher.was_read(assignment, self.clock())

    def finish(self, entry: Entry, outcome: str, prompt_tokens: int = 0, answer_tokens: int = 0) -> None:
        """The request is over: "ok" or the reason of its error, and its tokens as the worker counted them."""
        self.dispatcher.finish(entry.key, self.clock(), outcome, prompt_tokens, answer_tokens)

    def keep(self, size: int) -> bool:
        """Whether a request of so many bytes may be kept for a resume; if so, they count until they are `let_go`."""
        if self._kept + size > self.settings.resume_memory_bytes:
            return False
        self._kept += size
        return True

    def let_go(self, size: int) -> None:
        """So many bytes are kept no longer."""
        self._kept -= size

    def release(self, assignment: Assignment) -> None:
        """A request's stream is over: its slot is for whoever waits."""
        self.dispatcher.release(assignment, self.clock())
        self.place()

    def channel(self, address: str, incarnation: str) -> grpc.aio.Channel:
        """The channel to one life of a worker; opened when first asked for."""
        channel = self._channels.get(incarnation)
        if channel is None:
            channel = self._channels[incarnation] = self.world.open_channel(
                address, self.settings.server.max_message_bytes
            )
        return channel

    async def close(self) -> None:
        """Cut all channels."""
        tasks = [*self._closing, *self._probing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _drop_channel(self, worker: Worker) -> None:
        channel = self._channels.pop(worker.incarnation, None)
        if channel is not None:
            task = asyncio.create_task(channel.close(grace=STREAMS_MAY_RUN_ON))
            self._closing[task] = None
            task.add_done_callback(self._closing.pop)
