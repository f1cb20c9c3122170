"""A worker is lost in mid-answer: another one goes on, and the client sees the same answer, once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from llava_grpc import errors
from llava_grpc.config import EngineSettings
from llava_grpc.core.retry_budget import RetryBudget
from llava_grpc.rpc.status import explain_rpc_error
from llava_grpc.testing.cluster import Cluster
from llava_grpc.v1 import inference_pb2 as pb
from tests.support.fake_worker import Behaviour, FakeWorker, declines, dies_at_once, fake_worker
from tests.support.halfway import dies, ends, hangs, passes_on, says_cancelled, stops
from tests.support.waiting import until
from tests.support.wire import Answer, Stubs, answer_to, ask, connected

ECHO = pb.Fingerprint(weights="echo", dtype="int", quantization="none", tokenizer="echo", engine="echo 1")
BY_TURNS = {"token_interval_ms": "2", "tokens": "1000"}
"""A few tokens a frame, rather than all in one; as long as it may be."""
REQUESTS = {
    "greedy": ask("hello", max_new_tokens=24, seed=4),
    "sampled": ask("hello", max_new_tokens=24, seed=5, temperature=0.8, top_p=0.9, frequency_penalty=0.5),
    "stops at a string": ask("hello", max_new_tokens=60, seed=6, stop=["zo", "ki"]),
    "log-probabilities": ask("hello", image=b"a picture", max_new_tokens=24, seed=7, logprobs=2),
}


@asynccontextmanager
async def halfway(
    then: Behaviour, deltas: int = 3, *, fingerprint: pb.Fingerprint | None = None, **controller: Any
) -> AsyncIterator[tuple[Cluster, Stubs, FakeWorker, Any]]:
    """A fleet of one real worker, which is busy with others' requests, and one that answers so many frames as that
    would and then does something else. With stubs of the controller and of the real worker."""
    settings = EngineSettings(options=BY_TURNS)
    async with Cluster(workers=1, engine_settings=settings, **controller) as cluster:
        async with connected(cluster.address) as stubs, connected(cluster.workers[0].address) as real:
            behaviour = passes_on(real.inference, deltas, then, fingerprint)
            async with fake_worker(behaviour) as failing:
                model = pb.Model(name="echo", fingerprint=fingerprint or ECHO)
                await stubs.control.Register(failing.registration(models=[model]))
                busy = cluster.workers[0]
                cluster.controller.registry.heartbeat(
                    busy.address, busy.incarnation, 1000, running=50, waiting=0, now=0
                )
                yield cluster, stubs, failing, real
                await until(lambda: all(worker.in_flight == 0 for worker in cluster.controller.registry.workers()))
                assert cluster.controller.fleet._kept == 0


async def refusal(stubs: Stubs, request: pb.GenerateRequest) -> errors.LlavaGrpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer_to(stubs.inference, request)
    return explain_rpc_error(caught.value, "the controller")


def same(one: Answer, other: Answer) -> bool:
    """Text, tokens, log-probabilities, end and usage."""

    def whole(answer: Answer) -> tuple[Any, ...]:
        logprobs = [str(entry) for frame in answer.frames for entry in frame.delta.logprobs]
        finished = answer.finished
        return answer.text, answer.token_ids, logprobs, finished.reason, finished.stop_sequence, str(finished.usage)

    return whole(one) == whole(other)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("then", [dies, ends, stops, says_cancelled], ids=lambda how: how.__name__)
async def test_an_answer_goes_on_elsewhere_as_if_nothing_had_been(name: str, then: Behaviour):
    async with halfway(then) as (cluster, stubs, failing, real):
        request = REQUESTS[name]
        resumed, whole = await answer_to(stubs.inference, request), await answer_to(real.inference, request)
        assert failing.calls == 1
        assert same(resumed, whole)
        assert resumed.finished.resumes == 1
        assert resumed.kinds.count("started") == 1
        [record] = cluster.controller.fleet.dispatcher.history
        assert [decision.address for decision in record.decisions] == [failing.address, cluster.workers[0].address]


@pytest.mark.parametrize(("then", "state"), [(dies, "suspect"), (stops, "alive")], ids=["dies", "stops"])
async def test_who_died_is_suspect_and_who_stopped_is_not(then: Behaviour, state: str):
    async with halfway(then) as (cluster, stubs, failing, _):
        await answer_to(stubs.inference, REQUESTS["greedy"])
        [worker] = [one for one in cluster.controller.registry.workers() if one.address == failing.address]
        assert worker.state.value == state


@pytest.mark.parametrize("deltas", [0, 1, 23, 24])
async def test_a_cut_may_come_anywhere_also_before_the_very_end(deltas: int):
    async with halfway(dies, deltas) as (_, stubs, _failing, real):
        request = ask("cut", max_new_tokens=24, seed=3)
        assert same(await answer_to(stubs.inference, request), await answer_to(real.inference, request))


async def test_a_clients_own_log_and_the_controllers_are_one():
    async with halfway(dies) as (_, stubs, _failing, real):
        whole = await answer_to(real.inference, ask("hello", max_new_tokens=24, seed=5))
        request = ask("hello", max_new_tokens=24, seed=5)
        request.emitted_token_ids.extend(whole.token_ids[:6])
        request.begun.CopyFrom(ECHO)
        request.attempt = 3
        rest = await answer_to(stubs.inference, request)
        assert rest.started.attempt == 3, "by whom it was begun here"
        assert rest.token_ids == whole.token_ids[6:]
        assert rest.finished.usage == whole.finished.usage


async def test_a_killed_worker_cuts_all_its_streams_and_all_go_on():
    settings = EngineSettings(options=BY_TURNS)
    async with Cluster(workers=3, engine_settings=settings) as cluster, connected(cluster.address) as stubs:
        requests = [ask(f"question {number}", max_new_tokens=100, seed=number) for number in range(12)]
        async with connected(cluster.workers[2].address) as real:
            whole = [await answer_to(real.inference, request) for request in requests]
        answering = [asyncio.create_task(answer_to(stubs.inference, request)) for request in requests]
        doomed = cluster.workers[0]
        await until(lambda: doomed.host.running >= 3 and doomed.host.engine.stats().tokens_generated > 20)
        await doomed._node.server.stop(0)
        resumed = await asyncio.gather(*answering)
        assert all(same(one, other) for one, other in zip(resumed, whole, strict=True))
        assert sum(one.finished.resumes or one.started.attempt for one in resumed) >= 3


async def test_a_worker_that_falls_silent_is_asked_and_its_streams_go_on():
    async with halfway(hangs) as (cluster, stubs, failing, real):
        failing.mute = True
        request = REQUESTS["greedy"]
        assert same(await answer_to(stubs.inference, request), await answer_to(real.inference, request))
        [worker] = [one for one in cluster.controller.registry.workers() if one.address == failing.address]
        assert worker.state.value == "suspect"


async def test_a_whole_answer_is_whole_though_the_end_of_its_call_never_comes():
    """Seed 1008231 of the histories: the link was cut between the last frame and the call's own end."""
    async with halfway(hangs) as (_, stubs, failing, real):

        async def answers_and_is_cut_off(request: pb.GenerateRequest, context: Any) -> None:
            async for frame in real.inference.Generate(request):
                await context.write(frame)
            failing.mute = True
            await hangs(request, context)

        failing.behaviour = answers_and_is_cut_off
        request = REQUESTS["greedy"]
        answer = await answer_to(stubs.inference, request)
        assert same(answer, await answer_to(real.inference, request))
        assert (failing.calls, answer.kinds.count("finished"), answer.finished.resumes) == (1, 1, 0)


async def test_one_that_is_silent_but_answers_is_left_alone():
    async with halfway(hangs) as (cluster, stubs, failing, _):
        call = stubs.inference.Generate(REQUESTS["greedy"])
        for _frame in range(4):
            await call.read()
        watchdog = cluster.controller._inference.watchdog
        [patient] = watchdog._patients.values()
        await until(lambda: patient.tokens is not None and not watchdog._questions)
        [worker] = [one for one in cluster.controller.registry.workers() if one.address == failing.address]
        assert worker.state.value == "alive"
        assert not call.done()
        call.cancel()
        await until(lambda: not watchdog._patients)


async def test_one_that_answers_but_computes_nothing_gets_no_work_until_it_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llava_grpc.core.vitals.HUNG_AFTER", 1.0)
    monkeypatch.setattr("llava_grpc.core.vitals.HUNG_FACTOR", 1.0)
    monkeypatch.setattr("llava_grpc.controller.fleet.PROBE_FIRST", 0.05)
    async with halfway(hangs) as (cluster, stubs, failing, real):
        failing.tokens = 17
        request = REQUESTS["greedy"]
        assert same(await answer_to(stubs.inference, request), await answer_to(real.inference, request))
        [worker] = [one for one in cluster.controller.registry.workers() if one.address == failing.address]
        assert (worker.state.value, worker.hung_at) == ("suspect", 17)
        assert cluster.controller.fleet.heartbeat(worker.address, worker.incarnation, 1, running=1, waiting=0)
        assert worker.state.value == "suspect", "a heartbeat is no work"
        failing.tokens = 18
        await until(lambda: worker.state.value == "alive")


async def test_an_answer_does_not_go_on_with_other_weights():
    others = pb.Fingerprint(weights="others", tokenizer="echo", engine="echo 1")
    async with halfway(dies, fingerprint=others, queue_wait=0.2) as (_, stubs, _failing, _real):
        error = await refusal(stubs, REQUESTS["greedy"])
        assert isinstance(error, errors.ResumeFailedError)
        assert int(error.metadata["delivered_tokens"]) >= 3


async def test_nor_where_it_turns_out_to_have_other_weights_only_as_it_starts():
    async with halfway(dies, queue_wait=0.2) as (cluster, stubs, _failing, real):
        others = pb.Fingerprint(weights="others", tokenizer="echo")
        async with fake_worker(passes_on(real.inference, 99, dies, others)) as liar:
            model = pb.Model(name="echo", fingerprint=ECHO)
            await stubs.control.Register(liar.registration(models=[model]))
            request = ask("hello", max_new_tokens=24, seed=5)
            assert same(await answer_to(stubs.inference, request), await answer_to(real.inference, request))
            assert liar.calls == 1
            [worker] = [one for one in cluster.controller.registry.workers() if one.address == liar.address]
            assert worker.state.value == "alive", "it is well, only another"


async def test_where_all_are_gone_an_answer_waits_for_one_to_come_back():
    settings = EngineSettings(options=BY_TURNS)
    async with Cluster(workers=1, engine_settings=settings) as cluster, connected(cluster.address) as stubs:
        request = ask("hello", max_new_tokens=200, seed=5)
        answering = asyncio.create_task(answer_to(stubs.inference, request))
        first = cluster.workers[0]
        await until(lambda: first.host.engine.stats().tokens_generated > 5)
        await first._node.server.stop(0)
        await until(lambda: cluster.controller.fleet.dispatcher.waiting("echo") == 1)
        second = await cluster.add_worker()
        resumed = await answering
        async with connected(second.address) as real:
            assert same(resumed, await answer_to(real.inference, request))


async def test_a_client_that_goes_away_while_its_answer_waits_leaves_nothing():
    async with halfway(dies) as (cluster, stubs, failing, _):
        fleet, ours = cluster.controller.fleet, cluster.workers[0]
        fleet.deregister(ours.address, ours.incarnation)
        failing.behaviour = passes_one
        call = stubs.inference.Generate(ask())
        await until(lambda: fleet.dispatcher.waiting("echo") == 1)
        call.cancel()
        await until(lambda: fleet.dispatcher.waiting("echo") == 0)
        await until(lambda: fleet._waiting == {})


async def passes_one(request: pb.GenerateRequest, context: Any) -> None:
    """One token, then it dies."""
    await context.write(pb.GenerateResponse(started=pb.Started(fingerprint=ECHO)))
    end = len(request.emitted_token_ids) + 1
    await context.write(pb.GenerateResponse(delta=pb.Delta(text=["x"], token_ids=[1], end_offset=end)))
    await dies(request, context)


async def test_a_request_that_kills_whoever_answers_it_does_not_get_the_whole_fleet():
    async with Cluster(workers=0) as cluster, connected(cluster.address) as stubs:
        fakes = [fake_worker(passes_one) for _ in range(12)]
        killed = [await fake.__aenter__() for fake in fakes]
        for worker in killed:
            await stubs.control.Register(
                worker.registration(models=[pb.Model(name="echo", fingerprint=ECHO)], check_heartbeat=False)
            )
        error = await refusal(stubs, ask())
        assert isinstance(error, errors.ResumeFailedError)
        assert error.metadata["delivered_tokens"] == "8"
        assert sum(worker.calls for worker in killed) == 8
        for fake in fakes:
            await fake.__aexit__(None, None, None)


async def test_without_a_budget_no_retry_is_sent_but_answers_still_go_on():
    async with halfway(dies) as (cluster, stubs, failing, real):
        fleet = cluster.controller.fleet
        fleet.retry_budget = RetryBudget(share=0.0, reserve=0.0, refill=0.0)
        request = REQUESTS["greedy"]
        assert same(await answer_to(stubs.inference, request), await answer_to(real.inference, request))
        failing.behaviour = dies_at_once
        worker = fleet.registry.find(failing.address, failing.incarnation)
        assert worker is not None
        fleet.registry.answered(worker.address, worker.incarnation)
        assert isinstance(await refusal(stubs, request), errors.WorkerLostError)


async def test_what_there_is_no_memory_to_keep_is_served_but_not_resumed():
    async with halfway(dies, resume_memory_bytes=1000) as (_, stubs, failing, real):
        small, large = ask("hello", seed=1), ask("hello", seed=1, image=b"x" * 2000)
        assert same(await answer_to(stubs.inference, small), await answer_to(real.inference, small))
        failing.behaviour = passes_on(real.inference, 3, dies)
    async with halfway(dies, resume_memory_bytes=1000) as (_, stubs, _failing, _real):
        error = await refusal(stubs, large)
        assert isinstance(error, errors.ResumeFailedError)
        assert int(error.metadata["delivered_tokens"]) >= 3
        assert "--resume-memory-mb" in error.remedy


async def test_where_all_who_could_go_on_decline_they_are_asked_again():
    async with halfway(dies) as (cluster, stubs, _failing, real):
        fleet = cluster.controller.fleet
        busy = FakeWorker(declines)
        async with fake_worker(busy):
            model = pb.Model(name="echo", fingerprint=ECHO)
            await stubs.control.Register(busy.registration(models=[model]))
            fleet.registry.call_failed(cluster.workers[0].address, cluster.workers[0].incarnation, fleet.clock())
            request = REQUESTS["greedy"]
            answering = asyncio.create_task(answer_to(stubs.inference, request))
            await until(lambda: busy.calls >= 2)
            busy.behaviour = passes_on(real.inference, 99, dies)
            assert same(await answering, await answer_to(real.inference, request))
