"""Generate through the controller: the same as from the worker, whatever happens to workers and clients on the way."""

import asyncio

import grpc
import pytest

from llava_grpc import errors
from llava_grpc.rpc.status import explain_rpc_error, from_rpc_error
from llava_grpc.testing.cluster import Cluster
from llava_grpc.v1 import controller_pb2, inference_pb2
from tests.support.fake_worker import (
    Behaviour,
    breaks_after_the_end,
    declines,
    dies_after_started,
    dies_at_once,
    ends_early,
    fake_worker,
)
from tests.support.waiting import until
from tests.support.wire import Stubs, answer_to, ask, connected


async def refusal(stubs: Stubs, request: inference_pb2.GenerateRequest) -> errors.LlavaGrpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer_to(stubs.inference, request)
    return explain_rpc_error(caught.value, "the controller")


async def test_an_answer_is_the_same_through_the_controller_as_from_the_worker():
    async with Cluster(workers=1) as cluster, connected(cluster.address) as controller:
        async with connected(cluster.workers[0].address) as worker:
            request = ask("what is it?", image=b"a picture", seed=5, max_new_tokens=20)
            request.request_id = "same-both-ways"
            through, direct = await answer_to(controller.inference, request), await answer_to(worker.inference, request)
    assert through.token_ids == direct.token_ids
    assert through.text == direct.text
    assert through.started == direct.started
    assert through.started.request_id == "same-both-ways"
    assert through.finished.reason == inference_pb2.FINISH_REASON_LENGTH
    assert through.finished.usage == direct.finished.usage
    assert through.finished.usage.completion_tokens == 20


async def test_what_the_client_left_out_is_filled_in_at_the_controller():
    async with Cluster(workers=1) as cluster, connected(cluster.address) as controller:
        first = await answer_to(controller.inference, ask())
        assert len(first.started.request_id) == 16
        assert first.started.model == "echo"
        again = ask(seed=first.started.seed)
        assert (await answer_to(controller.inference, again)).token_ids == first.token_ids
        assert (await answer_to(controller.inference, ask())).started.seed != first.started.seed


async def test_models_are_listed_once_with_their_workers():
    async with Cluster(workers=2) as cluster, connected(cluster.address) as controller:
        listed = await controller.inference.ListModels(inference_pb2.ListModelsRequest())
    assert [(model.name, model.workers, model.sees_images) for model in listed.models] == [("echo", 2, True)]


@pytest.mark.parametrize("behaviour", [dies_at_once, dies_after_started, ends_early])
async def test_a_worker_that_dies_before_the_first_token_is_replaced_unseen(behaviour: Behaviour):
    async with Cluster(workers=1) as cluster, connected(cluster.address) as controller, fake_worker(behaviour) as dying:
        await controller.control.Register(dying.registration(speed=10.0))  # the fastest: it is asked first
        whole = await answer_to(controller.inference, ask(seed=1))
        assert whole.kinds.count("started") == 1
        assert whole.started.worker_address == cluster.workers[0].address
        assert whole.started.attempt == 1
        [dead] = [worker for worker in cluster.controller.registry.workers() if worker.address == dying.address]
        assert dead.state.value == "suspect"
        for _ in range(5):
            await answer_to(controller.inference, ask())
        assert dying.calls == 1, "a suspect gets no work"
        assert [worker.in_flight for worker in cluster.controller.registry.workers()] == [0, 0]


async def test_the_only_workers_failure_is_told_not_that_nobody_is_left():
    async with Cluster(workers=0, queue_length=0) as cluster, connected(cluster.address) as controller:
        async with fake_worker(dies_at_once) as dying:
            await controller.control.Register(dying.registration())
            assert isinstance(await refusal(controller, ask()), errors.WorkerLostError)
            assert isinstance(await refusal(controller, ask()), errors.NoLiveWorkerError)


async def test_a_whole_answer_is_whole_though_the_transport_breaks_after_it():
    async with Cluster(workers=0) as cluster, connected(cluster.address) as controller:
        async with fake_worker(breaks_after_the_end) as worker:
            await controller.control.Register(worker.registration())
            assert (await answer_to(controller.inference, ask())).text == "one"
            assert cluster.controller.registry.workers()[0].state.value == "alive"


async def test_a_suspect_that_is_well_is_asked_and_back_at_once_and_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llava_grpc.controller.fleet.PROBE_FIRST", 0.2)
    async with Cluster(workers=1) as cluster, connected(cluster.address) as controller:
        [worker] = cluster.controller.registry.workers()
        await until(lambda: worker.sequence > 0)  # its first heartbeat would clear it too
        cluster.controller.fleet.suspect(worker.address, worker.incarnation)
        kinds = [frame.WhichOneof("event") async for frame in controller.inference.Generate(ask(), timeout=20)]
        assert (kinds[:2], kinds[-1]) == (["queued", "started"], "finished")
        assert worker.state.value == "alive"
        assert (await answer_to(controller.inference, ask())).text
        await until(lambda: cluster.controller.fleet._probing == {})


async def test_workers_that_decline_are_no_attempts():
    async with (
        Cluster(workers=1, max_attempts=1, strategy="lottery") as cluster,
        connected(cluster.address) as controller,
    ):
        async with fake_worker(declines) as a, fake_worker(declines) as b, fake_worker(declines) as c:
            for busy in (a, b, c):
                await controller.control.Register(busy.registration())
            for _ in range(10):
                answer = await answer_to(controller.inference, ask())
                assert answer.started.worker_address == cluster.workers[0].address
            assert a.calls + b.calls + c.calls > 0


async def test_where_all_decline_a_request_waits_and_is_served_when_one_accepts():
    async with Cluster(workers=0) as cluster, connected(cluster.address) as controller:
        async with fake_worker(declines) as busy:
            await controller.control.Register(busy.registration())
            answering = asyncio.create_task(answer_to(controller.inference, ask()))
            await until(lambda: busy.calls >= 2)
            busy.behaviour = breaks_after_the_end
            assert (await answering).text == "one"
            counters = cluster.controller.fleet.dispatcher.counters
            assert counters[""] == 0, "as the worker's usage says, however often it was asked"


async def test_where_all_decline_and_waiting_is_off_or_over_the_fleet_is_busy():
    for limits in ({"queue_length": 0}, {"queue_wait": 0.1}):
        async with Cluster(workers=0, **limits) as cluster, connected(cluster.address) as controller:
            async with fake_worker(declines) as busy:
                await controller.control.Register(busy.registration())
                error = await refusal(controller, ask())
                assert isinstance(error, errors.AllSlotsTakenError)
                assert "every worker" in error.cause


async def test_no_more_workers_are_tried_than_allowed():
    async with Cluster(workers=0, max_attempts=2) as cluster, connected(cluster.address) as controller:
        async with fake_worker(dies_at_once) as a, fake_worker(dies_at_once) as b, fake_worker(dies_at_once) as c:
            for dying in (a, b, c):
                await controller.control.Register(dying.registration())
            await refusal(controller, ask())
            assert a.calls + b.calls + c.calls == 2


async def test_a_client_that_goes_away_frees_the_slot():
    async with Cluster(workers=1, options={"tokens": "1000", "hang_after": "3"}) as cluster:
        async with connected(cluster.address) as controller:
            call = controller.inference.Generate(ask(max_new_tokens=1000))
            assert (await call.read()).HasField("started")
            await call.read()
            assert cluster.workers[0].host.running == 1
            call.cancel()
            await until(lambda: cluster.workers[0].host.running == 0)
            await until(lambda: cluster.controller.registry.workers()[0].in_flight == 0)


async def test_a_deadline_frees_the_slot_and_says_so():
    async with Cluster(workers=1, options={"hang_after": "3"}) as cluster, connected(cluster.address) as controller:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer_to(controller.inference, ask(), timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: cluster.workers[0].host.running == 0)


async def test_when_every_slot_is_taken_the_client_is_told_when_to_try_again():
    cluster = Cluster(workers=2, options={"hang_after": "1"}, queue_length=0)
    async with cluster, connected(cluster.address) as controller:
        slots = 2 * cluster.workers[0].host.engine.slots
        calls = [controller.inference.Generate(ask()) for _ in range(slots)]
        for call in calls:
            await call.read()
        full = await refusal(controller, ask())
        assert isinstance(full, errors.AllSlotsTakenError)
        assert full.retry_after == 1.0
        for call in calls:
            call.cancel()
        await until(lambda: sum(worker.host.running for worker in cluster.workers) == 0)
        assert sum(worker.in_flight for worker in cluster.controller.registry.workers()) == 0


async def test_a_failed_request_is_its_own_and_final():
    async with Cluster(workers=2, options={"fail_after": "2"}) as cluster, connected(cluster.address) as controller:
        failure = await refusal(controller, ask())
        assert isinstance(failure, errors.EngineFailedError)
        assert [worker.state.value for worker in cluster.controller.registry.workers()] == ["alive", "alive"]
        assert all(worker.host.running == 0 for worker in cluster.workers)


USER = inference_pb2.ROLE_USER
TEXT = inference_pb2.Part(text="x")


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (inference_pb2.GenerateRequest(), errors.PromptInvalidError),
        (inference_pb2.GenerateRequest(conversation=inference_pb2.Conversation()), errors.PromptInvalidError),
        (ask(model="nobody"), errors.ModelNotFoundError),
        (ask(temperature=-1.0), errors.SamplingInvalidError),
        (ask(temperature=float("nan")), errors.SamplingInvalidError),
        (ask(max_new_tokens=0), errors.SamplingInvalidError),
        (ask(max_new_tokens=100_000), errors.SamplingInvalidError),
        (ask("word " * 100_000), errors.PromptTooLongError),
        (
            inference_pb2.GenerateRequest(
                conversation=inference_pb2.Conversation(turns=[inference_pb2.Turn(role=9, parts=[TEXT])])
            ),
            errors.PromptInvalidError,
        ),
        (
            inference_pb2.GenerateRequest(
                conversation=inference_pb2.Conversation(
                    turns=[
                        inference_pb2.Turn(
                            role=USER,
                            parts=[inference_pb2.Part(image=inference_pb2.Image(uri="http://169.254.169.254/"))],
                        )
                    ]
                )
            ),
            errors.ImageUriDisabledError,
        ),
        (inference_pb2.GenerateRequest(raw=inference_pb2.RawPrompt(text="<image>")), errors.ImageCountError),
        (inference_pb2.GenerateRequest(request_id="two words"), errors.RequestIdInvalidError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
async def test_bad_requests_are_told_what_is_wrong_and_the_next_one_is_answered(
    request_: inference_pb2.GenerateRequest, error: type[errors.LlavaGrpcError]
):
    async with Cluster(workers=1) as cluster, connected(cluster.address) as controller:
        assert type(await refusal(controller, request_)) is error
        assert (await answer_to(controller.inference, ask())).text


async def test_a_message_over_the_limit_is_refused_and_the_next_one_is_answered():
    async with Cluster(workers=1) as cluster:
        async with grpc.aio.insecure_channel(cluster.address, options=[("grpc.max_send_message_length", -1)]) as wide:
            generate = wide.unary_stream("/llava_grpc.v1.InferenceService/Generate")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in generate(ask(image=b"x" * (64 * 1024 * 1024)).SerializeToString()):
                    pass
        assert isinstance(explain_rpc_error(caught.value, "x"), errors.MessageTooLargeError)
        async with connected(cluster.address) as controller:
            big = await answer_to(controller.inference, ask(image=b"x" * (63 * 1024 * 1024)))
            assert big.text


async def test_nonsense_bytes_are_not_a_request():
    async with Cluster(workers=1) as cluster, connected(cluster.address) as controller:
        generate = controller.channel.unary_stream("/llava_grpc.v1.InferenceService/Generate")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in generate(b"\xff\xff\xff"):
                pass
        assert isinstance(from_rpc_error(caught.value), errors.PromptInvalidError)


async def test_requests_are_split_evenly_over_equal_workers():
    async with Cluster(workers=4, options={"hang_after": "1"}) as cluster, connected(cluster.address) as controller:
        calls = [controller.inference.Generate(ask(f"question {number}")) for number in range(40)]
        for call in calls:
            await call.read()
        listed = await controller.control.ListWorkers(controller_pb2.ListWorkersRequest())
        assert [worker.in_flight for worker in listed.workers] == [10, 10, 10, 10]
        for call in calls:
            call.cancel()
