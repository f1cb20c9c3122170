"""Controllers and workers as processes, to be killed, frozen and replaced.

Laws: no process outlives the block, whatever ends it; what they all said is kept in a folder where the block failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import re
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.processes import CONTROLLER_SERVES, WORKER_REGISTERED, NodeProcess

NOTICED = r"worker {}(: WORKER_LOST|: its heartbeats broke off| is silent)"
"""What a controller says at the moment in which it gives a worker no more work."""
NOTICE_TIMEOUT = 30.0
MOST_THREADS, MOST_FILES, MOST_MIB = 12, 12, 64
"""By how much a node may grow and count as steady: pools start their threads when they are first needed."""


class Fleet:
    """See the module.

    Args:
        controllers: how many. Workers join all of them.
        workers: how many.
        controller_flags, worker_flags: what they are told beside where to listen and whom to join.
        environment: variables of all of them.
    """

    def __init__(
        self,
        *,
        controllers: int = 1,
        workers: int,
        controller_flags: Sequence[str] = (),
        worker_flags: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._counts = controllers, workers
        self._controller_flags = tuple(controller_flags)
        self._worker_flags = tuple(worker_flags)
        self._environment = dict(environment or {})
        self._all: list[tuple[str, NodeProcess]] = []
        self.controllers: list[NodeProcess] = []
        self.workers: list[NodeProcess] = []

    @property
    def controller(self) -> NodeProcess:
        """The first one."""
        return self.controllers[0]

    @property
    def addresses(self) -> list[str]:
        """The controllers'."""
        return [node.address for node in self.controllers]

    async def add_controller(self, port: int = 0, *flags: str) -> NodeProcess:
        """One more, serving."""
        node = self._start("controller", "--port", str(port), *self._controller_flags, *flags)
        node.address = (await heard(node, CONTROLLER_SERVES)).group(1)
        self.controllers.append(node)
        return node

    async def add_worker(self, port: int = 0, *flags: str, within: Sequence[str] = ()) -> NodeProcess:
        """One more, registered with all controllers."""
        joins = [word for address in self.addresses for word in ("--controller", address)]
        node = self._start("worker", "--port", str(port), *joins, *self._worker_flags, *flags, within=within)
        for address in self.addresses:
            node.address = (await heard(node, WORKER_REGISTERED.format(re.escape(address)))).group(1)
        self.workers.append(node)
        return node

    async def replace(self, node: NodeProcess, *, port: bool = False) -> NodeProcess:
        """Start another one like it, which is gone; at its very `port` where asked to."""
        number = port_of(node) if port else 0
        if node in self.controllers:
            self.controllers.remove(node)
            return await self.add_controller(number)
        self.workers.remove(node)
        return await self.add_worker(number)

    def keep_logs(self) -> Path:
        """Write what all nodes said, the dead ones too, into a folder of its own."""
        folder = Path(tempfile.mkdtemp(prefix="llava-grpc-drill-"))
        for number, (kind, node) in enumerate(self._all):
            (folder / f"{number:03}-{kind}-{node.pid}.log").write_text(node.said)
        return folder

    async def __aenter__(self) -> Self:
        controllers, workers = self._counts
        try:
            for _ in range(controllers):
                await self.add_controller()
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self.add_worker())
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, node in self._all:  # all of them before any of them is waited for
            node.send_signal(signal.SIGKILL)
        for _, node in self._all:
            node.kill()
        if isinstance(error, Exception):
            error.add_note(f"what the nodes said: {self.keep_logs()}")

    def _start(self, kind: str, *arguments: str, within: Sequence[str] = ()) -> NodeProcess:
        node = NodeProcess(kind, *arguments, environment=self._environment, within=within)
        self._all.append((kind, node))
        return node


async def heard(node: NodeProcess, pattern: str, since: int = 0, timeout: float = 120.0) -> re.Match[str]:
    """The first line, past or to come, after the first `since`, in which `pattern` is found.

    Raises:
        TimeoutError: there is none within `timeout` seconds, or the node has ended.
    """
    try:
        return await asyncio.to_thread(node.wait_for, pattern, timeout, since)
    except AssertionError:
        raise TimeoutError(f"{node.address or 'a node that was started'} did not say {pattern!r}") from None


async def noticed(controller: NodeProcess, worker: NodeProcess, since: int) -> float:
    """When the controller gave a worker up, in seconds of its own wall clock; the first `since` lines that it said came
    before."""
    return stamp(await heard(controller, NOTICED.format(re.escape(worker.address)), since, NOTICE_TIMEOUT))


def stamp(line: re.Match[str]) -> float:
    """When a line was said, in seconds of the wall clock of whoever said it."""
    return datetime.datetime.strptime(line.string[:23], "%Y-%m-%d %H:%M:%S.%f").timestamp()


def port_of(node: NodeProcess) -> int:
    """Where it listens."""
    return int(node.address.rpartition(":")[2])


class Footprint:
    """What nodes take of the machine, now; and what they take more of later than is steady."""

    def __init__(self, nodes: Sequence[NodeProcess]) -> None:
        self._before = {node: _footprint(node) for node in nodes}

    def grown(self, nodes: Sequence[NodeProcess]) -> list[str]:
        """Of those nodes that were there before."""
        found = []
        for node in nodes:
            with contextlib.suppress(KeyError):
                for name, before, now, most in zip(
                    ("threads", "files", "MiB"),
                    self._before[node],
                    _footprint(node),
                    (MOST_THREADS, MOST_FILES, MOST_MIB),
                    strict=True,
                ):
                    if now > before + most:
                        found.append(f"{node.address} has {now} {name}, {before} before")
        return found


def _footprint(node: NodeProcess) -> tuple[int, int, int]:
    process = psutil.Process(node.pid)
    return process.num_threads(), process.num_fds(), process.memory_info().rss >> 20
