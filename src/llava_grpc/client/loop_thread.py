"""An event loop in a thread of its own, for code that has none.

Laws: whoever waits can be interrupted (Ctrl-C) and what it waited for is cancelled; after `stop` nobody waits for ever;
the thread never outlives the interpreter's will to end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from llava_grpc.errors import RequestCancelledError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_STOP_WITHIN = 5.0


class LoopThread:
    """Runs coroutines for other threads. Starts at once; `stop` it."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The result of `await function(*args, **kwargs)` over there."""

        async def run() -> _T:
            return await function(*args, **kwargs)

        with self._lock:
            if self._stopped:
                raise RuntimeError("the client is closed")
            if threading.current_thread() is self._thread:
                raise RuntimeError("a Client cannot be used from its own event loop")
            future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RequestCancelledError("the client was closed") from None
        except BaseException:
            future.cancel()  # nothing, if it was the coroutine that raised
            raise

    def post(self, function: Callable[[], object]) -> None:
        """Have `function` called over there some time; not at all if it has stopped."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    def stop(self, last: Callable[[], Awaitable[object]]) -> None:
        """Await `last()` over there, cancel what still runs, and end the thread. Any number of times."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True

        async def wind_up() -> None:
            with contextlib.suppress(Exception):
                await last()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._loop.shutdown_asyncgens()
            self._loop.stop()

        tasks: list[asyncio.Task[None]] = []  # the loop keeps but weak references
        self.post(lambda: tasks.append(self._loop.create_task(wind_up())))
        if threading.current_thread() is not self._thread:  # a garbage collection may run anywhere, also over there
            self._thread.join(_STOP_WITHIN)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
