"""Heartbeats as a stream, over real gRPC: both ends, and what each makes of a stream that breaks."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from llava_grpc import errors
from llava_grpc.config import ControllerSettings, ServerSettings
from llava_grpc.controller.app import ControllerNode
from llava_grpc.controller.control import ControlServicer
from llava_grpc.core.states import WorkerState
from llava_grpc.core.stream import ModelCard
from llava_grpc.core.worker import Registration, Worker
from llava_grpc.rpc.status import from_rpc_error
from llava_grpc.testing.cluster import Cluster
from llava_grpc.v1 import controller_pb2 as pb
from llava_grpc.v1 import worker_pb2
from tests.support.fake_worker import FakeWorker, dies_at_once, fake_worker
from tests.support.waiting import until
from tests.support.wire import Stubs, answer_to, ask, connected


class Stream:
    """A worker's end, a message at a time."""

    def __init__(self, controller: Stubs, worker: FakeWorker | Worker, **metadata: Any) -> None:
        self._who = {"address": worker.address, "incarnation": worker.incarnation}
        self.call = controller.control.Heartbeats(**metadata)

    async def beat(self, sequence: int, running: int = 0, **who: str) -> None:
        load = pb.Load(running=running)
        await self.call.write(pb.HeartbeatsRequest(sequence=sequence, load=load, **{**self._who, **who}))
        self._who = {}  # later ones need not say it

    async def known(self) -> bool | None:
        """The next answer; None at the end."""
        async with asyncio.timeout(10):
            answer = await self.call.read()
        return None if answer is grpc.aio.EOF else answer.known

    async def refusal(self) -> errors.LlavaGrpcError:
        """The error that the stream ends with."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.known()
        error = from_rpc_error(caught.value)
        assert error is not None
        return error


class Shy(FakeWorker):
    """A worker that answers for itself only when it is let, but for the first time: to register."""

    def __init__(self) -> None:
        super().__init__(dies_at_once)
        self.asked = asyncio.Event()
        self.let = asyncio.Event()

    async def GetStatus(self, request: Any, context: Any) -> worker_pb2.GetStatusResponse:  # noqa: N802
        self.asked.set()
        await self.let.wait()
        return await super().GetStatus(request, context)


@asynccontextmanager
async def streaming(cluster: Cluster, worker: FakeWorker | None = None) -> AsyncIterator[tuple[Worker, Stream, Stubs]]:
    """A fake worker on the register, and its stream after the first heartbeat."""
    async with connected(cluster.address) as controller, fake_worker(worker or dies_at_once) as fake:
        await controller.control.Register(fake.registration())
        [on_register] = (w for w in cluster.controller.registry.workers() if w.incarnation == fake.incarnation)
        stream = Stream(controller, fake)
        await stream.beat(1)
        assert await stream.known()
        yield on_register, stream, controller


def forget(cluster: Cluster, worker: Worker) -> None:
    cluster.controller.registry.deregister(worker.address, worker.incarnation)


def alive(worker: Worker) -> Callable[[], bool]:
    return lambda: worker.state is WorkerState.ALIVE


def complaints(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """What we and gRPC said at that level or above; asyncio's debug mode says more, on a busy machine."""
    return [record.getMessage() for record in caplog.records if record.levelno >= level and record.name != "asyncio"]


# --------------------------------------------------------------------------------------------------- what is said on it


async def test_only_the_first_heartbeat_is_answered_and_bad_news():
    async with Cluster(workers=0) as cluster, streaming(cluster) as (worker, stream, _):
        await stream.beat(2, running=3)
        await stream.beat(3, running=5)
        await until(lambda: worker.sequence == 3)
        assert worker.queue_length == 5
        forget(cluster, worker)
        await stream.beat(4)
        assert [await stream.known(), await stream.known()] == [False, None]
        assert await stream.call.code() is grpc.StatusCode.OK


async def test_one_that_is_not_known_is_told_so_and_the_stream_ends():
    async with Cluster(workers=0) as cluster, connected(cluster.address) as controller, fake_worker(dies_at_once) as w:
        stream = Stream(controller, w)
        await stream.beat(1)
        assert [await stream.known(), await stream.known()] == [False, None]


async def test_the_stream_of_an_earlier_life_ends_and_leaves_the_present_one_alone():
    async with Cluster(workers=0) as cluster, streaming(cluster) as (worker, stream, _):
        life = Registration(
            address=worker.address, incarnation="next life", cards=(ModelCard("echo"),), speed=1.0, slots=1
        )
        cluster.controller.fleet.admit(life)
        await stream.beat(2)
        assert [await stream.known(), await stream.known()] == [False, None]
        [present] = cluster.controller.registry.workers()
        assert (present.incarnation, present.state) == ("next life", WorkerState.ALIVE)


async def test_an_old_sequence_number_tells_nothing_of_the_load():
    async with Cluster(workers=0) as cluster, streaming(cluster) as (worker, stream, _):
        await stream.beat(7, running=4)
        await stream.beat(6, running=0)
        await stream.beat(8, running=4)
        await until(lambda: worker.sequence == 8)
        assert worker.queue_length == 4


@pytest.mark.parametrize(
    "change", [{"address": "127.0.0.1:9"}, {"incarnation": "another"}], ids=lambda change: next(iter(change))
)
async def test_a_stream_is_one_workers(change: dict[str, str]):
    async with Cluster(workers=0) as cluster, streaming(cluster) as (worker, stream, _):
        await stream.beat(2, **change)
        assert isinstance(await stream.refusal(), errors.RegistrationInvalidError)
        await until(alive(worker))


async def test_the_join_token_is_demanded_when_the_stream_opens():
    async with Cluster(workers=1, join_token="secret") as cluster, connected(cluster.address) as controller:
        [worker] = cluster.controller.registry.workers()
        await until(lambda: worker.sequence > 0)
        stranger = Stream(controller, worker)
        assert isinstance(await stranger.refusal(), errors.JoinRefusedError)
        assert worker.state is WorkerState.ALIVE
        member = Stream(controller, worker, metadata=(("authorization", "Bearer secret"),))
        await member.beat(99)
        assert await member.known()


# ------------------------------------------------------------------------------------------------- when a stream breaks


async def test_a_worker_whose_stream_breaks_is_suspect_at_once_and_back_when_it_answers():
    async with Cluster(workers=0, queue_length=0) as cluster:
        shy = Shy()
        shy.let.set()
        async with streaming(cluster, shy) as (worker, stream, controller):
            shy.let.clear()
            shy.asked.clear()
            stream.call.cancel()
            await until(lambda: worker.state is WorkerState.SUSPECT)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await answer_to(controller.inference, ask())
            assert isinstance(from_rpc_error(caught.value), errors.NoLiveWorkerError)
            await asyncio.wait_for(shy.asked.wait(), 0.9)  # at once, not after PROBE_FIRST
            shy.let.set()
            await until(alive(worker))


async def test_the_next_heartbeat_clears_it_too():
    async with Cluster(workers=0) as cluster:
        shy = Shy()
        shy.let.set()
        async with streaming(cluster, shy) as (worker, stream, controller):
            shy.let.clear()
            stream.call.cancel()
            await until(lambda: worker.state is WorkerState.SUSPECT)
            again = Stream(controller, shy)
            await again.beat(2)
            assert await again.known()
            assert worker.state is WorkerState.ALIVE
            shy.let.set()


async def test_an_older_stream_that_breaks_casts_no_doubt(caplog: pytest.LogCaptureFixture):
    async with Cluster(workers=0) as cluster, streaming(cluster) as (worker, stream, controller):
        again = Stream(controller, worker)
        await again.beat(2)
        assert await again.known()
        stream.call.cancel()
        await again.beat(3)
        await until(lambda: worker.sequence == 3)
        await until(lambda: len(cluster.controller._control._streams._open) == 1)
        assert worker.state is WorkerState.ALIVE
        assert "broke off" not in caplog.text


async def test_a_dead_worker_gets_no_work_though_it_was_idle():
    async with Cluster(workers=1) as cluster, connected(cluster.address) as controller:
        async with fake_worker(dies_at_once) as doomed:
            await controller.control.Register(doomed.registration())
            stream = Stream(controller, doomed)
            await stream.beat(1)
            assert await stream.known()
        [dead] = (w for w in cluster.controller.registry.workers() if w.address == doomed.address)
        stream.call.cancel()
        await until(lambda: dead.state is WorkerState.SUSPECT)
        for _ in range(20):
            await answer_to(controller.inference, ask())
        assert doomed.calls == 0
        assert dead.state is WorkerState.SUSPECT


async def test_streams_that_are_lost_are_no_defects(caplog: pytest.LogCaptureFixture):
    async with Cluster(workers=0) as cluster:
        workers = admitted(cluster.controller, 50)
        async with connected(cluster.address) as controller:
            streams = [Stream(controller, worker) for worker in workers]
            for stream in streams:
                await stream.beat(1)
            assert all([await stream.known() for stream in streams])
            for number, stream in enumerate(streams):
                if number % 2:
                    await stream.call.done_writing()
                else:
                    stream.call.cancel()
        await until(lambda: not cluster.controller._control._streams._open)
    assert complaints(caplog, logging.ERROR) == []


async def test_a_worker_that_leaves_is_never_in_doubt(caplog: pytest.LogCaptureFixture):
    async with Cluster(workers=2) as cluster:
        await until(lambda: all(worker.sequence for worker in cluster.controller.registry.workers()))
        leaving = cluster.workers.pop()
        [membership] = leaving._memberships
        stream = membership._stream
        assert stream is not None
        await leaving.stop()
        assert stream._news.done()
        assert stream._call.done()
        assert len(cluster.controller.registry.workers()) == 1
        await until(lambda: len(cluster.controller._control._streams._open) == 1)
    assert "broke off" not in caplog.text


# ---------------------------------------------------------------------------------------------------- the worker's side


async def test_a_worker_that_is_forgotten_registers_again_over_a_new_stream():
    async with Cluster(workers=1, heartbeat_interval=0.05, heartbeat_expiry=5.0) as cluster:
        [worker] = cluster.controller.registry.workers()
        forget(cluster, worker)
        await until(lambda: bool(cluster.controller.registry.workers()))
        [again] = cluster.controller.registry.workers()
        assert again.incarnation == worker.incarnation
        await until(lambda: again.sequence > worker.sequence)


async def test_a_worker_whose_stream_breaks_opens_another_at_once():
    async with Cluster(workers=1) as cluster:  # a heartbeat every 30 s
        [worker] = cluster.controller.registry.workers()
        await until(lambda: worker.sequence == 1)
        [membership] = cluster.workers[0]._memberships
        assert membership._stream is not None
        membership._stream._call.cancel()
        await until(lambda: worker.sequence == 2)
        await until(alive(worker))


async def test_an_older_controller_gets_a_call_for_each_heartbeat(monkeypatch: pytest.MonkeyPatch):
    async def unknown(self: ControlServicer, beats: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    monkeypatch.setattr(ControlServicer, "Heartbeats", unknown)
    async with Cluster(workers=1, heartbeat_interval=0.05, heartbeat_expiry=5.0) as cluster:
        [worker] = cluster.controller.registry.workers()
        await until(lambda: worker.sequence >= 3)
        forget(cluster, worker)
        await until(lambda: bool(cluster.controller.registry.workers()))
        monkeypatch.undo()


async def test_one_that_is_exempt_may_stream_or_not():
    async with Cluster(workers=0, heartbeat_interval=0.01, heartbeat_expiry=0.02) as cluster:
        node = await cluster.add_worker(check_heartbeat=False)
        async with connected(cluster.address) as controller, fake_worker(dies_at_once) as silent:
            await controller.control.Register(silent.registration(check_heartbeat=False))
            workers = {worker.address: worker for worker in cluster.controller.registry.workers()}
            await until(lambda: workers[node.address].sequence >= 20)
            assert [worker.state for worker in workers.values()] == [WorkerState.ALIVE] * 2
            assert len(cluster.controller.registry.workers()) == 2


# ------------------------------------------------------------------------------------------ a controller that goes away


def admitted(controller: ControllerNode, count: int) -> list[Worker]:
    """Workers on the register that nobody called back."""
    for number in range(count):
        controller.fleet.admit(
            Registration(
                address=f"127.0.0.1:{number + 1}",
                incarnation=f"life-{number}",
                cards=(ModelCard("m"),),
                speed=1.0,
                slots=1,
            )
        )
    return controller.registry.workers()


async def test_fifty_open_streams_do_not_hold_up_a_stop(caplog: pytest.LogCaptureFixture):
    controller = ControllerNode(ControllerSettings(server=ServerSettings(port=0, grace=60)))
    await controller.start()
    async with connected(controller.address) as stubs:
        streams = [Stream(stubs, worker) for worker in admitted(controller, 50)]
        for stream in streams:
            await stream.beat(1)
        assert all([await stream.known() for stream in streams])
        async with asyncio.timeout(10):
            await controller.stop()
        for stream in streams:
            assert isinstance(await stream.refusal(), errors.ShuttingDownError)
    assert all(worker.state is WorkerState.ALIVE for worker in controller.registry.workers())
    assert complaints(caplog, logging.WARNING) == []


async def test_a_fleet_is_back_soon_after_its_controller():
    async with Cluster(workers=3) as cluster:  # a heartbeat every 30 s: it is not what brings them back
        await until(lambda: all(worker.sequence for worker in cluster.controller.registry.workers()))
        port = int(cluster.address.rpartition(":")[2])
        await cluster.controller.stop()
        cluster.controller = ControllerNode(ControllerSettings(server=ServerSettings(port=port, grace=0)))
        await cluster.controller.start()
        await until(lambda: len(cluster.controller.registry.workers()) == 3)
        await until(lambda: all(worker.sequence for worker in cluster.controller.registry.workers()))
