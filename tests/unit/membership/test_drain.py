"""How a node leaves: what is refused, waited for and ended, and what those who watch are told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llava_grpc.config import ServerSettings
from llava_grpc.core.states import DrainProgress
from llava_grpc.errors import ShuttingDownError
from llava_grpc.membership.drain import Drain
from llava_grpc.membership.memberships import Memberships
from llava_grpc.rpc.server import bind_server
from llava_grpc.v1 import controller_pb2
from tests.support.waiting import until

LONG = 3600.0


@asynccontextmanager
async def leaving(drain: Drain) -> AsyncIterator["asyncio.Task[None]"]:
    """A node with no controllers whose drain is carried out once it is asked for."""
    server = await bind_server(ServerSettings(port=0), (), ())
    task = asyncio.create_task(drain.carry_out(server, Memberships((), controller_pb2.Load)))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Stream:
    """One that is answered until it is told to end."""

    def __init__(self, drain: Drain) -> None:
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._answer(drain))

    async def _answer(self, drain: Drain) -> str:
        with drain.answering():
            await self.end.wait()
        return "complete"


async def test_nothing_new_is_taken_from_the_moment_that_it_is_asked_for():
    drain = Drain("the worker", grace=LONG)
    with drain.answering():
        pass
    drain.begin()
    with pytest.raises(ShuttingDownError, match="the worker"), drain.answering():
        pytest.fail("it was taken")


async def test_it_is_done_at_once_where_nothing_runs():
    drain = Drain("the worker", grace=LONG)
    async with leaving(drain) as task:
        drain.begin()
        await asyncio.wait_for(task, 10)
    assert drain.done.is_set()


async def test_running_streams_come_to_their_end():
    drain = Drain("the worker", grace=LONG)
    async with leaving(drain) as task:
        streams = [Stream(drain) for _ in range(3)]
        await until(lambda: drain.progress.running == 3)
        drain.begin()
        for stream in streams:
            assert not task.done()
            stream.end.set()
            assert await stream.task == "complete"
        await asyncio.wait_for(task, 10)
    assert drain.progress.ended == 0


async def test_those_that_outlast_the_grace_time_are_ended_with_the_reason():
    drain = Drain("the worker", grace=LONG)
    async with leaving(drain) as task:
        short, long = Stream(drain), Stream(drain)
        await until(lambda: drain.progress.running == 2)
        short.end.set()
        await short.task
        drain.begin(0.01)
        with pytest.raises(ShuttingDownError):
            await asyncio.wait_for(long.task, 10)
        await asyncio.wait_for(task, 10)
    assert drain.progress == DrainProgress(running=0, ended=1, grace_left=0.0, done=True)


async def test_a_client_that_goes_away_is_no_stream_that_was_ended():
    drain = Drain("the worker", grace=LONG)
    async with leaving(drain) as task:
        stream = Stream(drain)
        await until(lambda: drain.progress.running == 1)
        drain.begin()
        stream.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream.task
        await asyncio.wait_for(task, 10)
    assert drain.progress.ended == 0


async def test_a_client_that_goes_away_as_its_stream_is_ended_stays_gone():
    drain = Drain("the worker", grace=LONG)
    async with leaving(drain) as task:
        stream = Stream(drain)
        await until(lambda: drain.progress.running == 1)
        drain.begin(0)
        await until(lambda: stream.task.cancelling() == 1)
        stream.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream.task
        await asyncio.wait_for(task, 10)


@pytest.mark.parametrize("graces", [(LONG, 0.01), (0.01, LONG), (None, 0.01), (0.01, None)])
async def test_the_earliest_end_counts_whoever_asks(graces: tuple[float | None, ...]):
    drain = Drain("the worker", grace=LONG)
    async with leaving(drain) as task:
        stream = Stream(drain)
        await until(lambda: drain.progress.running == 1)
        for grace in graces:
            drain.begin(grace)
        with pytest.raises(ShuttingDownError):
            await asyncio.wait_for(stream.task, 10)
        await asyncio.wait_for(task, 10)


async def test_those_who_watch_hear_of_each_change_and_of_the_end():
    drain = Drain("the worker", grace=LONG)
    async with leaving(drain):
        streams = [Stream(drain) for _ in range(2)]
        await until(lambda: drain.progress.running == 2)
        drain.begin()
        heard: list[tuple[int, bool]] = []
        async with asyncio.timeout(10):
            async for progress in drain.watch():
                if (progress.running, progress.done) not in heard:
                    heard.append((progress.running, progress.done))
                if streams and len(streams) == progress.running:
                    streams.pop().end.set()
    assert heard[0] == (2, False)
    assert heard[-1] == (0, True)
    assert [running for running, _ in heard] == sorted((running for running, _ in heard), reverse=True)
