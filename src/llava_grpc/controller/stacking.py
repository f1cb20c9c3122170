"""A controller as a worker of other controllers, its parents: what it says of itself to them, and what they may ask.

Laws: a parent sees one worker whose models, slots and speed are those of the fleet together, and which is away while
the fleet has nobody. What changes in the fleet is registered again under the same incarnation. A request is passed on
as it came: the worker that answers says so itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from llava_grpc import __version__
from llava_grpc.controller.fleet import Fleet
from llava_grpc.controller.watchdog import Watchdog
from llava_grpc.core.stack import as_one_worker, those_alive
from llava_grpc.membership.drain import Drain, answer_drain
from llava_grpc.membership.memberships import Memberships
from llava_grpc.rpc.convert import card_to_pb
from llava_grpc.rpc.status import typed_errors
from llava_grpc.v1 import controller_pb2, worker_pb2

SETTLE = 0.05
"""Seconds between two looks at a fleet that changes: workers come and go in flocks."""


class StackServicer:
    """WorkerService on a controller."""

    def __init__(self, fleet: Fleet, watchdog: Watchdog, drain: Drain) -> None:
        self._fleet = fleet
        self._watchdog = watchdog
        self._drain = drain

    @typed_errors
    async def GetStatus(  # noqa: N802
        self, request: worker_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.GetStatusResponse:
        fleet = self._fleet
        return worker_pb2.GetStatusResponse(
            incarnation=fleet.incarnation,
            models=[card_to_pb(listed.card, listed.workers) for listed in fleet.registry.models()],
            slots=sum(one.slots for one in those_alive(fleet.registry)),
            load=load_of(fleet),
            version=__version__,
            tokens_generated=self._watchdog.frames,
            draining=self._drain.begun.is_set(),
        )

    @typed_errors
    async def Drain(  # noqa: N802
        self, request: worker_pb2.WorkerServiceDrainRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        settings = self._fleet.settings
        await answer_drain(
            self._drain, request, context, settings.server, settings.parent_join_token or settings.join_token
        )


def load_of(fleet: Fleet) -> controller_pb2.Load:
    """How busy the fleet is, whoever sent the requests."""
    registry = fleet.registry
    return controller_pb2.Load(
        running=sum(worker.queue_length for worker in registry.workers()),
        waiting=sum(fleet.dispatcher.waiting(model) for model in registry.model_names()),
    )


async def tell_parents(fleet: Fleet, parents: Memberships, address: str) -> None:
    """Keep what is registered with the parents, under the controller's `address`, in step with the fleet; until
    cancelled."""
    changed = asyncio.Event()
    fleet.registry.on_change = changed.set
    while True:
        parents.update(as_one_worker(fleet.registry, address, fleet.incarnation, __version__))
        await asyncio.sleep(SETTLE)
        await changed.wait()
        changed.clear()
