"""Worker processes of `llava-grpc up`: started, listened to, started again when they die, and gone when it goes.

Laws: a worker that says why it cannot run is not started again; one that dies is, after a pause that doubles with each
death (a life of `SETTLED_AFTER` seconds makes it short again), and given up after `MOST_DEATHS` in a row. No worker
outlives this process: each holds the other end of a pipe of ours (see `serve`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
SETTLED_AFTER = 60.0
MOST_DEATHS = 5
STOP_WITHIN = 10.0
"""Seconds from SIGTERM to SIGKILL; streams that run get 5 of them."""
_NOT_INHERITED = ("LLAVA_GRPC_WORKER_ADDRESS", "LLAVA_GRPC_NO_REGISTER", "LLAVA_GRPC_CONTROLLER", "LLAVA_GRPC_PORT")


@dataclass(frozen=True, slots=True)
class Progress:
    """What the worker is doing."""

    words: str


@dataclass(frozen=True, slots=True)
class Serving:
    """It is loaded, and answers at the address."""

    address: str


@dataclass(frozen=True, slots=True)
class Joined:
    """The controller knows it."""


@dataclass(frozen=True, slots=True)
class Died:
    """It ended without being asked; it is started again after `pause` seconds."""

    how: str
    pause: float


@dataclass(frozen=True, slots=True)
class GaveUp:
    """It is not started again."""

    why: str


Event = Progress | Serving | Joined | Died | GaveUp


DRAINED = "has drained"
"""How a worker ends that was told to go."""


class Supervisor:
    """Runs workers, each by a command of its own. `start`, read `events`, `stop`.

    Args:
        commands: arguments of `llava-grpc worker`, one tuple a worker.
        echo: gets each line that a worker writes to its standard error, with the worker's number (from 1).
    """

    def __init__(self, commands: Sequence[tuple[str, ...]], echo: Callable[[int, str], None]) -> None:
        self.events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._commands = commands
        self._echo = echo
        self._processes: dict[int, Process] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Start all of them, in the background."""
        for number, command in enumerate(self._commands, start=1):
            self._tasks.append(asyncio.create_task(self._keep(number, command), name=f"worker {number}"))

    async def stop(self) -> None:
        """End all of them, politely and then not."""
        self._stopping.set()
        for process in self._processes.values():
            _signal(process, signal.SIGTERM)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=STOP_WITHIN)
            for process in self._processes.values():
                _signal(process, signal.SIGKILL)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, number: int, command: tuple[str, ...]) -> None:
        pause, deaths = FIRST_PAUSE, 0
        while not self._stopping.is_set():
            born = time.monotonic()
            how, why = await self._live(number, command)
            if self._stopping.is_set():
                return
            if why is not None:
                self._tell(number, GaveUp(why))
                return
            if how == DRAINED or time.monotonic() - born > SETTLED_AFTER:
                pause, deaths = FIRST_PAUSE, 0
            deaths += 1
            if deaths >= MOST_DEATHS:
                self._tell(number, GaveUp(f"{how}, {deaths} times in a row"))
                return
            self._tell(number, Died(how, pause))
            await self._pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _live(self, number: int, command: tuple[str, ...]) -> tuple[str, str | None]:
        """One life of a worker: how it ended, and why it must not be tried again if it said so."""
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llava_grpc", "worker", "--supervised", *command),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is ours to hear, and theirs to be told
        )
        self._processes[number] = process
        if self._stopping.is_set():
            _signal(process, signal.SIGTERM)
        last_words: deque[str] = deque(maxlen=3)
        refusal: list[str] = []

        async def listen() -> None:
            assert process.stdout is not None
            async for line in _lines(process.stdout):
                self._hear(number, line, refusal)

        async def overhear() -> None:
            assert process.stderr is not None
            async for line in _lines(process.stderr):
                last_words.append(line)
                self._echo(number, line)

        try:
            await asyncio.gather(listen(), overhear())
            code = await process.wait()
        finally:
            _signal(process, signal.SIGKILL)
            del self._processes[number]
            assert process.stdin is not None
            process.stdin.close()
        how = _how_ended(code)
        if last_words and not refusal and how != DRAINED:
            how = f"{how} ({last_words[-1].strip()})"
        return how, refusal[0] if refusal else None

    def _hear(self, number: int, line: str, refusal: list[str]) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        match message:
            case {"progress": str(words)}:
                self._tell(number, Progress(words))
            case {"serving": str(address)}:
                self._tell(number, Serving(address))
            case {"joined": True}:
                self._tell(number, Joined())
            case {"failed": str(why)}:
                refusal.append(why)
            case _:  # a library that prints
                self._echo(number, line)

    def _tell(self, number: int, event: Event) -> None:
        self.events.put_nowait((number, event))


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of any length; progress bars, which end theirs with a carriage return, too."""
    rest = ""
    while chunk := await stream.read(65536):
        *lines, rest = (rest + chunk.decode(errors="replace")).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _how_ended(code: int) -> str:
    if code == 0:
        return DRAINED
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
