"""Whether a fleet holds nothing any more: no request anywhere, and nobody on the register but those who live."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from drills.fleet import Fleet
from llava_grpc.rpc.channels import open_channel
from llava_grpc.v1 import controller_pb2, inference_pb2, worker_pb2
from llava_grpc.v1.controller_pb2_grpc import ControllerServiceStub
from llava_grpc.v1.inference_pb2_grpc import InferenceServiceStub
from llava_grpc.v1.worker_pb2_grpc import WorkerServiceStub

REST_TIMEOUT = 30.0
"""Seconds within which a fleet that has nothing to do must hold nothing; expiry of the dead is in it."""
LOOK_EVERY = 0.05
CALL_TIMEOUT = 5.0


@dataclass(frozen=True)
class Held:
    """What is held: `requests` running or waiting, by whoever counts them; `strangers` on a register."""

    requests: int
    strangers: int
    where: str


async def at_rest(fleet: Fleet, timeout: float = REST_TIMEOUT) -> Held:
    """What the fleet still holds after as long as it may take: nothing, if all is well. Returns once that is so."""
    until = asyncio.get_running_loop().time() + timeout
    while True:
        held = await _held(fleet.addresses, [node.address for node in fleet.workers])
        if (held.requests == held.strangers == 0) or asyncio.get_running_loop().time() > until:
            return held
        await asyncio.sleep(LOOK_EVERY)


async def running(channel: grpc.aio.Channel) -> int:
    """Slots taken at the worker there, as it says."""
    stub: Any = WorkerServiceStub(channel)
    status = await stub.GetStatus(worker_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT, wait_for_ready=True)
    return int(status.load.running + status.load.waiting)


async def _held(controllers: Sequence[str], workers: Sequence[str]) -> Held:
    requests, strangers, where = 0, 0, []
    for address in controllers:
        async with open_channel(address) as channel:
            control: Any = ControllerServiceStub(channel)
            inference: Any = InferenceServiceStub(channel)
            known = await control.ListWorkers(controller_pb2.ListWorkersRequest(), timeout=CALL_TIMEOUT)
            models = await inference.ListModels(inference_pb2.ListModelsRequest(), timeout=CALL_TIMEOUT)
        in_flight = {worker.address: worker.in_flight for worker in known.workers}
        waiting = sum(model.waiting for model in models.models)
        alive = sorted(worker.address for worker in known.workers if worker.state == controller_pb2.WORKER_STATE_ALIVE)
        requests += sum(in_flight.values()) + waiting
        strangers += len(set(in_flight) - set(workers)) + len(set(workers) - set(alive))
        where.append(f"controller {address}: in flight {in_flight}, waiting {waiting}, alive {alive}")
    for address in workers:
        async with open_channel(address) as channel:
            count = await running(channel)
        requests += count
        where.append(f"worker {address}: running {count}")
    return Held(requests, strangers, "; ".join(where))
