"""ControllerService: Register, Heartbeats, Heartbeat, Deregister, ListWorkers, Drain, Explain."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from llava_grpc.config import PROTOCOL_VERSION
from llava_grpc.controller.draining import drain_worker
from llava_grpc.controller.fleet import Fleet
from llava_grpc.controller.heartbeats import HeartbeatStreams
from llava_grpc.controller.records import record_to_pb
from llava_grpc.core.states import WorkerState
from llava_grpc.core.worker import Registration, Worker
from llava_grpc.errors import AddressTakenError, ControllerLoopError, ProtocolVersionError, WorkerUnreachableError
from llava_grpc.rpc.convert import card_from_pb, duration_to_pb
from llava_grpc.rpc.joining import check_join_token
from llava_grpc.rpc.status import typed_errors
from llava_grpc.v1 import controller_pb2 as pb
from llava_grpc.v1 import explain_pb2, worker_pb2
from llava_grpc.v1.worker_pb2_grpc import WorkerServiceStub

if TYPE_CHECKING:
    from llava_grpc.v1.worker_pb2_grpc import WorkerServiceAsyncStub

CALL_BACK_TIMEOUT = 5.0
"""Seconds that a worker has to answer at the address that it advertises."""

_STATES = {
    WorkerState.JOINING: pb.WORKER_STATE_JOINING,
    WorkerState.ALIVE: pb.WORKER_STATE_ALIVE,
    WorkerState.SUSPECT: pb.WORKER_STATE_SUSPECT,
    WorkerState.DRAINING: pb.WORKER_STATE_DRAINING,
    WorkerState.DEAD: pb.WORKER_STATE_DEAD,
}

_log = logging.getLogger(__name__)
_Context = grpc.aio.ServicerContext[Any, Any]


class ControlServicer:
    """See the module."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._streams = HeartbeatStreams(fleet)

    async def close(self) -> None:
        """End what would hold up a stop."""
        await self._streams.close()

    @typed_errors
    async def Register(self, request: pb.RegisterRequest, context: _Context) -> pb.RegisterResponse:  # noqa: N802
        self._check_join_token(context)
        if request.protocol_version != PROTOCOL_VERSION:
            raise ProtocolVersionError(
                f"the worker speaks version {request.protocol_version} of the contract, this controller "
                f"{PROTOCOL_VERSION}"
            )
        if self._fleet.incarnation in request.controllers:
            raise ControllerLoopError(f"this controller itself stands behind the one at {request.address}")
        registration = Registration(
            address=request.address,
            incarnation=request.incarnation,
            cards=tuple(card_from_pb(model) for model in request.models),
            speed=request.speed,
            slots=request.slots,
            check_heartbeat=request.check_heartbeat if request.HasField("check_heartbeat") else True,
            version=request.version,
            controllers=tuple(request.controllers),
            kv_tokens=request.kv_tokens,
            cached_pictures=request.cached_pictures,
        )
        await self._make_sure(registration)
        replaced = self._fleet.admit(registration)
        _log.info(
            "worker %s registered: models=%s speed=%g slots=%d%s",
            registration.address,
            ",".join(card.name for card in registration.cards),
            registration.speed,
            registration.slots,
            " (replaces an earlier life)" if replaced else "",
        )
        settings = self._fleet.settings
        return pb.RegisterResponse(
            heartbeat_interval=duration_to_pb(settings.heartbeat_interval),
            expiry=duration_to_pb(settings.heartbeat_expiry),
        )

    @typed_errors
    async def Heartbeats(self, beats: object, context: _Context) -> None:  # noqa: N802
        self._check_join_token(context)
        await self._streams.listen(context)

    @typed_errors
    async def Heartbeat(self, request: pb.HeartbeatRequest, context: _Context) -> pb.HeartbeatResponse:  # noqa: N802
        self._check_join_token(context)
        known = self._fleet.heartbeat(
            request.address,
            request.incarnation,
            request.sequence,
            request.load.running,
            request.load.waiting,
            request.draining,
        )
        return pb.HeartbeatResponse(known=known)

    @typed_errors
    async def Deregister(self, request: pb.DeregisterRequest, context: _Context) -> pb.DeregisterResponse:  # noqa: N802
        self._check_join_token(context)
        worker = self._fleet.deregister(request.address, request.incarnation)
        if worker is not None:
            _log.info("worker %s left", worker.address)
        return pb.DeregisterResponse(was_known=worker is not None)

    @typed_errors
    async def ListWorkers(  # noqa: N802
        self, request: pb.ListWorkersRequest, context: _Context
    ) -> pb.ListWorkersResponse:
        now, wall = self._fleet.clock(), time.time()
        return pb.ListWorkersResponse(
            workers=[_worker_to_pb(worker, now, wall) for worker in self._fleet.registry.workers()]
        )

    @typed_errors
    async def Drain(self, request: pb.ControllerServiceDrainRequest, context: _Context) -> None:  # noqa: N802
        self._check_join_token(context)
        await drain_worker(self._fleet, request, context)

    @typed_errors
    async def Explain(self, request: explain_pb2.ExplainRequest, context: _Context) -> None:  # noqa: N802
        history = self._fleet.dispatcher.history
        records = history.find(request.request_id) if request.request_id else list(history)
        epoch = time.time() - self._fleet.clock()
        for record in records[-request.limit :]:  # 0: all
            await context.write(explain_pb2.ExplainResponse(record=record_to_pb(record, epoch)))

    def _check_join_token(self, context: _Context) -> None:
        check_join_token(context, self._fleet.settings.join_token)

    async def _make_sure(self, registration: Registration) -> None:
        """Raise unless that very life of a worker is the one that answers at its address now: where another one has
        registered there since it was asked, its answer is an old one, and the question is put again."""
        present = self._fleet.registry.at(registration.address)
        while True:
            await self._call_back(registration)
            before, present = present, self._fleet.registry.at(registration.address)
            if present is None or present is before or present.incarnation == registration.incarnation:
                return

    async def _call_back(self, registration: Registration) -> None:
        """Raise unless that very life of a worker answers at the address that it advertises."""
        address = registration.address
        async with self._fleet.world.open_channel(address) as channel:
            stub: WorkerServiceAsyncStub = WorkerServiceStub(channel)
            try:
                status = await stub.GetStatus(worker_pb2.GetStatusRequest(), timeout=CALL_BACK_TIMEOUT)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise AddressTakenError(f"what answers at {address} is not a worker") from error
                raise WorkerUnreachableError(
                    f"nobody answers at the advertised address {address} ({error.code().name}: {error.details()})"
                ) from error
        if status.incarnation != registration.incarnation:
            raise AddressTakenError(f"another worker answers at {address}")


def _worker_to_pb(worker: Worker, now: float, wall: float) -> pb.WorkerInfo:
    registration = worker.registration
    info = pb.WorkerInfo(
        address=worker.address,
        incarnation=worker.incarnation,
        state=_STATES[worker.state],
        models=[card.name for card in registration.cards],
        speed=registration.speed,
        slots=registration.slots,
        in_flight=worker.in_flight,
        reported_load=pb.Load(running=worker.reported_running, waiting=worker.reported_waiting),
        heartbeat_age=duration_to_pb(now - worker.last_sign),
        check_heartbeat=registration.check_heartbeat,
        version=registration.version,
        kv_tokens=registration.kv_tokens,
        cached_pictures=registration.cached_pictures,
    )
    info.registered_at.FromNanoseconds(round((wall - (now - worker.registered_at)) * 1e9))
    return info
