"""From a request to its reply: in one piece, or as server-sent events.

Laws: a client that goes away has its answers cancelled at once, also while they wait or while nothing is written; what
goes wrong before the answer begins is an HTTP status, what goes wrong in it an `error` event after which nothing comes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llava_grpc.client import AsyncClient
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.stream import Delta
from llava_grpc.errors import LlavaGrpcError
from llava_grpc.gateway.answers import Events, Told, answers
from llava_grpc.gateway.front import Message, Receive, Scope, Send
from llava_grpc.gateway.metrics import Metrics
from llava_grpc.gateway.problems import CLIENT_CLOSED_REQUEST, ApiError
from llava_grpc.gateway.shapes import Reply

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _ClientLeftError(Exception):
    """Nobody is there to be answered."""


@dataclass(slots=True)
class Asked:
    """What a request asks for, ready to be sent. `began`: when it came, on the monotonic clock."""

    route: str
    requests: Sequence[GenerationRequest]
    reply: Reply
    began: float = field(default_factory=time.monotonic)
    has_text: bool = False


class Serving:
    """See the module."""

    def __init__(self, client: AsyncClient, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics

    async def whole(self, request: Request, asked: Asked) -> Response:
        """The reply in one piece.

        Raises:
            LlavaGrpcError: one of its answers failed.
        """

        async def all_of_it() -> None:
            async with answers(self._client, asked.requests) as events:
                async for number, event in events:
                    self._note(asked, event)
                    asked.reply.take(number, event)

        try:
            await _unless_left(request.receive, all_of_it())
        except _ClientLeftError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        self._count_tokens(asked)
        return JSONResponse(asked.reply.whole())

    async def streamed(self, request: Request, asked: Asked) -> Response:
        """The reply as events. Returns once the first answer has begun.

        Raises:
            LlavaGrpcError: one of its answers failed before that.
        """
        stack = AsyncExitStack()

        async def beginning() -> tuple[Events, tuple[int, Told]]:
            events = await stack.enter_async_context(answers(self._client, asked.requests))
            return events, await anext(events)

        try:
            events, first = await _unless_left(request.receive, beginning())
        except BaseException as error:
            await stack.aclose()
            if isinstance(error, _ClientLeftError):
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            raise
        return EventStream(self._lines(asked, first, events), stack)

    async def _lines(self, asked: Asked, first: tuple[int, Told], events: Events) -> AsyncIterator[bytes]:
        try:
            number, event = first
            while True:
                self._note(asked, event)
                for chunk in asked.reply.chunks(number, event):
                    yield _event(chunk)
                try:
                    number, event = await anext(events)
                except StopAsyncIteration:
                    break
        except LlavaGrpcError as error:
            _log.info("the answer broke off: %s: %s", error.reason, error.cause)
            yield _event(ApiError.of(error).body())
            return
        self._count_tokens(asked)
        if asked.reply.tells_usage:
            yield _event(asked.reply.usage_chunk())
        yield b"data: [DONE]\n\n"

    def _note(self, asked: Asked, event: Told) -> None:
        if isinstance(event, Delta) and not asked.has_text:
            asked.has_text = True
            self._metrics.first_token.labels(asked.route).observe(time.monotonic() - asked.began)

    def _count_tokens(self, asked: Asked) -> None:
        usage = asked.reply.usage
        self._metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        self._metrics.tokens.labels("answer").inc(usage.completion_tokens)


class EventStream(Response):
    """Server-sent events that end, with all that they stand on, when their reader goes away."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._lines = lines
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for line in self._lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        async with self._stack:
            try:
                await _unless_left(receive, write())
            except _ClientLeftError:
                _log.info("the client left before the end of its answer")


async def _unless_left(receive: Receive, work: Awaitable[_T]) -> _T:
    """Do `work`, unless the client goes away: then it is cancelled.

    Raises:
        _ClientLeftError: it went.
    """
    task, watch = asyncio.ensure_future(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _ClientLeftError
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _left(receive: Receive) -> None:
    """Return when the client has gone. Its body has been read."""
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
