"""Several answers at once, as one sequence of events.

Law: whoever stops reading, for whatever reason, leaves all of them; nothing runs on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from llava_grpc.client import AnswerStream, AsyncClient
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.stream import Delta, Finished, Queued, Started

Told = Started | Delta | Finished
Events = AsyncIterator[tuple[int, Told]]
"""Each with the number of its answer."""

_PENDING = 64
"""Events that wait for their reader, over all answers, before the answers are held up."""


@asynccontextmanager
async def answers(client: AsyncClient, requests: Sequence[GenerationRequest]) -> AsyncIterator[Events]:
    """Ask, and hear of all answers as they come.

    Raises:
        LlavaGrpcError: one of them failed; the others are left.
    """
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(client.send(request)) for request in requests]
        if len(streams) == 1:
            yield _events(0, streams[0])
            return
        news: asyncio.Queue[tuple[int, Told] | BaseException | None] = asyncio.Queue(_PENDING)
        tasks = [asyncio.create_task(_tell(number, stream, news)) for number, stream in enumerate(streams)]
        try:
            yield _merged(news, len(tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _events(number: int, stream: AnswerStream) -> Events:
    async for event in stream.events():
        if not isinstance(event, Queued):
            yield number, event


async def _tell(
    number: int, stream: AnswerStream, news: asyncio.Queue[tuple[int, Told] | BaseException | None]
) -> None:
    try:
        async for told in _events(number, stream):
            await news.put(told)
        await news.put(None)
    except Exception as error:
        await news.put(error)


async def _merged(news: asyncio.Queue[tuple[int, Told] | BaseException | None], left: int) -> Events:
    while left:
        told = await news.get()
        if isinstance(told, BaseException):
            raise told
        if told is None:
            left -= 1
        else:
            yield told
