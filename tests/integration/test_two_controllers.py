"""A worker and its controllers, which know nothing of one another, and which may not be there."""

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from llava_grpc.core.stream import ModelCard
from llava_grpc.core.worker import Registration
from llava_grpc.membership.membership import BACKOFF_FIRST, BACKOFF_MOST, Membership
from llava_grpc.rpc.channels import open_channel
from llava_grpc.v1 import controller_pb2
from llava_grpc.worker.app import WorkerNode
from tests.support.nodes import controller, worker
from tests.support.waiting import until
from tests.support.wire import answer_to, ask, connected

SLOTS = 2
BURST = 20


def peak_of(node: WorkerNode, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The most requests that its engine has computed at once, from now on."""
    engine = node.host.engine
    submit, most = engine.submit, [0]

    def counted(*request: object) -> object:
        ticket = submit(*request)  # type: ignore[arg-type]
        most[0] = max(most[0], engine.stats().running)
        return ticket

    monkeypatch.setattr(engine, "submit", counted)
    return lambda: most[0]


async def test_two_controllers_never_drive_a_worker_past_its_slots(monkeypatch: pytest.MonkeyPatch):
    options = {"token_interval_ms": "2", "tokens": "10"}
    async with controller() as one, controller() as other:
        async with worker(one.address, other.address, slots=SLOTS, options=options) as node:
            peak = peak_of(node, monkeypatch)
            async with connected(one.address) as first, connected(other.address) as second:
                requests = [ask(f"question {number}", seed=number) for number in range(BURST)]

                async def served(request: object, stubs: object) -> list[int]:
                    frames = [frame async for frame in stubs.inference.Generate(request, timeout=60)]  # type: ignore[attr-defined]
                    assert frames[-1].HasField("finished")
                    return [token_id for frame in frames for token_id in frame.delta.token_ids]

                answers = await asyncio.gather(
                    *(served(request, stubs) for request in requests for stubs in (first, second))
                )
            assert peak() == SLOTS, "never more, and used"
            assert answers[::2] == answers[1::2]
            assert node.host.running == 0
            for there in (one, other):
                assert [found.in_flight for found in there.registry.workers()] == [0]


async def test_a_stream_asked_of_the_worker_itself_outlives_every_controller():
    options = {"token_interval_ms": "20", "tokens": "20"}
    async with controller() as gone:
        port = int(gone.address.rpartition(":")[2])
    async with worker(options=options) as alone, connected(alone.address) as stubs:
        undisturbed = await answer_to(stubs.inference, ask(seed=1))
    there = controller(port=port)
    node = await there.__aenter__()
    async with worker(node.address, options=options) as serving, connected(serving.address) as stubs:
        frames = aiter(stubs.inference.Generate(ask(seed=1), timeout=60))
        heard = [await anext(frames), await anext(frames)]
        await there.__aexit__(None, None, None)  # in mid-stream
        heard += [frame async for frame in frames]
        assert heard[-1].HasField("finished")
        assert [token for frame in heard for token in frame.delta.token_ids] == undisturbed.token_ids
        assert (await answer_to(stubs.inference, ask(seed=1))).token_ids == undisturbed.token_ids
        async with controller(port=port) as back:
            await until(lambda: [found.address for found in back.registry.workers()] == [serving.address])


async def test_a_worker_goes_on_trying_ever_less_often_and_never_in_step(monkeypatch: pytest.MonkeyPatch):
    tries: list[float] = []

    class EnoughError(Exception):
        pass

    async def pause(self: Membership, backoff: float) -> None:
        tries.append(backoff)
        if len(tries) == 8:
            raise EnoughError

    monkeypatch.setattr(Membership, "_pause", pause)
    registration = Registration(address="127.0.0.1:1", incarnation="life", cards=(ModelCard("m"),), speed=1.0, slots=1)
    async with controller() as gone:
        pass
    async with open_channel(gone.address) as channel:
        membership = Membership(
            controller=gone.address, channel=channel, registration=registration, load=controller_pb2.Load
        )
        with pytest.raises(EnoughError):
            await membership.run()
    assert tries == [min(BACKOFF_FIRST * 2**turn, BACKOFF_MOST) for turn in range(8)]
    monkeypatch.undo()

    class Recording(Random):
        def uniform(self, low: float, high: float) -> float:
            jitters.append(low + (high - low) * self.random())
            return 0.0

    jitters: list[float] = []
    async with open_channel(gone.address) as channel:
        membership.channel, membership.random = channel, Recording(1)
        for _ in range(50):
            await membership._pause(1.0)
    assert 0.5 <= min(jitters) < 0.6 < 0.9 < max(jitters) <= 1.0
