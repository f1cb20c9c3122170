"""The host: slots, hand-over, cancellation, timings."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from llava_grpc.core.prompt import GenerationRequest, RawPrompt
from llava_grpc.core.stream import Delta, Finished, FinishReason, Usage
from llava_grpc.engines.base import Began, Ended, Failed
from llava_grpc.errors import AllSlotsTakenError, EngineFailedError, ImageInvalidError, ShuttingDownError
from llava_grpc.worker.host import Answer, EngineHost
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

REQUEST = GenerationRequest(request_id="r", model="", prompt=RawPrompt("x"))


@asynccontextmanager
async def hosting(engine: ScriptedEngine, clock: Callable[[], float] = time.monotonic) -> AsyncIterator[EngineHost]:
    host = EngineHost(engine, clock)
    try:
        yield host
    finally:
        await host.close()


def from_another_thread(*calls: Callable[[], None]) -> None:
    """As engines do."""

    def run() -> None:
        for call in calls:
            call()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


async def collected(answer: Answer) -> list[Delta | Finished]:
    return [event async for event in answer.events()]


async def test_deltas_that_have_piled_up_leave_as_one():
    engine = ScriptedEngine()
    async with hosting(engine) as host:
        answer = await host.submit(REQUEST)
        sink = engine.sinks[0]
        ended = Ended(FinishReason.STOP, Usage(1, 0, 3))
        deltas = [Delta(text, (number,), number + 1) for number, text in enumerate("abc")]
        from_another_thread(lambda: sink(Began()), *(lambda d=delta: sink(d) for delta in deltas), lambda: sink(ended))
        joined, finished = await collected(answer)
        assert joined == Delta("abc", (0, 1, 2), 3)
        assert isinstance(finished, Finished)
        assert finished.usage == Usage(1, 0, 3)
        assert 0 < finished.timings.queue <= finished.timings.first_token <= finished.timings.total
        assert host.running == 0


async def test_the_first_token_does_not_wait_for_the_second():
    engine = ScriptedEngine()
    async with hosting(engine) as host:
        answer = await host.submit(REQUEST)
        from_another_thread(lambda: engine.sinks[0](Delta("a", (0,), 1)))
        events = answer.events()
        async with asyncio.timeout(5):
            assert await anext(events) == Delta("a", (0,), 1)


async def test_a_slot_is_free_when_the_engine_says_so_and_not_before():
    engine = ScriptedEngine(slots=1)
    async with hosting(engine) as host:
        answer = await host.submit(REQUEST)
        with pytest.raises(AllSlotsTakenError) as caught:
            await host.submit(REQUEST)
        assert caught.value.retry_after is not None
        answer.close()
        assert engine.cancelled == [0]
        assert host.running == 1, "the step under way is still computing it"
        from_another_thread(lambda: engine.sinks[0](Ended(FinishReason.CANCELLED, Usage())))
        await asyncio.wait_for(host.drained(), 5)
        await host.submit(REQUEST)


async def test_a_client_that_goes_while_its_request_is_prepared_is_cancelled_when_the_ticket_comes():
    preparing, go_on = threading.Event(), threading.Event()

    def prepare() -> None:
        preparing.set()
        assert go_on.wait(5)

    engine = ScriptedEngine(prepare=prepare)
    async with hosting(engine) as host:
        submitting = asyncio.create_task(host.submit(REQUEST))
        await asyncio.to_thread(preparing.wait, 5)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        assert host.running == 1
        go_on.set()
        await until(lambda: bool(engine.cancelled))
        from_another_thread(lambda: engine.sinks[0](Ended(FinishReason.CANCELLED, Usage())))
        await asyncio.wait_for(host.drained(), 5)


async def test_preparing_never_blocks_the_loop():
    go_on = threading.Event()

    def prepare() -> None:
        assert go_on.wait(5)

    engine = ScriptedEngine(prepare=prepare)
    async with hosting(engine) as host:
        submitting = asyncio.create_task(host.submit(REQUEST))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not submitting.done()
        go_on.set()
        await submitting


@pytest.mark.parametrize(
    ("raised", "told"), [(ImageInvalidError("no picture"), ImageInvalidError), (ValueError("bug"), EngineFailedError)]
)
async def test_a_refused_request_gives_its_slot_back(raised: Exception, told: type[Exception]):
    def prepare() -> None:
        raise raised

    engine = ScriptedEngine(slots=1, prepare=prepare)
    async with hosting(engine) as host:
        for _ in range(3):
            with pytest.raises(told):
                await host.submit(replace(REQUEST))
        assert host.running == 0


async def test_an_engines_failure_reaches_the_reader_after_what_was_made():
    engine = ScriptedEngine()
    async with hosting(engine) as host:
        answer = await host.submit(REQUEST)
        sink = engine.sinks[0]
        from_another_thread(lambda: sink(Delta("a", (0,), 1)), lambda: sink(Failed(EngineFailedError("broken"))))
        events = answer.events()
        assert await anext(events) == Delta("a", (0,), 1)
        with pytest.raises(EngineFailedError, match="broken"):
            await anext(events)
        assert host.running == 0


async def test_the_end_of_an_answer_does_not_wait_for_its_turn():
    engine, clock = ScriptedEngine(), StoppedClock()
    async with hosting(engine, clock) as host:
        answer = await host.submit(REQUEST)
        sink, events = engine.sinks[0], answer.events()
        for number in range(17):  # the burst is used up, and the clock that would give it back stands still
            from_another_thread(lambda n=number: sink(Delta(str(n), (n,), n + 1)))
            assert isinstance(await anext(events), Delta)
        from_another_thread(lambda: sink(Delta("last", (99,), 18)))
        waiting = asyncio.ensure_future(anext(events))
        await until(lambda: len(answer._pending) == 1)
        from_another_thread(lambda: sink(Ended(FinishReason.STOP, Usage())))
        assert await waiting == Delta("last", (99,), 18)
        assert isinstance(await anext(events), Finished)


class StoppedClock:
    def __call__(self) -> float:
        return 1000.0


async def test_a_cancelled_requests_slot_is_promised_to_one_that_comes_before_the_step_ends():
    engine = ScriptedEngine(slots=1)
    async with hosting(engine) as host:
        leaving = await host.submit(REQUEST)
        leaving.close()
        coming = asyncio.create_task(host.submit(REQUEST))
        await until(lambda: host._promised == 1)
        with pytest.raises(AllSlotsTakenError):
            await host.submit(REQUEST)
        from_another_thread(lambda: engine.sinks[0](Ended(FinishReason.CANCELLED, Usage())))
        await asyncio.wait_for(coming, 5)
        assert host.running == 1


async def test_an_engine_that_closes_leaves_no_answer_that_looks_complete():
    engine = ScriptedEngine()
    async with hosting(engine) as host:
        answer = await host.submit(REQUEST)
        sink = engine.sinks[0]
        from_another_thread(
            lambda: sink(Delta("a", (0,), 1)), lambda: sink(Ended(FinishReason.CANCELLED, Usage(1, 0, 1)))
        )
        events = answer.events()
        assert await anext(events) == Delta("a", (0,), 1)
        with pytest.raises(ShuttingDownError):
            await anext(events)
