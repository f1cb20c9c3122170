"""Requests that wait at the controller while every slot is taken."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from llava_grpc import errors
from llava_grpc.config import EngineSettings
from llava_grpc.rpc.status import from_rpc_error
from llava_grpc.testing.cluster import Cluster
from llava_grpc.v1 import inference_pb2
from tests.support.fake_worker import dies_at_once, fake_worker
from tests.support.waiting import until
from tests.support.wire import Stubs, ask, connected


@asynccontextmanager
async def one_slot(taken: bool = True, **controller: Any) -> AsyncIterator[tuple[Cluster, Stubs, list[Any]]]:
    """A fleet with a single slot, held by a stream that hangs: cancel it to let the next one have it."""
    settings = EngineSettings(slots=1, options={"hang_after": "1"})
    async with Cluster(workers=1, engine_settings=settings, **controller) as cluster:
        async with connected(cluster.address) as stubs:
            holders = []
            if taken:
                holders.append(stubs.inference.Generate(ask()))
                await first_token(holders[0])
            yield cluster, stubs, holders
            for holder in holders:
                holder.cancel()


async def first_token(call: Any) -> list[str]:
    """Reads up to the first token; the kinds of the frames before it."""
    kinds = []
    while True:
        frame = await asyncio.wait_for(call.read(), 10)
        kinds.append(frame.WhichOneof("event"))
        if kinds[-1] == "delta":
            return kinds


async def queued(
    stubs: Stubs, cluster: Cluster, request: inference_pb2.GenerateRequest | None = None, **fields: Any
) -> Any:
    """A request that is sure to wait by now."""
    before = cluster.controller.fleet.dispatcher.waiting("echo")
    request = request or ask()
    for name, value in fields.items():
        setattr(request, name, value)
    call = stubs.inference.Generate(request)
    await until(lambda: cluster.controller.fleet.dispatcher.waiting("echo") == before + 1)
    return call


async def failure(call: Any) -> errors.LlavaGrpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    error = from_rpc_error(caught.value)
    assert error is not None
    return error


async def test_who_waits_is_told_where_it_stands_and_served_when_a_slot_comes_free():
    async with one_slot() as (cluster, stubs, [holder]):
        waiting = await queued(stubs, cluster)
        frame = await waiting.read()
        assert frame.queued.position == 0
        listed = await stubs.inference.ListModels(inference_pb2.ListModelsRequest())
        assert listed.models[0].waiting == 1
        holder.cancel()
        assert await first_token(waiting) == ["started", "delta"]
        waiting.cancel()
        await until(lambda: cluster.workers[0].host.running == 0)
        assert cluster.controller.registry.workers()[0].in_flight == 0


async def test_priority_and_then_fair_shares_decide_who_is_next():
    async with one_slot() as (cluster, stubs, [holder]):
        order: list[str] = []

        async def served(name: str, call: Any) -> None:
            async for frame in call:
                if frame.HasField("started"):
                    order.append(name)

        names: dict[str, dict[str, Any]] = {
            "flood1": {"tenant": "flood"},
            "flood2": {"tenant": "flood"},
            "modest": {"tenant": "modest"},
            "batch": {"tenant": "modest", "priority": inference_pb2.PRIORITY_LOW},
            "urgent": {"tenant": "flood", "priority": inference_pb2.PRIORITY_HIGH},
        }
        # One token each, which the engine makes before it would hang.
        calls = {name: await queued(stubs, cluster, ask(max_new_tokens=1), **names[name]) for name in names}
        reading = [asyncio.create_task(served(name, call)) for name, call in calls.items()]
        holder.cancel()
        await asyncio.wait_for(asyncio.gather(*reading), 10)
        assert order == ["urgent", "modest", "flood1", "flood2", "batch"]


async def test_one_that_gives_up_while_waiting_leaves_nothing_behind():
    async with one_slot() as (cluster, stubs, [holder]):
        first, second = await queued(stubs, cluster), await queued(stubs, cluster)
        first.cancel()
        await until(lambda: cluster.controller.fleet.dispatcher.waiting("echo") == 1)
        holder.cancel()
        await first_token(second)
        second.cancel()
        await until(lambda: cluster.workers[0].host.running == 0)
        fleet = cluster.controller.fleet
        await until(lambda: fleet.registry.workers()[0].in_flight == 0)
        assert fleet._waiting == {}


async def test_a_full_queue_is_said_at_once_with_a_time_to_try_again():
    async with one_slot(queue_length=1) as (cluster, stubs, _):
        waiting = await queued(stubs, cluster)
        error = await failure(stubs.inference.Generate(ask()))
        assert isinstance(error, errors.QueueFullError)
        assert error.retry_after is not None
        waiting.cancel()


async def test_who_has_waited_too_long_is_told_so():
    async with one_slot(queue_wait=0.1) as (cluster, stubs, _):
        error = await failure(stubs.inference.Generate(ask()))
        assert isinstance(error, errors.QueueFullError)
        assert cluster.controller.fleet.dispatcher.waiting("echo") == 0


async def test_a_deadline_that_passes_in_the_queue_is_never_dispatched():
    async with one_slot() as (cluster, stubs, [holder]):
        call = stubs.inference.Generate(ask(), timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: cluster.controller.fleet.dispatcher.waiting("echo") == 0)
        assert cluster.workers[0].host.engine.stats().tokens_generated == 1, "the holder's alone"
        holder.cancel()


async def test_a_new_worker_takes_up_those_who_wait():
    async with one_slot() as (cluster, stubs, _):
        waiting = await queued(stubs, cluster)
        await cluster.add_worker()
        await first_token(waiting)
        waiting.cancel()


async def test_a_bad_name_is_an_error_at_once_though_others_wait():
    async with one_slot() as (cluster, stubs, _):
        waiting = await queued(stubs, cluster)
        assert isinstance(await failure(stubs.inference.Generate(ask(model="nobody"))), errors.ModelNotFoundError)
        waiting.cancel()


async def test_a_request_whose_worker_dies_waits_for_the_other_one():
    async with one_slot(taken=False) as (cluster, stubs, holders):
        async with fake_worker(dies_at_once) as dying:
            holders.append(stubs.inference.Generate(ask()))
            await first_token(holders[0])
            await stubs.control.Register(dying.registration(slots=1))
            call = await queued(stubs, cluster)  # its first worker was the dying one: no other had room
            assert dying.calls == 1
            holders[0].cancel()
            assert (await first_token(call))[-2:] == ["started", "delta"]
            call.cancel()


async def test_hundreds_at_once_are_all_served():
    settings = EngineSettings(slots=4, options={"tokens": "5"})
    async with Cluster(workers=2, engine_settings=settings) as cluster, connected(cluster.address) as stubs:

        async def one() -> str:
            last = None
            async for frame in stubs.inference.Generate(ask(), timeout=60):
                last = frame.WhichOneof("event")
            return str(last)

        assert set(await asyncio.gather(*(one() for _ in range(200)))) == {"finished"}
        assert [worker.in_flight for worker in cluster.controller.registry.workers()] == [0, 0]
