"""How a node leaves: it takes nothing new, finishes what it has, says goodbye.

Laws:
1. One way out, whoever asks for it (a call, a signal) and however often: the earliest end of the grace time counts, and
   there is no way back.
2. From the moment that it is asked for nothing new is taken: SHUTTING_DOWN, which sends a request elsewhere.
3. A stream that outlasts the grace time ends with SHUTTING_DOWN, so that whoever sent it can go on elsewhere: never
   with a bare end, nor with one that could be taken for a complete answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio

from llava_grpc.config import ServerSettings
from llava_grpc.core.states import DrainProgress
from llava_grpc.errors import JoinRefusedError, ShuttingDownError
from llava_grpc.membership.memberships import Memberships
from llava_grpc.rpc.convert import duration_from_pb, duration_to_pb
from llava_grpc.rpc.joining import check_join_token
from llava_grpc.rpc.server import NodeServer
from llava_grpc.v1 import worker_pb2 as pb

TELL_EVERY = 1.0
"""Seconds after which those who watch are told how far it is, though nothing has changed."""
LAST_WORDS = 1.0
"""Seconds that a stream which was ended has to say so, to a client that may not be reading."""

_log = logging.getLogger(__name__)


class Drain:
    """See the module. The node answers its streams within `answering`, and has `carry_out` run in the background.

    Args:
        node: what is said to be stopping, e.g. "the worker".
        grace: seconds for running streams, where whoever asks does not say.

    Attributes:
        begun: set once it was asked for.
        done: set once the node has left its controllers.
    """

    def __init__(self, node: str, grace: float) -> None:
        self.begun = asyncio.Event()
        self.done = asyncio.Event()
        self._node = node
        self._grace = grace
        self._over = math.inf
        self._streams: set[asyncio.Task[object]] = set()
        self._cut: set[asyncio.Task[object]] = set()
        self._ended = 0
        self._news = asyncio.Event()

    @property
    def progress(self) -> DrainProgress:
        """How far it is."""
        left = max(0.0, self._over - asyncio.get_running_loop().time())
        return DrainProgress(len(self._streams), self._ended, left, self.done.is_set())

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Around the answering of one stream, in a task of its own.

        Raises:
            ShuttingDownError: nothing new is taken; or, from within, the grace time is over.
        """
        if self.begun.is_set():
            raise self._stopping()
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._cut or task.uncancel():  # the client has gone, too
                raise
            raise self._stopping() from None
        finally:
            self._streams.discard(task)
            self._cut.discard(task)
            self._tell()

    def begin(self, grace: float | None = None) -> None:
        """Take nothing new from now on; running streams may go on for `grace` seconds, or as the node was told."""
        over = asyncio.get_running_loop().time() + max(0.0, self._grace if grace is None else grace)
        self._over = min(self._over, over)
        self.begun.set()
        self._tell()

    async def watch(self) -> AsyncIterator[DrainProgress]:
        """How far it is: now, at each change and every second; the last is when it is done."""
        while True:
            news, progress = self._news, self.progress
            yield progress
            if progress.done:
                return
            await _first(news, TELL_EVERY)

    async def carry_out(self, server: NodeServer, memberships: Memberships) -> None:
        """Once it was asked for, all of it, to the goodbye."""
        await self.begun.wait()
        _log.info("draining: %d running, %.3g s of grace", len(self._streams), self.progress.grace_left)
        await server.set_serving(False)
        await memberships.drain()
        await self._finish_streams()
        await memberships.leave()
        self.done.set()
        self._tell()

    async def wait(self, memberships: Memberships) -> None:
        """Wait until the node has left its controllers.

        Raises:
            MembershipError, RegistrationInvalidError: one refused it for good.
        """
        refused = asyncio.ensure_future(memberships.refused())
        done = asyncio.ensure_future(self.done.wait())
        try:
            await asyncio.wait({refused, done}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                refused.result()
        finally:
            refused.cancel()
            done.cancel()
            await asyncio.gather(refused, done, return_exceptions=True)

    async def _finish_streams(self) -> None:
        """Wait for the running streams, and end those that outlast the grace time."""
        while self._streams and (left := self.progress.grace_left) > 0:
            await _first(self._news, left)
        if not self._streams:
            return
        self._ended = len(self._streams)
        _log.warning("the grace time is over: ending what still runs (%d)", self._ended)
        self._cut = set(self._streams)
        for task in self._cut:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                while self._streams:
                    await self._news.wait()

    def _tell(self) -> None:
        self._news.set()  # wakes all who wait; who comes too late waits for the next
        self._news = asyncio.Event()

    def _stopping(self) -> ShuttingDownError:
        return ShuttingDownError(f"{self._node} is stopping")


async def answer_drain(
    drain: Drain,
    request: pb.WorkerServiceDrainRequest,
    context: grpc.aio.ServicerContext[Any, Any],
    server: ServerSettings,
    join_token: str,
) -> None:
    """WorkerService.Drain: have the node drain, and write its progress to the context.

    Raises:
        JoinRefusedError: the node's join token is not shown, or it has none and others than this machine can call it.
    """
    if not (join_token or server.on_loopback):
        raise JoinRefusedError(
            "the node has no join token, and anybody may call it",
            remedy="Send its process SIGTERM, which does the same",
        )
    check_join_token(context, join_token)
    drain.begin(duration_from_pb(request.grace) if request.HasField("grace") else None)
    async for progress in drain.watch():
        await context.write(
            pb.WorkerServiceDrainResponse(
                running=progress.running,
                ended=progress.ended,
                grace_left=duration_to_pb(progress.grace_left),
                done=progress.done,
            )
        )


async def _first(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set or the seconds are over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
