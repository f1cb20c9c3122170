"""Who gets the next request, over real gRPC; that counts come back to zero however a request ends; and what is told
of it afterwards."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from llava_grpc.cli.main import run
from llava_grpc.client import AsyncClient, Client
from llava_grpc.config import DEFAULT_STRATEGY, EngineSettings
from llava_grpc.core.prompt import Priority
from llava_grpc.errors import EngineFailedError
from llava_grpc.rpc.status import abort
from llava_grpc.testing.cluster import Cluster
from llava_grpc.v1 import controller_pb2, inference_pb2
from tests.support.fake_worker import dies_at_once, fake_worker
from tests.support.waiting import until
from tests.support.wire import ask, connected

SECONDS = 30.0


async def first_token(call: Any) -> None:
    while not (await call.read()).HasField("delta"):
        pass


async def ended(call: Any) -> grpc.StatusCode:
    """Reads to the end, whatever it is."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        pass
    return await call.code()


@pytest.mark.parametrize("end", ["finished", "cancelled", "error", "worker lost", "deadline"])
async def test_a_hundred_at_once_on_four_idle_equals_are_split_evenly_and_counted_out(end: str):
    go = asyncio.Event()

    async def hold(request: inference_pb2.GenerateRequest, context: Any) -> None:
        await context.write(inference_pb2.GenerateResponse(started=inference_pb2.Started()))
        offset = len(request.emitted_token_ids)
        delta = inference_pb2.Delta(text=["one"], token_ids=[1], end_offset=offset + 1)
        await context.write(inference_pb2.GenerateResponse(delta=delta))
        await go.wait()
        if end == "finished":
            await context.write(inference_pb2.GenerateResponse(finished=inference_pb2.Finished()))
        elif end == "error":
            await abort(context, EngineFailedError("it broke"))
        elif end == "worker lost":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        else:
            await asyncio.Event().wait()

    # No heartbeat comes: nobody sends one, and the interval is long.
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster(workers=0, strategy="shortest_queue"))
        stubs = await stack.enter_async_context(connected(cluster.address))
        workers = [await stack.enter_async_context(fake_worker(hold)) for _ in range(4)]
        for worker in workers:
            await stubs.control.Register(worker.registration(slots=30))
        timeout = 2.0 if end == "deadline" else SECONDS
        calls = [stubs.inference.Generate(ask(f"{number}"), timeout=timeout) for number in range(100)]
        if end == "deadline":  # which may come before all have a worker: how they are split the others see
            await until(lambda: any(worker.calls for worker in workers))
        else:
            await asyncio.wait_for(asyncio.gather(*map(first_token, calls)), SECONDS)
            assert all(24 <= worker.calls <= 26 for worker in workers), [worker.calls for worker in workers]
        go.set()
        if end == "cancelled":
            for call in calls:
                call.cancel()
        codes = set(await asyncio.wait_for(asyncio.gather(*map(ended, calls)), SECONDS))
        assert codes == {
            {
                "finished": grpc.StatusCode.OK,
                "cancelled": grpc.StatusCode.CANCELLED,
                "error": grpc.StatusCode.INTERNAL,
                "worker lost": grpc.StatusCode.UNAVAILABLE,
                "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
            }[end]
        }
        registry = cluster.controller.registry
        await until(lambda: [worker.in_flight for worker in registry.workers()] == [0] * 4)
        assert [(worker.unread, worker.promised) for worker in registry.workers()] == [(0, 0)] * 4


async def test_room_for_keys_and_values_binds_and_is_listed():
    """Two short requests fit a worker with room for 300 tokens, whatever its slots; the third waits for room."""
    settings = EngineSettings(slots=8, options={"hang_after": "1", "kv_tokens": "300", "cached_pictures": "7"})
    async with Cluster(workers=1, engine_settings=settings) as cluster, connected(cluster.address) as stubs:
        [listed] = (await stubs.control.ListWorkers(controller_pb2.ListWorkersRequest())).workers
        assert (listed.kv_tokens, listed.cached_pictures) == (300, 7)
        async with AsyncClient(cluster.address) as client:
            [view] = await client.workers()
            assert (view.kv_tokens, view.cached_pictures) == (300, 7)
        calls = [stubs.inference.Generate(ask(f"{number}", max_new_tokens=140)) for number in range(2)]
        await asyncio.wait_for(asyncio.gather(*map(first_token, calls)), SECONDS)
        third = stubs.inference.Generate(ask("third", max_new_tokens=140))
        frame = await asyncio.wait_for(third.read(), SECONDS)
        assert frame.queued.position == 0
        calls[0].cancel()
        await asyncio.wait_for(first_token(third), SECONDS)
        third.cancel()
        calls[1].cancel()
        await until(lambda: cluster.controller.registry.workers()[0].promised == 0)


# ------------------------------------------------------------------------------------------------------------ explain


async def test_explain_tells_a_requests_way_over_several_attempts():
    async with Cluster(workers=0) as cluster, AsyncClient(cluster.address) as client:
        async with fake_worker(dies_at_once) as dying, connected(cluster.address) as stubs:
            await stubs.control.Register(dying.registration(slots=1, speed=5.0))  # the fastest: it is tried first
            await cluster.add_worker()
            options = {"tenant": "someone", "priority": Priority.HIGH, "max_new_tokens": 3}
            await client.ask("What is this?", request_id="the-one", **options)
        [record] = await client.explain("the-one")
        assert (record.model, record.tenant, record.priority) == ("echo", "someone", Priority.HIGH)
        assert (record.outcome, record.answer_tokens, record.most_answer_tokens) == ("ok", 3, 3)
        assert [decision.address for decision in record.decisions] == [dying.address, cluster.workers[0].address]
        first, second = record.decisions
        assert (first.strategy, first.candidates, second.candidates) == (DEFAULT_STRATEGY, 2, 1)
        assert {one.address for one in first.considered} == {dying.address, cluster.workers[0].address}
        assert first.considered[0].address == dying.address, "the best first"
        assert record.waited == second.after
        assert record.first_token is not None
        assert record.ended is not None
        assert 0 <= first.after <= second.after <= record.first_token <= record.ended


async def test_explain_without_an_id_tells_of_the_latest_also_of_those_that_fail_or_wait():
    settings = EngineSettings(slots=1, options={"tokens": "2"})
    async with Cluster(workers=1, engine_settings=settings) as cluster, AsyncClient(cluster.address) as client:
        for number in range(5):
            await client.ask("hi", request_id=f"request-{number}")
        assert [one.request_id for one in await client.explain(limit=2)] == ["request-3", "request-4"]
        assert len(await client.explain(limit=None)) == 5
        assert await client.explain(limit=0) == []
        assert await client.explain("nobody's") == []
        with Client(cluster.address) as twin:
            records = await asyncio.to_thread(twin.explain, "request-0")
        assert [one.outcome for one in records] == ["ok"]


async def test_what_was_recorded_can_be_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = EngineSettings(slots=2, options={"step_ms": "2", "prompt_token_ms": "0.1"})
    async with Cluster(workers=2, engine_settings=settings) as cluster, AsyncClient(cluster.address) as client:
        await asyncio.gather(
            *(
                client.ask(f"question {number}", request_id=f"request-{number}", max_new_tokens=8)
                for number in range(12)
            )
        )
        path = tmp_path / "load.jsonl"
        address = ["--controller", cluster.address]
        assert await asyncio.to_thread(run, ["explain", "--export", str(path), *address]) == 0
        assert "2 workers and 12 requests" in " ".join(capsys.readouterr().out.split())
        assert await asyncio.to_thread(run, ["explain", "request-3", *address]) == 0
        shown = capsys.readouterr().out
        assert DEFAULT_STRATEGY in shown
        assert "first token after" in shown
        assert await asyncio.to_thread(run, ["explain", *address, "--limit", "3", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == 3
        assert await asyncio.to_thread(run, ["explain", "nobody's", *address]) == 1
        assert "knows nothing of" in " ".join(capsys.readouterr().err.split())
    line = ["simulate", "--replay", str(path), "--strategy", DEFAULT_STRATEGY, "--strategy", "round_robin", "--json"]
    assert await asyncio.to_thread(run, line) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["requests"] == 12
    assert [row["strategy"] for row in report["rows"]] == ["recorded", DEFAULT_STRATEGY, "round_robin"]
    recorded = report["rows"][0]
    assert 0 < recorded["first_token_p50"] <= recorded["answer_p99"]
