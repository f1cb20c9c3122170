"""Register, Heartbeat, Deregister and the reaper, over real gRPC."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llava_grpc import errors
from llava_grpc.config import ControllerSettings, EngineSettings, ServerSettings, SettingsError, WorkerSettings
from llava_grpc.controller.app import ControllerNode
from llava_grpc.rpc.status import from_rpc_error
from llava_grpc.testing.cluster import Cluster
from llava_grpc.v1 import controller_pb2, worker_pb2
from llava_grpc.worker.app import WorkerNode
from tests.support.fake_worker import FakeWorker, dies_at_once, fake_worker
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until
from tests.support.wire import answer_to, ask, connected


async def refusal(call: Any) -> errors.LlavaGrpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert error is not None
    return error


async def test_interval_and_expiry_are_handed_out_at_registration():
    async with Cluster(workers=0) as cluster, connected(cluster.address) as controller, fake_worker(dies_at_once) as w:
        response = await controller.control.Register(w.registration())
    assert (response.heartbeat_interval.seconds, response.expiry.seconds) == (30, 90)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"speed": float("nan")}, errors.RegistrationInvalidError),
        ({"speed": -1.0}, errors.RegistrationInvalidError),
        ({"slots": 0}, errors.RegistrationInvalidError),
        ({"models": []}, errors.RegistrationInvalidError),
        ({"address": "nonsense"}, errors.RegistrationInvalidError),
        ({"protocol_version": 99}, errors.ProtocolVersionError),
        ({"incarnation": "somebody-else"}, errors.AddressTakenError),
        ({"address": "127.0.0.1:1"}, errors.WorkerUnreachableError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_registrations_that_cannot_work_are_told_why(changes: dict[str, Any], error: type[errors.LlavaGrpcError]):
    async with Cluster(workers=0) as cluster, connected(cluster.address) as controller, fake_worker(dies_at_once) as w:
        assert type(await refusal(controller.control.Register(w.registration(**changes)))) is error
        assert cluster.controller.registry.workers() == []
        await controller.control.Register(w.registration())


async def test_what_answers_at_the_address_must_be_a_worker():
    async with Cluster(workers=0) as cluster, connected(cluster.address) as controller, fake_worker(dies_at_once) as w:
        request = w.registration(address=cluster.address)
        assert isinstance(await refusal(controller.control.Register(request)), errors.AddressTakenError)


async def test_an_answer_to_the_call_back_that_comes_after_a_newer_life_registered_is_an_old_one():
    asked, go_on = asyncio.Event(), asyncio.Event()

    class TwoLives(FakeWorker):
        """Another process takes the address over while the first one's answer is under way."""

        async def GetStatus(self, request: Any, context: Any) -> worker_pb2.GetStatusResponse:  # noqa: N802
            mine = self.incarnation
            if mine == "first":
                asked.set()
                await go_on.wait()
            return worker_pb2.GetStatusResponse(incarnation=mine)

    async with Cluster(workers=0) as cluster, connected(cluster.address) as controller:
        async with fake_worker(TwoLives(dies_at_once)) as worker:
            worker.incarnation = "first"
            first = asyncio.ensure_future(refusal(controller.control.Register(worker.registration())))
            await asyncio.wait_for(asked.wait(), 10)
            worker.incarnation = "second"
            await controller.control.Register(worker.registration())
            go_on.set()
            assert isinstance(await first, errors.AddressTakenError)
            assert [known.incarnation for known in cluster.controller.registry.workers()] == ["second"]


async def test_a_silent_worker_is_dropped_and_told_so_by_its_next_heartbeat():
    async with Cluster(workers=0, heartbeat_interval=0.05, heartbeat_expiry=0.2) as cluster:
        async with connected(cluster.address) as controller, fake_worker(dies_at_once) as silent:
            await controller.control.Register(silent.registration())
            await until(lambda: cluster.controller.registry.workers() == [])
            beat = controller_pb2.HeartbeatRequest(address=silent.address, incarnation=silent.incarnation, sequence=1)
            assert not (await controller.control.Heartbeat(beat)).known


@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_suspect_that_leaves_before_it_is_asked_is_not_asked(comes_back: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llava_grpc.controller.fleet.PROBE_FIRST", 0.05)
    async with Cluster(workers=0) as cluster, connected(cluster.address) as controller, fake_worker(dies_at_once) as w:
        fleet = cluster.controller.fleet
        await controller.control.Register(w.registration())
        assert fleet.suspect(w.address, w.incarnation)
        fleet.channel(w.address, w.incarnation)
        [probing] = fleet._probing.values()
        await asyncio.sleep(0)  # it has begun
        fleet.deregister(w.address, w.incarnation)
        if comes_back:  # the same life, over another channel
            await controller.control.Register(w.registration())
        await probing
        assert [known.state.value for known in fleet.registry.workers()] == (["alive"] if comes_back else [])


async def test_a_worker_whose_heartbeats_come_stays():
    async with Cluster(workers=1, heartbeat_interval=0.05, heartbeat_expiry=5.0) as cluster:
        [worker] = cluster.controller.registry.workers()
        await until(lambda: worker.sequence >= 5)
        assert cluster.controller.registry.workers() == [worker]


async def test_one_that_is_exempt_stays_without_heartbeats():
    async with Cluster(workers=0, heartbeat_interval=0.01, heartbeat_expiry=0.02) as cluster:
        async with connected(cluster.address) as controller:
            async with fake_worker(dies_at_once) as exempt, fake_worker(dies_at_once) as checked:
                await controller.control.Register(exempt.registration(check_heartbeat=False))
                await controller.control.Register(checked.registration())
                await until(lambda: len(cluster.controller.registry.workers()) == 1)
                assert cluster.controller.registry.workers()[0].address == exempt.address


async def test_a_worker_dropped_by_mistake_registers_again_by_itself():
    async with Cluster(workers=1, heartbeat_interval=0.05, heartbeat_expiry=5.0) as cluster:
        registry = cluster.controller.registry
        [worker] = registry.workers()
        registry.deregister(worker.address, worker.incarnation)
        await until(lambda: len(registry.workers()) == 1)
        assert registry.workers()[0].incarnation == worker.incarnation


async def test_a_worker_that_stops_deregisters():
    async with Cluster(workers=2) as cluster:
        await cluster.workers.pop().stop()
        assert [worker.address for worker in cluster.controller.registry.workers()] == [cluster.workers[0].address]


async def test_a_worker_waits_for_its_controller_and_finds_a_restarted_one():
    async with Cluster(workers=0) as probe:
        port = int(probe.address.rpartition(":")[2])  # free once the cluster is gone
    settings = WorkerSettings(
        server=ServerSettings(port=0, grace=0), engine_name="echo", controllers=(f"127.0.0.1:{port}",)
    )
    worker = WorkerNode(settings)
    await worker.start()
    try:
        for _ in range(2):  # the first start, and after a restart that forgot everything
            controller = ControllerNode(ControllerSettings(server=ServerSettings(port=port, grace=0)))
            await controller.start()
            await until(lambda: len(controller.registry.workers()) == 1)  # noqa: B023
            async with connected(controller.address) as stubs:
                assert (await answer_to(stubs.inference, ask())).text
            await controller.stop()
    finally:
        await worker.stop()


async def test_a_join_token_is_demanded_of_workers_but_not_of_clients():
    async with Cluster(workers=1, join_token="secret") as cluster, connected(cluster.address) as controller:
        assert (await answer_to(controller.inference, ask())).text
        async with fake_worker(dies_at_once) as stranger:
            request = stranger.registration()
            assert isinstance(await refusal(controller.control.Register(request)), errors.JoinRefusedError)
            wrong = (("authorization", "Bearer wrong"),)
            error = await refusal(controller.control.Register(request, metadata=wrong))
            assert isinstance(error, errors.JoinRefusedError)
            good = cluster.workers[0]
            leave = controller_pb2.DeregisterRequest(address=good.address, incarnation=good.incarnation)
            assert isinstance(await refusal(controller.control.Deregister(leave)), errors.JoinRefusedError)


async def test_a_worker_with_the_wrong_token_ends_with_the_reason():
    async with Cluster(workers=0, join_token="secret") as cluster:
        worker = WorkerNode(
            WorkerSettings(
                server=ServerSettings(port=0, grace=0),
                engine_name="echo",
                controllers=(cluster.address,),
                join_token="wrong",
            )
        )
        await worker.start()
        with pytest.raises(errors.JoinRefusedError):
            await worker.wait()
        await worker.stop()


def test_a_controller_beyond_loopback_needs_a_join_token():
    server = ServerSettings(host="0.0.0.0", port=0)
    with pytest.raises(SettingsError, match="join"):
        ControllerSettings(server=server)
    assert ControllerSettings(server=server, join_token="x").join_token


@pytest.mark.parametrize("token", ["gehéim", "secret\n", " secret", "sec\tret"])
def test_a_token_that_cannot_travel_is_refused_at_once(token: str):
    server = ServerSettings(port=0)
    with pytest.raises(SettingsError, match="token"):
        ControllerSettings(server=server, join_token=token)
    with pytest.raises(SettingsError, match="token"):
        WorkerSettings(server=server, join_token=token)


@pytest.mark.parametrize("address", ["foo", "foo:99999", "http://foo:1", ""])
def test_addresses_that_cannot_be_called_are_refused_before_anything_is_loaded(address: str):
    server = ServerSettings(port=0)
    with pytest.raises(SettingsError, match="HOST:PORT"):
        WorkerSettings(server=server, controllers=(address,))
    if address:
        with pytest.raises(SettingsError, match="HOST:PORT"):
            WorkerSettings(server=server, address=address)


async def test_a_second_node_on_a_taken_port_is_an_error_at_once():
    async with Cluster(workers=1) as cluster:
        for address in (cluster.address, cluster.workers[0].address):
            server = ServerSettings(port=int(address.rpartition(":")[2]))
            with pytest.raises(SettingsError, match="taken"):
                await ControllerNode(ControllerSettings(server=server)).start()
            node = WorkerNode(WorkerSettings(server=server, engine_name="echo"))
            with pytest.raises(SettingsError, match="taken"):
                await node.start()
            await node.stop()


async def test_a_worker_answers_for_its_health_while_it_loads():
    loading, go_on = threading.Event(), threading.Event()

    def load() -> None:
        loading.set()
        assert go_on.wait(10)

    engine = ScriptedEngine(load=load)
    settings = WorkerSettings(server=ServerSettings(port=0, grace=0), controllers=())
    worker = WorkerNode(settings, load_engine=lambda name, settings: engine)
    starting = asyncio.create_task(worker.start())
    await asyncio.to_thread(loading.wait, 10)
    async with connected(worker.address) as stubs:
        health = health_pb2_grpc.HealthStub(stubs.channel)
        status = await health.Check(health_pb2.HealthCheckRequest())
        assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer_to(stubs.inference, ask())
        assert isinstance(from_rpc_error(caught.value), errors.StartingError)
        go_on.set()
        await starting
        status = await health.Check(health_pb2.HealthCheckRequest())
        assert status.status == health_pb2.HealthCheckResponse.SERVING
    await worker.stop()


async def test_aliases_lead_to_the_model():
    settings = EngineSettings(model_name="long-model-name", aliases=("short",))
    async with Cluster(workers=1, engine_settings=settings) as cluster, connected(cluster.address) as controller:
        answer = await answer_to(controller.inference, ask(model="short"))
        assert answer.started.model == "long-model-name"


async def test_all_workers_at_speed_zero_is_its_own_error():
    settings = replace(EngineSettings(), speed=0.0)
    async with Cluster(workers=1, engine_settings=settings) as cluster, connected(cluster.address) as controller:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer_to(controller.inference, ask())
        assert isinstance(from_rpc_error(caught.value), errors.AllSpeedsZeroError)
