"""Controllers as workers of controllers, over real gRPC: what passes through, what changes, and what cannot be."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from llava_grpc import errors
from llava_grpc.client import AsyncClient
from llava_grpc.controller.app import ControllerNode
from llava_grpc.core.states import WorkerState
from llava_grpc.core.worker import Registration
from llava_grpc.rpc.status import from_rpc_error
from llava_grpc.v1 import controller_pb2, inference_pb2, worker_pb2
from tests.support.fake_worker import FakeWorker, dies_at_once, fake_worker
from tests.support.nodes import controller, worker
from tests.support.waiting import until
from tests.support.wire import Stubs, answer_to, ask, connected

LONG = 3600.0


@dataclass
class Stack:
    """A parent and its child; stubs of each."""

    parent: ControllerNode
    child: ControllerNode
    above: Stubs
    below: Stubs

    @property
    def seen(self) -> Registration | None:
        """The child, as the parent has it."""
        workers = self.parent.registry.workers()
        return workers[0].registration if workers else None

    async def slots(self, count: int) -> Registration:
        """Wait until the parent knows of so many."""
        await until(lambda: self.seen is not None and self.seen.slots == count)
        assert self.seen is not None
        return self.seen


@asynccontextmanager
async def stack(**settings: Any) -> AsyncIterator[Stack]:
    async with controller() as parent, controller(parents=(parent.address,), **settings) as child:
        async with connected(parent.address) as above, connected(child.address) as below:
            yield Stack(parent, child, above, below)


async def test_a_child_is_a_worker_of_its_parent_and_the_answer_names_who_made_it():
    async with stack() as two, worker(two.child.address, slots=3) as node:
        seen = await two.slots(3)
        assert (seen.address, seen.incarnation) == (two.child.address, two.child.fleet.incarnation)
        assert [card.name for card in seen.cards] == ["echo"]
        request = ask("what is it?", image=b"a picture", seed=5, max_new_tokens=20, temperature=0.7)
        request.request_id = "the-same-all-the-way"
        async with connected(node.address) as direct:
            answers = [await answer_to(stubs.inference, request) for stubs in (two.above, two.below, direct)]
        assert answers[0].started == answers[1].started == answers[2].started
        assert answers[0].started.worker_address == node.address
        assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids
        assert answers[0].text == answers[2].text
        status = await two.below.worker.GetStatus(worker_pb2.GetStatusRequest())
        assert (status.incarnation, status.slots, status.engine) == (two.child.fleet.incarnation, 3, "")


async def test_stacks_of_three_work_too():
    async with (
        stack() as two,
        controller(parents=(two.child.address,)) as third,
        worker(third.address, slots=2) as node,
    ):
        seen = await two.slots(2)
        assert set(seen.controllers) == {two.child.fleet.incarnation, third.fleet.incarnation}
        assert (await answer_to(two.above.inference, ask())).started.worker_address == node.address


async def test_what_changes_in_the_fleet_is_told_to_the_parent():
    async with stack() as two:
        assert two.seen is None, "nobody is no worker"
        async with worker(two.child.address, slots=2, model="a"):
            first = await two.slots(2)
            async with worker(two.child.address, slots=3, model="b"):
                both = await two.slots(5)
                assert [card.name for card in both.cards] == ["a", "b"]
                assert (both.incarnation, both.speed) == (first.incarnation, 2.0)
                listed = await two.above.inference.ListModels(inference_pb2.ListModelsRequest())
                assert [model.name for model in listed.models] == ["a", "b"]
                for model in ("a", "b"):
                    assert (await answer_to(two.above.inference, ask(model=model))).started.model == model
            [card] = (await two.slots(2)).cards
            assert card.name == "a"
        await until(lambda: two.seen is None)
        async with worker(two.child.address, slots=4, model="c"):
            assert (await two.slots(4)).incarnation == first.incarnation


async def test_a_child_that_changes_is_never_in_doubt(caplog: pytest.LogCaptureFixture):
    async with stack() as two, worker(two.child.address, slots=1):
        await two.slots(1)
        for slots in (2, 3, 4):
            async with worker(two.child.address, slots=slots):
                await two.slots(1 + slots)
            await two.slots(1)
    assert "broke off" not in caplog.text


async def test_a_suspect_of_the_child_is_not_offered_to_the_parent():
    async with stack() as two, worker(two.child.address, slots=2) as node, worker(two.child.address, slots=4):
        await two.slots(6)
        two.child.registry.call_failed(node.address, node.incarnation, now=0)
        await two.slots(4)
        two.child.registry.answered(node.address, node.incarnation)
        await two.slots(6)


async def test_a_restarted_parent_knows_its_child_again():
    async with controller() as gone:
        port = int(gone.address.rpartition(":")[2])
    async with controller(parents=(f"127.0.0.1:{port}",)) as child, worker(child.address, slots=2):
        for _ in range(2):
            async with controller(port=port) as parent:
                await until(lambda: [w.incarnation for w in parent.registry.workers()] == [child.fleet.incarnation])


async def test_the_child_tells_how_busy_it_is():
    options = {"hang_after": "1"}
    async with controller(heartbeat_interval=0.02, heartbeat_expiry=9) as parent:
        async with controller(parents=(parent.address,)) as child, worker(child.address, slots=1, options=options):
            await until(lambda: bool(parent.registry.workers()))
            async with connected(child.address) as below:
                calls = [below.inference.Generate(ask(), timeout=20) for _ in range(3)]
                [seen] = parent.registry.workers()
                await until(lambda: (seen.reported_running, seen.reported_waiting) == (1, 2))
                assert seen.queue_length == 3
                for call in calls:
                    call.cancel()
                await until(lambda: seen.queue_length == 0)


async def test_who_waits_at_the_child_is_told_so_through_the_parent():
    async with stack() as two, worker(two.child.address, slots=1, options={"hang_after": "1"}):
        await two.slots(1)
        holding = two.below.inference.Generate(ask(), timeout=20)
        assert (await holding.read()).HasField("started")
        frames = aiter(two.above.inference.Generate(ask(), timeout=20))
        assert (await anext(frames)).HasField("queued")
        holding.cancel()
        frame = await anext(frames)
        while frame.HasField("queued"):
            frame = await anext(frames)
        assert frame.HasField("started")
        assert (await anext(frames)).HasField("delta")


async def test_a_client_that_goes_away_frees_the_slot_two_floors_down():
    async with stack() as two, worker(two.child.address, slots=1, options={"hang_after": "1"}) as node:
        await two.slots(1)
        for _ in range(3):
            call = two.above.inference.Generate(ask(), timeout=20)
            assert (await call.read()).HasField("started")
            assert node.host.running == 1
            call.cancel()
            await until(lambda: node.host.running == 0)


async def test_an_answer_goes_on_from_its_token_log_through_the_stack():
    async with stack() as two, worker(two.child.address, slots=1):
        await two.slots(1)
        request = ask(seed=3, temperature=0.9)
        whole = await answer_to(two.above.inference, request)
        cut = len(whole.token_ids) // 2
        request.emitted_token_ids.extend(whole.token_ids[:cut])
        request.attempt = 4
        rest = await answer_to(two.above.inference, request)
        assert rest.token_ids == whole.token_ids[cut:]
        assert (rest.started.seed, rest.started.attempt) == (3, 4)


async def test_a_child_is_drained_through_its_parent():
    async with stack(grace=LONG) as two, worker(two.child.address, slots=2, options={"hang_after": "1"}) as node:
        await two.slots(2)
        waiting = asyncio.create_task(two.child.wait())
        call = two.above.inference.Generate(ask(), timeout=20)
        assert (await call.read()).HasField("started")
        async with AsyncClient(two.parent.address) as client:
            draining = asyncio.create_task(client.drain(two.child.address))
            await until(lambda: two.parent.registry.workers()[0].state is WorkerState.DRAINING)
            await until(lambda: node.host.running == 1)
            assert not waiting.done()
            call.cancel()
            assert (await asyncio.wait_for(draining, 10)).ended == 0
        await asyncio.wait_for(waiting, 10)
        assert two.parent.registry.workers() == []


async def test_each_floor_has_its_own_join_token():
    async with controller(join_token="above") as parent:
        settings = {"parents": (parent.address,), "parent_join_token": "above", "join_token": "below"}
        async with controller(**settings) as child, worker(child.address, join_token="below"):
            await until(lambda: bool(parent.registry.workers()))
            async with AsyncClient(parent.address) as client:
                with pytest.raises(errors.JoinRefusedError):
                    await client.drain(child.address, join_token="below")
                assert (await client.drain(child.address, join_token="above")).done


async def test_a_parent_that_refuses_for_good_ends_the_child():
    async with controller(join_token="above") as parent:
        async with controller(parents=(parent.address,), parent_join_token="wrong") as child, worker(child.address):
            with pytest.raises(errors.JoinRefusedError):
                await asyncio.wait_for(child.wait(), 10)


# ---------------------------------------------------------------------------------------------------------------- loops


async def test_a_controller_cannot_be_its_own_parent():
    async with controller() as gone:
        port = int(gone.address.rpartition(":")[2])
    async with controller(port=port, parents=(f"127.0.0.1:{port}",)) as node, worker(node.address):
        with pytest.raises(errors.ControllerLoopError):
            await asyncio.wait_for(node.wait(), 10)
        assert len(node.registry.workers()) == 1


async def test_a_circle_of_controllers_is_refused_where_it_would_close():
    async with controller() as gone:
        port = int(gone.address.rpartition(":")[2])
    async with controller(parents=(f"127.0.0.1:{port}",)) as first:
        async with (
            controller(parents=(first.address,)) as second,
            controller(port=port, parents=(second.address,)) as third,
            worker(first.address) as node,
        ):
            # first's worker is offered to third, third's to second, and second's to first: which is first's own.
            await until(lambda: bool(second.registry.workers()))
            with pytest.raises(errors.ControllerLoopError):
                await asyncio.wait_for(second.wait(), 10)
            assert [w.address for w in first.registry.workers()] == [node.address]
            async with connected(second.address) as stubs:
                assert (await answer_to(stubs.inference, ask())).started.worker_address == node.address
            assert third.registry.workers()[0].registration.slots == first.registry.workers()[0].registration.slots


async def test_a_registration_that_names_the_controller_is_refused_over_the_wire():
    async with controller() as node, connected(node.address) as stubs, fake_worker(dies_at_once) as fake:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.control.Register(fake.registration(controllers=["another", node.fleet.incarnation]))
        assert isinstance(from_rpc_error(caught.value), errors.ControllerLoopError)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await stubs.control.Register(fake.registration(controllers=["another"]))


# ------------------------------------------------------------------------------------------------------ what goes wrong


class Mute(FakeWorker):
    """A child that takes a request and says nothing: its process hangs."""

    def __init__(self) -> None:
        super().__init__(self._say_nothing)
        self.reached = asyncio.Event()

    async def _say_nothing(self, request: inference_pb2.GenerateRequest, context: Any) -> None:
        self.reached.set()
        await asyncio.get_running_loop().create_future()


async def test_a_hung_child_costs_the_parent_nothing_but_itself():
    mute = Mute()
    async with stack() as two, worker(two.child.address, slots=8) as node, fake_worker(mute) as hung:
        await two.slots(8)
        await two.above.control.Register(hung.registration(slots=1, controllers=["hung"]))
        held = [two.above.inference.Generate(ask(), timeout=30) for _ in range(8)]
        reading = [asyncio.ensure_future(anext(aiter(call))) for call in held]
        await asyncio.wait_for(mute.reached.wait(), 10)
        await until(lambda: sum(task.done() for task in reading) == 7)
        assert hung.calls == 1, "its one slot"
        for _ in range(5):
            assert (await answer_to(two.above.inference, ask())).started.worker_address == node.address
        listed = await two.above.control.ListWorkers(controller_pb2.ListWorkersRequest())
        assert {info.address: info.in_flight for info in listed.workers}[hung.address] == 1
        for task, call in zip(reading, held, strict=True):
            call.cancel()
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def test_a_child_that_declines_is_passed_over():
    settings = {"queue_length": 0}
    async with stack(**settings) as two, worker(two.child.address, slots=1, options={"hang_after": "1"}):
        await two.slots(1)
        holding = two.below.inference.Generate(ask(), timeout=20)  # of whom the parent has not heard
        assert (await holding.read()).HasField("started")
        async with worker(two.parent.address, slots=1) as own:
            for _ in range(5):
                assert (await answer_to(two.above.inference, ask())).started.worker_address == own.address
            states = {found.state for found in two.parent.registry.workers()}
            assert states == {WorkerState.ALIVE}, "who declines is not in doubt"
        holding.cancel()


async def test_an_answer_goes_on_with_another_child():
    options = {"token_interval_ms": "20", "tokens": "60"}
    async with stack() as two, controller(parents=(two.parent.address,)) as sibling:
        async with worker(two.child.address, options=options), worker(sibling.address, options=options):
            await until(lambda: len(two.parent.registry.workers()) == 2)
            request = ask(seed=5, temperature=0.9)
            undisturbed = await answer_to(two.above.inference, request)
            answering = asyncio.create_task(answer_to(two.above.inference, request))
            children = {node.address: node for node in (two.child, sibling)}
            await until(lambda: any(node._drain.progress.running for node in children.values()))
            [busy] = [node for node in children.values() if node._drain.progress.running]
            async with AsyncClient(two.parent.address) as client:
                end = await client.drain(busy.address, grace=0.2)
            assert (end.ended, end.done) == (1, True)
            cut = await asyncio.wait_for(answering, 30)
            assert cut.finished.resumes == 1
            assert (cut.token_ids, cut.text) == (undisturbed.token_ids, undisturbed.text)


async def test_a_child_shows_that_its_workers_get_on():
    async with stack() as two, worker(two.child.address):
        before = (await two.below.worker.GetStatus(worker_pb2.GetStatusRequest())).tokens_generated
        answer = await answer_to(two.below.inference, ask())
        after = (await two.below.worker.GetStatus(worker_pb2.GetStatusRequest())).tokens_generated
        assert after - before == len(answer.frames)
