"""Drain over real gRPC: by a call to the worker or its controller, or by stopping the node, which are one thing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llava_grpc import errors
from llava_grpc.client import AsyncClient, Client
from llava_grpc.config import ServerSettings, SettingsError, WorkerSettings
from llava_grpc.controller.app import ControllerNode
from llava_grpc.core.registry import Registry
from llava_grpc.core.states import DrainProgress, WorkerState
from llava_grpc.rpc.status import from_rpc_error
from llava_grpc.testing.cluster import Cluster
from llava_grpc.v1 import controller_pb2, inference_pb2, worker_pb2
from llava_grpc.worker.app import WorkerNode
from tests.support.fake_worker import FakeWorker, dies_at_once, fake_worker
from tests.support.nodes import controller, worker
from tests.support.waiting import until
from tests.support.wire import Answer, Stubs, answer_to, ask, connected

LONG = 3600.0
STUCK = {"hang_after": "3"}
"""The echo engine makes three tokens, and then nothing: a stream that ends when its client goes, or is ended."""


async def health(stubs: Stubs, service: str = "") -> str:
    status = await health_pb2_grpc.HealthStub(stubs.channel).Check(health_pb2.HealthCheckRequest(service=service))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status.status))


async def refusal(call: Any) -> errors.LlavaGrpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert error is not None
    return error


class Stuck:
    """A stream of a worker that hangs after three tokens."""

    def __init__(self, stubs: Stubs) -> None:
        self.call = stubs.inference.Generate(ask(), timeout=30)
        self.frames = aiter(self.call)
        self.answer = Answer()

    async def under_way(self) -> None:
        while len(self.answer.token_ids) < 3:
            self.answer.frames.append(await anext(self.frames))

    async def end(self) -> errors.LlavaGrpcError | None:
        """The error that it ends with."""

        async def rest() -> None:
            async for frame in self.frames:
                self.answer.frames.append(frame)

        return await refusal(rest())


@asynccontextmanager
async def stuck(stubs: Stubs) -> AsyncIterator[Stuck]:
    stream = Stuck(stubs)
    async with asyncio.timeout(20):
        await stream.under_way()
    try:
        yield stream
    finally:
        stream.call.cancel()


def state_of(node: ControllerNode, address: str) -> WorkerState | None:
    found = node.registry.at(address)
    return found.state if found is not None else None


# --------------------------------------------------------------------------------------------------------- by a call


async def test_a_drained_worker_finishes_what_it_has_and_leaves_all_its_controllers():
    async with controller() as one, controller() as other:
        async with worker(one.address, other.address, grace=LONG, options=STUCK) as node:
            waiting = asyncio.create_task(node.wait())
            async with (
                connected(node.address) as direct,
                stuck(direct) as stream,
                connected(one.address) as asked,
            ):
                call = aiter(asked.control.Drain(controller_pb2.ControllerServiceDrainRequest(address=node.address)))
                first = await anext(call)
                assert (first.running, first.ended, first.done) == (1, 0, False)
                assert 0 < first.grace_left.ToNanoseconds() / 1e9 <= LONG
                for there in (one, other):
                    await until(lambda: state_of(there, node.address) is WorkerState.DRAINING)  # noqa: B023
                assert await health(direct) == "NOT_SERVING"
                assert await health(direct, "llava_grpc.v1.InferenceService") == "NOT_SERVING"
                assert (await direct.worker.GetStatus(worker_pb2.GetStatusRequest())).draining
                assert isinstance(await refusal(answer_to(direct.inference, ask())), errors.ShuttingDownError)
                assert not waiting.done()
                stream.call.cancel()  # which is how this one ends
                last = [progress async for progress in call][-1]
                assert (last.running, last.ended, last.done) == (0, 0, True)
            for there in (one, other):
                assert there.registry.workers() == []
            await asyncio.wait_for(waiting, 10)


async def test_an_answer_under_way_comes_to_its_end():
    options = {"token_interval_ms": "10", "tokens": "60"}
    async with Cluster(workers=1, options=options, grace=LONG) as cluster, connected(cluster.address) as stubs:
        request = ask(seed=1)
        undisturbed = await answer_to(stubs.inference, request)
        [node] = cluster.workers
        answering = asyncio.create_task(answer_to(stubs.inference, request))
        await until(lambda: node.host.running == 1)
        async with AsyncClient(cluster.address) as client:
            end = await client.drain(node.address)
        assert (end.running, end.ended, end.done) == (0, 0, True)
        assert (await answering).token_ids == undisturbed.token_ids
        assert (await answering).finished.reason == undisturbed.finished.reason


async def test_what_outlasts_the_grace_time_ends_with_the_reason_and_never_as_an_answer():
    async with Cluster(workers=1, options=STUCK, grace=LONG) as cluster:
        [node] = cluster.workers
        async with connected(node.address) as direct, AsyncClient(node.address) as client, stuck(direct) as stream:
            draining = asyncio.create_task(client.drain(grace=0.01))  # of the node that it is a client of
            assert isinstance(await stream.end(), errors.ShuttingDownError)
            assert stream.answer.kinds == ["started", *["delta"] * (len(stream.answer.frames) - 1)]
            end = await asyncio.wait_for(draining, 10)
            assert (end.running, end.ended, end.done) == (0, 1, True)
        await until(lambda: node.host.running == 0)


async def test_work_goes_elsewhere_while_a_worker_drains():
    async with Cluster(workers=2, grace=LONG, options=STUCK) as cluster, connected(cluster.address) as stubs:
        going, staying = cluster.workers
        async with connected(going.address) as direct, stuck(direct) as stream:
            async with AsyncClient(cluster.address) as client:
                draining = asyncio.create_task(client.drain(going.address))
                await until(lambda: state_of(cluster.controller, going.address) is WorkerState.DRAINING)
                for _ in range(10):
                    call = stubs.inference.Generate(ask(), timeout=20)
                    assert (await call.read()).started.worker_address == staying.address
                    call.cancel()
                stream.call.cancel()
                assert (await asyncio.wait_for(draining, 10)).done


async def test_a_controller_that_does_not_listen_has_its_requests_declined(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Registry, "drain", lambda *told: None)  # an older one
    options = {"tokens": "5"}
    async with Cluster(workers=2, grace=LONG, options=options) as cluster, connected(cluster.address) as stubs:
        going, staying = cluster.workers
        going._drain.begin()  # and so soon that nobody could have been told
        answers = [await answer_to(stubs.inference, ask()) for _ in range(10)]
        assert {answer.started.worker_address for answer in answers} == {staying.address}
        assert all(found.state is WorkerState.ALIVE for found in cluster.controller.registry.workers())


async def test_who_asks_again_joins_and_the_earlier_end_counts():
    async with Cluster(workers=1, options=STUCK, grace=LONG) as cluster:
        [node] = cluster.workers
        async with connected(node.address) as direct, AsyncClient(cluster.address) as client, stuck(direct) as stream:
            heard: list[DrainProgress] = []
            first = asyncio.create_task(client.drain(node.address, on_progress=heard.append))
            await until(lambda: bool(heard))
            assert heard[0].grace_left > 1000
            second = await asyncio.wait_for(client.drain(node.address, grace=0.01), 10)
            assert await asyncio.wait_for(first, 10) == second
            assert isinstance(await stream.end(), errors.ShuttingDownError)


async def test_a_worker_that_is_unknown_or_gone_is_named():
    async with Cluster(workers=1) as cluster, AsyncClient(cluster.address) as client:
        with pytest.raises(errors.WorkerNotFoundError, match=r"127\.0\.0\.1:9"):
            await client.drain("127.0.0.1:9")
        address = cluster.workers[0].address
        assert (await client.drain(address)).done
        with pytest.raises(errors.WorkerNotFoundError, match=address):
            await client.drain(address)


@pytest.mark.parametrize("grace", [-1.0, float("nan"), float("inf")])
async def test_a_grace_that_makes_no_sense_is_refused_before_anybody_is_asked(grace: float):
    async with Cluster(workers=1) as cluster, AsyncClient(cluster.address) as client:
        with pytest.raises(SettingsError, match="grace"):
            await client.drain(cluster.workers[0].address, grace=grace)
        assert not cluster.workers[0]._drain.begun.is_set()
    with pytest.raises(SettingsError, match="grace"):
        ServerSettings(port=0, grace=grace)


async def test_a_worker_that_is_dead_is_named_so():
    async with (
        Cluster(workers=0) as cluster,
        connected(cluster.address) as stubs,
        AsyncClient(cluster.address) as client,
    ):
        async with fake_worker(dies_at_once) as dead:
            await stubs.control.Register(dead.registration())
        with pytest.raises(errors.WorkerUnreachableError, match=dead.address):
            await client.drain(dead.address)
        assert state_of(cluster.controller, dead.address) is not WorkerState.DRAINING


async def test_a_worker_that_dies_while_it_drains_is_lost():
    class Dying(FakeWorker):
        async def Drain(self, request: Any, context: Any) -> None:  # noqa: N802
            await context.write(worker_pb2.WorkerServiceDrainResponse(running=1))

    async with (
        Cluster(workers=0) as cluster,
        connected(cluster.address) as stubs,
        AsyncClient(cluster.address) as client,
    ):
        async with fake_worker(Dying(dies_at_once)) as dying:
            await stubs.control.Register(dying.registration())
            with pytest.raises(errors.WorkerLostError, match=dying.address):
                await client.drain(dying.address)


async def test_a_silent_worker_holds_nobody_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llava_grpc.controller.draining.SILENCE", 0.1)

    class Silent(FakeWorker):
        async def Drain(self, request: Any, context: Any) -> None:  # noqa: N802
            await asyncio.get_running_loop().create_future()

    async with (
        Cluster(workers=0) as cluster,
        connected(cluster.address) as stubs,
        AsyncClient(cluster.address) as client,
    ):
        async with fake_worker(Silent(dies_at_once)) as silent:
            await stubs.control.Register(silent.registration())
            with pytest.raises(errors.WorkerUnreachableError, match=r"0\.1 s"):
                await client.drain(silent.address)


async def test_it_takes_the_join_token():
    async with Cluster(workers=1, join_token="secret") as cluster:
        [node] = cluster.workers
        async with AsyncClient(cluster.address) as client, AsyncClient(node.address) as direct:
            for ask_to_drain in (client.drain(node.address), direct.drain(join_token="wrong")):
                with pytest.raises(errors.JoinRefusedError):
                    await ask_to_drain
            assert not node._drain.begun.is_set()
            assert (await client.drain(node.address, join_token="secret")).done


async def test_without_a_token_nobody_beyond_this_machine_is_asked_to_trust():
    settings = WorkerSettings(server=ServerSettings(host="0.0.0.0", port=0), engine_name="echo", controllers=())
    node = WorkerNode(settings)
    await node.start()
    try:
        async with AsyncClient(f"127.0.0.1:{node.address.rpartition(':')[2]}") as client:
            with pytest.raises(errors.JoinRefusedError, match="SIGTERM"):
                await client.drain()
    finally:
        await node.stop()


async def test_a_worker_that_drains_does_not_register_again():
    async with Cluster(workers=1, options=STUCK, grace=LONG, heartbeat_interval=0.02, heartbeat_expiry=9) as cluster:
        [node] = cluster.workers
        async with connected(node.address) as direct, stuck(direct) as stream:
            node._drain.begin()
            await until(lambda: state_of(cluster.controller, node.address) is WorkerState.DRAINING)
            cluster.controller.registry.deregister(node.address, node.incarnation)
            [task] = node._memberships._tasks
            await asyncio.wait_for(task, 10)  # it was told, and left it at that
            assert cluster.controller.registry.workers() == []
            stream.call.cancel()


async def test_one_that_is_told_while_it_loads_serves_nobody():
    settings = WorkerSettings(server=ServerSettings(port=0, grace=0), engine_name="echo", controllers=("127.0.0.1:9",))
    node = WorkerNode(
        settings, lambda words: node._drain.begun.is_set() or loop.call_soon_threadsafe(node._drain.begin)
    )
    loop = asyncio.get_running_loop()
    await node.start()
    await asyncio.wait_for(node.wait(), 10)
    assert list(node._memberships) == []
    async with connected(node.address) as direct:
        assert await health(direct) == "NOT_SERVING"
        assert isinstance(await refusal(answer_to(direct.inference, ask())), errors.ShuttingDownError)
    await node.stop()


def test_the_client_without_asyncio_drains_too():
    loop = asyncio.new_event_loop()

    async def fleet(ready: "asyncio.Future[tuple[str, str]]", end: asyncio.Event) -> None:
        async with Cluster(workers=1) as cluster:
            ready.set_result((cluster.address, cluster.workers[0].address))
            await end.wait()

    async def drained() -> DrainProgress:
        ready, end = loop.create_future(), asyncio.Event()
        running = asyncio.create_task(fleet(ready, end))
        address, node = await ready
        heard: list[DrainProgress] = []

        def ask_it() -> DrainProgress:
            with Client(address) as client:
                return client.drain(node, on_progress=heard.append)

        last = await asyncio.to_thread(ask_it)
        end.set()
        await running
        assert heard[-1] == last
        return last

    try:
        assert loop.run_until_complete(drained()).done
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


# ------------------------------------------------------------------------------------------------- stopping a node


async def test_stopping_a_worker_is_the_same():
    async with controller() as there, worker(there.address, grace=0.01, options=STUCK) as node:
        async with connected(node.address) as direct, stuck(direct) as stream:
            stopping = asyncio.create_task(node.stop())
            assert isinstance(await stream.end(), errors.ShuttingDownError)
            await asyncio.wait_for(stopping, 10)
            assert there.registry.workers() == []


async def test_stopping_a_worker_cuts_a_longer_grace_short():
    async with worker(grace=0.01, options=STUCK) as node, AsyncClient(node.address) as client:
        async with connected(node.address) as direct, stuck(direct) as stream:
            draining = asyncio.create_task(client.drain(grace=LONG))
            await until(lambda: node._drain.begun.is_set())
            stopping = asyncio.create_task(node.stop())
            assert isinstance(await stream.end(), errors.ShuttingDownError)
            assert (await asyncio.wait_for(draining, 10)).ended == 1, "told to the end, before the server is gone"
            await asyncio.wait_for(stopping, 10)


async def test_a_controller_that_stops_lets_streams_run_and_then_says_why_it_ends_them():
    async with controller(grace=LONG) as node, worker(node.address, options=STUCK):
        async with connected(node.address) as stubs, stuck(stubs) as one, stuck(stubs) as other:
            stopping = asyncio.create_task(node.stop())
            await until(lambda: node._drain.begun.is_set())
            assert isinstance(await refusal(answer_to(stubs.inference, ask())), errors.ShuttingDownError)
            assert await health(stubs) == "NOT_SERVING"
            assert (await stubs.control.ListWorkers(controller_pb2.ListWorkersRequest())).workers[0].in_flight == 2
            one.call.cancel()
            await until(lambda: node._drain.progress.running == 1)
            assert not stopping.done()
            node._drain.begin(0)  # as if its grace were over
            assert isinstance(await other.end(), errors.ShuttingDownError)
            assert "finished" not in other.answer.kinds
            await asyncio.wait_for(stopping, 10)


async def test_a_request_that_waits_at_a_controller_that_stops_is_told_so():
    async with controller(grace=LONG) as node, worker(node.address, slots=1, options=STUCK):
        async with connected(node.address) as stubs, stuck(stubs) as running:
            frames = aiter(stubs.inference.Generate(ask(), timeout=20))
            assert (await anext(frames)).HasField("queued")
            stopping = asyncio.create_task(node.stop())
            await until(lambda: node._drain.begun.is_set())
            assert not stopping.done()
            node._drain.begin(0)

            async def rest() -> list[inference_pb2.GenerateResponse]:
                return [frame async for frame in frames]

            assert isinstance(await refusal(rest()), errors.ShuttingDownError)
            assert isinstance(await running.end(), errors.ShuttingDownError)
            await asyncio.wait_for(stopping, 10)
            assert all(found.in_flight == 0 for found in node.registry.workers())


# ------------------------------------------------------------------------------------------ what it means to a client


async def test_an_answer_that_outlasts_the_grace_time_goes_on_elsewhere_and_is_the_same():
    options = {"token_interval_ms": "20", "tokens": "60"}
    async with Cluster(workers=2, options=options) as cluster, connected(cluster.address) as stubs:
        for sampling in ({}, {"temperature": 0.9}):
            request = ask(seed=5, **sampling)
            undisturbed = await answer_to(stubs.inference, request)
            answering = asyncio.create_task(answer_to(stubs.inference, request))
            await until(lambda: any(node.host.running for node in cluster.workers))
            [busy] = [node for node in cluster.workers if node.host.running]
            async with AsyncClient(cluster.address) as client:
                end = await client.drain(busy.address, grace=0.2)
            assert (end.running, end.ended, end.done) == (0, 1, True)
            cut = await asyncio.wait_for(answering, 30)
            assert cut.finished.resumes == 1
            assert (cut.token_ids, cut.text) == (undisturbed.token_ids, undisturbed.text)
            await busy.stop()
            cluster.workers.remove(busy)
            await cluster.add_worker()
