"""Workers are restarted one after the other under a steady load: nothing is lost, and nothing is different."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from llava_grpc.client import AsyncClient
from llava_grpc.worker.app import WorkerNode
from tests.support.nodes import controller, worker

QUESTIONS = 12
EVERY = 0.05
"""Seconds between two requests, whatever becomes of those before."""
ENOUGH, TOO_LITTLE = 60.0, 0.05
"""Seconds of grace; an answer takes a fifth of one where nothing else goes on."""
OPTIONS = {"token_interval_ms": "15", "tokens": "12"}


async def answered(client: AsyncClient, number: int) -> tuple[int, ...]:
    """The tokens of one answer; half of the questions are sampled, with a seed."""
    stream = client.generate(f"question {number}", seed=number, temperature=0.8 if number % 2 else 0.0, timeout=60)
    await stream.text()
    assert stream.finished is not None
    return stream.token_ids


class Load:
    """An open loop of requests: they are sent when they are due."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._answers: list[tuple[int, asyncio.Task[tuple[int, ...]]]] = []
        self._sent = asyncio.Event()
        self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            number = len(self._answers) % QUESTIONS
            self._answers.append((number, asyncio.create_task(answered(self._client, number))))
            self._sent.set()
            self._sent = asyncio.Event()
            due += EVERY
            await asyncio.sleep(max(0.0, due - clock()))

    async def __aenter__(self) -> "Load":
        return self

    async def __aexit__(self, *how: object) -> None:
        tasks = [self._sending, *(task for _, task in self._answers)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def more(self, count: int) -> None:
        """Wait until so many more have been sent."""
        target = len(self._answers) + count
        async with asyncio.timeout(30):
            while len(self._answers) < target:
                await self._sent.wait()

    async def end(self) -> list[tuple[int, tuple[int, ...]]]:
        """Stop sending; every question, with its answer. Raises what any of them raised."""
        self._sending.cancel()
        return [(number, await task) for number, task in self._answers]


async def by_a_call(client: AsyncClient, node: WorkerNode) -> None:
    assert (await client.drain(node.address)).done
    await node.stop()


async def by_a_signal(client: AsyncClient, node: WorkerNode) -> None:
    await node.stop()  # what SIGTERM does


@pytest.mark.parametrize("drain", [by_a_call, by_a_signal])
@pytest.mark.parametrize("grace", [ENOUGH, TOO_LITTLE])
async def test_four_workers_are_restarted_one_after_the_other_and_nothing_is_lost(
    grace: float,
    drain: Callable[[AsyncClient, WorkerNode], Awaitable[None]],
):
    async with controller() as there, AsyncClient(there.address) as client, AsyncExitStack() as nodes:

        async def started(port: int = 0) -> WorkerNode:
            node = worker(there.address, port=port, grace=grace, slots=16, options=OPTIONS)
            return await nodes.enter_async_context(node)

        fleet = [await started() for _ in range(4)]
        undisturbed = [await answered(client, number) for number in range(QUESTIONS)]
        load = await nodes.enter_async_context(Load(client))
        for old in fleet:
            await load.more(10)
            await drain(client, old)
            new = await started(int(old.address.rpartition(":")[2]))
            assert (new.address, new.incarnation != old.incarnation) == (old.address, True)
        await load.more(10)
        answers = await load.end()
        ended = sum(node._drain.progress.ended for node in fleet)
        assert ended == 0 if grace is ENOUGH else ended > 0, "the case that is meant"
        assert {found.incarnation for found in there.registry.workers()}.isdisjoint(old.incarnation for old in fleet)
    assert len(answers) >= 50
    assert [tokens for _, tokens in answers] == [undisturbed[number] for number, _ in answers]
