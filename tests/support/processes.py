"""Nodes as real processes: `python -m llava_grpc ...`, waited for by what they say, never by the clock.

Law: no process outlives its `with` block, and a wait that fails shows all that the process had said.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Self

START_TIMEOUT = 60.0
"""Seconds that a node may take to be ready on a busy machine."""
STOP_TIMEOUT = 15.0


class NodeProcess:
    """One process of the command line; both of its outputs are read as they come.

    Args:
        arguments: what follows `llava-grpc` on the command line.
        environment: variables on top of this process's own, without its LLAVA_GRPC_*.
    """

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLAVA_GRPC_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llava_grpc", *arguments],
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

    def wait_for(self, pattern: str, timeout: float = START_TIMEOUT) -> re.Match[str]:
        """The first line, past or to come, in which `pattern` is found."""
        deadline = time.monotonic() + timeout
        seen = 0
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
    return _ready(node, r"controller at (\S+), strategy")


def start_worker(controller: str, *flags: str, environment: dict[str, str] | None = None) -> NodeProcess:
    """A worker on a free loopback port, registered; the echo engine unless `flags` say otherwise."""
    engine = () if "--engine" in flags else ("--engine", "echo")
    node = NodeProcess("worker", "--port", "0", "--controller", controller, *engine, *flags, environment=environment)
    return _ready(node, r"registered with \S+ as (\S+?):? ")


def _ready(node: NodeProcess, pattern: str) -> NodeProcess:
    try:
        node.address = node.wait_for(pattern).group(1)
    except BaseException:
        node.kill()
        node.stop()
        raise
    return node
