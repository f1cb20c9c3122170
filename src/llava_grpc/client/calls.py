"""The calls of a client, each from its messages to values: the one module of the client that sees protobuf."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC
from typing import Any, TypeVar

import grpc.aio

from llava_grpc.client.fleet import ServedModel, WorkerView, state_named
from llava_grpc.client.records import DecisionView, PieceView, RecordView
from llava_grpc.core.history import Considered
from llava_grpc.core.states import DrainProgress
from llava_grpc.errors import RequestCancelledError, WorkerLostError
from llava_grpc.rpc.convert import card_from_pb, duration_from_pb, duration_to_pb, priority_from_pb
from llava_grpc.rpc.joining import join_metadata
from llava_grpc.rpc.status import explain_rpc_error
from llava_grpc.v1 import controller_pb2, explain_pb2, inference_pb2, worker_pb2
from llava_grpc.v1.controller_pb2_grpc import ControllerServiceStub
from llava_grpc.v1.inference_pb2_grpc import InferenceServiceStub
from llava_grpc.v1.worker_pb2_grpc import WorkerServiceStub

_T = TypeVar("_T")


async def list_models(channel: grpc.aio.Channel, address: str, timeout: float | None) -> list[ServedModel]:
    """ListModels, in order of name."""
    call = InferenceServiceStub(channel).ListModels(inference_pb2.ListModelsRequest(), timeout=timeout)
    answer = await _answered(call, address)
    return [ServedModel(card_from_pb(model), model.workers) for model in answer.models]


async def list_workers(channel: grpc.aio.Channel, address: str, timeout: float | None) -> list[WorkerView]:
    """ListWorkers, in order of address."""
    call = ControllerServiceStub(channel).ListWorkers(controller_pb2.ListWorkersRequest(), timeout=timeout)
    return [_worker(info) for info in (await _answered(call, address)).workers]


async def drain(
    channel: grpc.aio.Channel,
    address: str,
    worker: str,
    grace: float | None,
    join_token: str,
    on_progress: Callable[[DrainProgress], object],
) -> DrainProgress:
    """Drain of `worker`, or of the node at the address where that is empty; its last word."""
    limit = None if grace is None else duration_to_pb(grace)
    metadata = join_metadata(join_token)
    call: Any
    if worker:
        order = controller_pb2.ControllerServiceDrainRequest(address=worker, grace=limit)
        call = ControllerServiceStub(channel).Drain(order, metadata=metadata)
    else:
        call = WorkerServiceStub(channel).Drain(worker_pb2.WorkerServiceDrainRequest(grace=limit), metadata=metadata)

    async def heard() -> DrainProgress | None:
        progress = None
        async for message in call:
            left = duration_from_pb(message.grace_left)
            progress = DrainProgress(message.running, message.ended, left, message.done)
            on_progress(progress)
            if progress.done:
                break
        return progress

    last = await _answered(heard(), address)
    if last is None or not last.done:
        raise WorkerLostError(f"{worker or address} was lost before it had drained", remedy="Look at its log")
    return last


async def explain(
    channel: grpc.aio.Channel, address: str, timeout: float | None, *, request_id: str, limit: int
) -> list[RecordView]:
    """Explain, the oldest first; `limit` 0: all."""
    request = explain_pb2.ExplainRequest(request_id=request_id, limit=limit)
    call = ControllerServiceStub(channel).Explain(request, timeout=timeout)

    async def read() -> list[RecordView]:
        return [_record(answer.record) async for answer in call]

    return await _answered(read(), address)


async def _answered(call: Awaitable[_T], address: str) -> _T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise explain_rpc_error(error, address) from error
    except asyncio.CancelledError:
        if was_cancelled_here():
            raise
        raise RequestCancelledError("the client was closed") from None


def was_cancelled_here() -> bool:
    """Whether a CancelledError is the running task's own, and not a call's that somebody else cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _worker(info: controller_pb2.WorkerInfo) -> WorkerView:
    return WorkerView(
        address=info.address,
        incarnation=info.incarnation,
        state=state_named(_state_name(info.state)),
        models=tuple(info.models),
        speed=info.speed,
        slots=info.slots,
        in_flight=info.in_flight,
        running=info.reported_load.running,
        waiting=info.reported_load.waiting,
        heartbeat_age=duration_from_pb(info.heartbeat_age),
        registered_at=info.registered_at.ToDatetime(tzinfo=UTC),
        check_heartbeat=info.check_heartbeat,
        version=info.version,
        kv_tokens=info.kv_tokens,
        cached_pictures=info.cached_pictures,
    )


def _record(message: explain_pb2.RequestRecord) -> RecordView:
    has = message.HasField
    return RecordView(
        request_id=message.request_id,
        model=message.model,
        tenant=message.tenant,
        priority=priority_from_pb(message.priority),
        arrived_at=message.arrived_at.ToDatetime(tzinfo=UTC),
        deadline=duration_from_pb(message.deadline) if has("deadline") else None,
        pieces=tuple(PieceView(piece.key.hex(), piece.tokens) for piece in message.pieces),
        pictures=tuple(picture.hex() for picture in message.pictures),
        most_answer_tokens=message.most_answer_tokens,
        ahead=message.ahead if has("ahead") else None,
        decisions=tuple(_decision(decision) for decision in message.decisions),
        first_token=duration_from_pb(message.first_token) if has("first_token") else None,
        ended=duration_from_pb(message.ended) if has("ended") else None,
        outcome=message.outcome,
        prompt_tokens=message.prompt_tokens,
        answer_tokens=message.answer_tokens,
    )


def _decision(message: explain_pb2.Decision) -> DecisionView:
    return DecisionView(
        after=duration_from_pb(message.after),
        strategy=message.strategy,
        candidates=message.candidates,
        address=message.address,
        unit=message.unit,
        considered=tuple(
            Considered(
                address=one.address,
                score=one.score,
                speed=one.speed,
                queue=one.queue,
                room=one.room,
                unread=one.unread_tokens,
                held_tokens=one.held_tokens,
                held_pictures=one.held_pictures,
            )
            for one in message.considered
        ),
    )


def _state_name(number: controller_pb2.WorkerState.ValueType) -> str:
    try:
        return controller_pb2.WorkerState.Name(number).removeprefix("WORKER_STATE_").lower()
    except ValueError:  # a newer release's
        return ""
