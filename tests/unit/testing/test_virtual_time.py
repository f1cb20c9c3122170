"""The clock that jumps, and processes that stall and die."""

import asyncio
from contextlib import closing

import pytest

from llava_grpc.testing.virtual_time import Process, StuckError, VirtualLoop


@pytest.fixture
def loop():
    with closing(VirtualLoop()) as loop:
        yield loop


async def ticks(loop: VirtualLoop, heard: list[float], period: float = 1.0) -> None:
    while True:
        await asyncio.sleep(period)
        heard.append(loop.time())


def test_hours_take_no_time_and_things_happen_in_order(loop: VirtualLoop):
    heard: list[str] = []

    async def main() -> float:
        async def say(what: str, after: float) -> None:
            await asyncio.sleep(after)
            heard.append(what)

        await asyncio.gather(say("late", 7200.0), say("early", 3600.0), say("at once", 0.0))
        return loop.time()

    assert loop.run(main()) == 7200.0
    assert heard == ["at once", "early", "late"]


def test_whoever_waits_for_nothing_is_told(loop: VirtualLoop):
    async def main() -> None:
        await loop.create_future()

    with pytest.raises(StuckError, match="nothing is left"):
        loop.run(main())


def test_turning_round_and_round_is_told(loop: VirtualLoop):
    async def main() -> None:
        while True:
            await turn()

    async def turn() -> None:
        await asyncio.sleep(0)

    with pytest.raises(StuckError, match="no time passed"):
        loop.run(main())


def test_timeouts_and_what_is_given_to_threads_work(loop: VirtualLoop):
    async def main() -> int:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await loop.create_future()
        assert loop.time() == 5.0
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return await asyncio.to_thread(lambda: 42)

    assert loop.run(main()) == 42


def test_a_frozen_process_runs_nothing_and_then_all_that_fell_due(loop: VirtualLoop):
    heard: list[float] = []
    process, other = Process(loop, "frozen", "host"), Process(loop, "other", "host")
    elsewhere: list[float] = []

    async def main() -> None:
        process.spawn(ticks(loop, heard))
        other.spawn(ticks(loop, elsewhere))
        await asyncio.sleep(2.5)
        process.freeze()
        await asyncio.sleep(3.0)
        assert heard == [1.0, 2.0]
        process.thaw()
        await asyncio.sleep(1.2)

    loop.run(main())
    assert heard == [1.0, 2.0, 5.5, 6.5], "its timer fell due at 3.0, and went off when it could"
    assert elsewhere == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_killed_process_unwinds_even_if_it_was_frozen_and_begins_nothing_new(loop: VirtualLoop):
    process = Process(loop, "dead", "host")
    unwound = asyncio.Event()
    began_after: list[str] = []

    async def life() -> None:
        try:
            await loop.create_future()
        finally:
            unwound.set()
            asyncio.get_running_loop().create_task(afterlife())

    async def afterlife() -> None:
        began_after.append("began")

    async def main() -> None:
        process.spawn(life())
        await asyncio.sleep(1)
        process.freeze()
        process.kill()
        await asyncio.sleep(1)

    loop.run(main())
    assert unwound.is_set()
    assert began_after == []
    assert process.open_tasks() == []


def test_a_lost_exception_is_kept_as_a_defect(loop: VirtualLoop):
    async def main() -> None:
        loop.call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    loop.run(main())
    assert [type(defect["exception"]) for defect in loop.defects] == [ZeroDivisionError]


def test_whoever_finds_an_error_ends_the_run(loop: VirtualLoop):
    async def main() -> None:
        loop.call_later(1.0, loop.fail, ValueError("found"))
        await asyncio.sleep(9.0)

    with pytest.raises(ValueError, match="found"):
        loop.run(main())
    assert loop.time() == 1.0


def test_the_moment_of_rest_comes_before_the_clock_moves(loop: VirtualLoop):
    rests: list[tuple[float, list[str]]] = []
    process = Process(loop, "one", "host")
    loop.at_rest = lambda: rests.append((loop.time(), [one.name for one in loop.ran]))

    async def main() -> None:
        await process.spawn(asyncio.sleep(2.0))

    loop.run(main())
    assert rests == [(0.0, ["one"])], "at the end the run is over, not at rest"
