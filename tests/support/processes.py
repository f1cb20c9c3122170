"""Nodes as real processes: `python -m llava_grpc ...`, waited for by what they say, never by the clock.

Law: no process outlives its `with` block, and a wait that fails shows all that the process had said.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

START_TIMEOUT = 60.0
"""Seconds that a node may take to be ready on a busy machine."""
STOP_TIMEOUT = 15.0
CONTROLLER_SERVES = r"controller at (\S+), strategy"
WORKER_REGISTERED = r"registered with {} as (\S+?):? "
"""What a node says when it is ready, a worker with a controller's address in the braces; the group is its own."""


class NodeProcess:
    """One process of the command line; both of its outputs are read as they come.

    Args:
        arguments: what follows `llava-grpc` on the command line.
        environment: variables on top of this process's own, without its LLAVA_GRPC_*.
        within: a command that runs what follows it in its own place, e.g. in another network.
    """

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None, within: Sequence[str] = ()) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLAVA_GRPC_")}
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "llava_grpc", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env={**inherited, **(environment or {}), "PYTHONUNBUFFERED": "1"},
        )
        self._said: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, name=f"output of {arguments[0]}", daemon=True)
        self._reader.start()
        self.address = ""
        """Where it listens; set by `start_controller` and `start_worker`."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def said(self) -> str:
        """All output so far."""
        with self._news:
            return "\n".join(self._said)

    @property
    def lines(self) -> int:
        """How many lines it has said so far."""
        with self._news:
            return len(self._said)

    def count(self, pattern: str, since: int = 0) -> int:
        """In how many lines, after the first `since`, `pattern` is found."""
        with self._news:
            return sum(re.search(pattern, line) is not None for line in self._said[since:])

    def wait_for(self, pattern: str, timeout: float = START_TIMEOUT, since: int = 0) -> re.Match[str]:
        """The first line, past or to come, after the first `since`, in which `pattern` is found."""
        deadline = time.monotonic() + timeout
        seen = since
        with self._news:
            while True:
                for line in self._said[seen:]:
                    if match := re.search(pattern, line):
                        return match
                seen = len(self._said)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    how = f"ended with code {self._process.wait()}" if self._ended else f"said nothing for {timeout} s"
                    raise AssertionError(f"no {pattern!r}; the process {how}; it said:\n" + "\n".join(self._said))
                self._news.wait(left)

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop it where it is; returns when it runs no more."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let it run on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """As an out-of-memory killer would; returns when it is gone."""
        self._process.kill()
        self._process.wait(STOP_TIMEOUT)

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """The exit code, once it has ended and all its output is read."""
        code = self._process.wait(timeout)
        self._reader.join(timeout)
        return code

    def stop(self) -> int:
        """End it politely, or not, and tidy up; its exit code."""
        self._process.terminate()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with self._news:
                    self._said.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def start_controller(*flags: str, environment: dict[str, str] | None = None) -> NodeProcess:
    """A controller on a free loopback port, serving."""
    node = NodeProcess("controller", "--port", "0", *flags, environment=environment)
    return _ready(node, CONTROLLER_SERVES)


def start_worker(controller: str, *flags: str, environment: dict[str, str] | None = None) -> NodeProcess:
    """A worker on a free loopback port, registered; the echo engine unless `flags` say otherwise."""
    engine = () if "--engine" in flags else ("--engine", "echo")
    node = NodeProcess("worker", "--port", "0", "--controller", controller, *engine, *flags, environment=environment)
    return _ready(node, WORKER_REGISTERED.format(r"\S+"))


def _ready(node: NodeProcess, pattern: str) -> NodeProcess:
    try:
        node.address = node.wait_for(pattern).group(1)
    except BaseException:
        node.kill()
        node.stop()
        raise
    return node
