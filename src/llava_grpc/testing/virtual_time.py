"""An event loop in virtual time, and processes that run, stall and die on it.

Laws:
1. Nobody waits: when nothing is ready, the clock jumps to the next timer. Where there is none, whoever waits would wait
   for ever: StuckError.
2. What runs when depends on nothing but what is run. No threads, no real IO; what is given to an executor runs at once,
   in line.
3. A process that is frozen runs nothing: what falls due is kept, in order, until it thaws. One that was killed is a
   ghost: its tasks are cancelled and unwind, but nothing that they do reaches anybody (`testing.network` sees to that).
4. What a task's exception or a callback's is to asyncio's exception handler is a defect here, and kept.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, TypeVar, TypeVarTuple, Unpack

MOST_AT_ONCE = 200_000
"""Callbacks that may run without time passing; beyond, something turns round and round."""
ROUNDS_TO_UNWIND = 20
"""How often what is left at the end is cancelled."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_Coroutine = Coroutine[Any, Any, _T] | Generator[Any, None, _T]


class StuckError(Exception):
    """Nothing will ever happen again, and somebody waits; or everything happens at once, for ever."""


class Process:
    """An operating system's process: what it runs can be frozen and killed as a whole.

    Everything that begins in its `context`, or with `spawn`, is its own.
    """

    def __init__(self, loop: VirtualLoop, name: str, host: str) -> None:
        self.name, self.host = name, host
        self.alive, self.frozen, self.answers_pings = True, False, True
        self._loop = loop
        self._tasks: list[asyncio.Task[Any]] = []
        self._prune_at = 256
        self._kept: list[asyncio.Handle] = []
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)
        loop.processes.append(self)

    def __repr__(self) -> str:
        return self.name

    def spawn(self, coroutine: _Coroutine[_T], name: str | None = None) -> asyncio.Task[_T]:
        """Run a coroutine in it."""
        return self._loop.create_task(coroutine, name=name, context=self.context.copy())

    def freeze(self, *, answers_pings: bool = False) -> None:
        """Suspend it (SIGSTOP), or only its event loop: the transport then still answers pings."""
        self.frozen, self.answers_pings = True, answers_pings

    def thaw(self) -> None:
        """Let it go on: all that fell due meanwhile runs now, in order."""
        self.frozen, self.answers_pings = False, True
        kept, self._kept = self._kept, []
        self._loop.resume(kept)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self.alive = False
        self.thaw()
        for task in self._tasks:
            task.cancel()

    def owns(self, task: asyncio.Task[Any]) -> None:
        """The task began in it."""
        if not self.alive:
            task.cancel()
            return
        self._tasks.append(task)
        if len(self._tasks) > self._prune_at:
            self._tasks = [one for one in self._tasks if not one.done()]
            self._prune_at = 2 * len(self._tasks) + 256

    def open_tasks(self) -> list[asyncio.Task[Any]]:
        """Those that are not done."""
        return [task for task in self._tasks if not task.done()]

    def keep(self, handle: asyncio.Handle) -> None:
        """It is frozen: the handle runs when it thaws."""
        self._kept.append(handle)


PROCESS: ContextVar[Process | None] = ContextVar("llava_grpc_process", default=None)
"""The process that runs."""


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module. Use `run`.

    Args:
        at_rest: called before the clock moves, whenever something has run: the moment to look whether all is well.
    """

    def __init__(self, at_rest: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.at_rest = at_rest
        self.ran: dict[Process, None] = {}
        """Processes that ran since the clock moved last."""
        self.processes: list[Process] = []
        self.defects: list[dict[str, Any]] = []
        self._now = 0.0
        self._soon: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = 0
        self._failure: Exception | None = None
        self._ends = False

    def run(self, coroutine: _Coroutine[_T]) -> _T:
        """Run a coroutine to its end; what others still have to do then is left undone.

        Raises:
            StuckError: it would never end.
            Exception: somebody let the run `fail`.
        """
        main: asyncio.Task[_T] = self.create_task(coroutine)
        main.add_done_callback(lambda done: self.stop())
        self.run_forever()
        if self._failure is not None:
            raise self._failure
        return main.result()

    def fail(self, error: Exception) -> None:
        """End the run with an error, whoever finds it. The first one counts."""
        self._failure = self._failure or error
        self.stop()

    def run_until_complete(self, future: Any) -> Any:
        async def wait() -> Any:
            return await future

        return self.run(wait())

    def run_forever(self) -> None:
        with self._as_running():
            while not self._ends:
                self._run_ready()
                if not self._ends:
                    self._advance()

    def close(self) -> None:
        """Cancel what is left, and let it unwind.

        Raises:
            StuckError: it will not.
        """
        self.at_rest = lambda: None
        try:
            with self._as_running():
                self._unwind()
        finally:
            self._soon.clear()
            self._timers.clear()
            super().close()

    def _unwind(self) -> None:
        for _ in range(ROUNDS_TO_UNWIND):
            for process in self.processes:
                process.kill()
            tasks = asyncio.all_tasks(self)
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            self._ends = False
            self._run_ready()
        raise StuckError(f"cancelled, and still running: {tasks}")

    @contextmanager
    def _as_running(self) -> Iterator[None]:
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self._finalize)
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            self._ends = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _run_ready(self) -> None:
        """All that can run at this moment, in order."""
        ready, count = self._soon, 0
        while ready and not self._ends:
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
            if process is not None and process.frozen:
                process.keep(handle)
                continue
            if process is not None:
                self.ran[process] = None
            handle._run()
            count += 1
            if count > MOST_AT_ONCE:
                raise StuckError(f"more than {MOST_AT_ONCE:,} callbacks ran and no time passed; the last: {handle}")
        if count and not self._ends:
            self.at_rest()
            self.ran.clear()

    def _advance(self) -> None:
        """The clock jumps to the next timer."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not timers:
            if self._soon:
                return
            raise StuckError(f"at {self._now:.3f} s nothing is left to happen, and somebody waits")
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            self._soon.append(heapq.heappop(timers)[2])

    def resume(self, handles: list[asyncio.Handle]) -> None:
        """Have handles run that were kept."""
        self._soon.extend(handles)

    # --------------------------------------------------------------------------------------------- what asyncio asks

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._soon.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, handle))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is left out when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: _Coroutine[_T], *, name: object = None, context: Context | None = None
    ) -> asyncio.Task[_T]:
        task: asyncio.Task[_T] = asyncio.Task(
            coro, loop=self, name=None if name is None else str(name), context=context
        )
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.owns(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts) -> asyncio.Future[_T]:
        future: asyncio.Future[_T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self) -> None:
        self._ends = True

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.defects.append(context)

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self.is_closed():
            self.create_task(generator.aclose())
