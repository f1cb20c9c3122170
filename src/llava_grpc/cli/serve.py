"""A node as a process: from the settings to a clean end on SIGINT, SIGTERM or a call to drain, which are one thing.

A worker that `llava-grpc up` started (`--supervised`) says on its standard output, in one JSON object a line, how far
it is: progress, serving, joined, failed. Its standard input is the lifeline: when that closes, `up` is gone, however it
died, and the worker goes too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from llava_grpc.cli.output import print_json, say_error, say_failure
from llava_grpc.config import ControllerSettings, GatewaySettings, SettingsError, WorkerSettings
from llava_grpc.errors import LlavaGrpcError

if TYPE_CHECKING:
    from llava_grpc.worker.app import WorkerNode

LIFELINE_GRACE = 10.0
"""Seconds that a worker without its `up` may take to end by itself."""

_log = logging.getLogger(__name__)


class Signals:
    """SIGINT and SIGTERM, as something to wait for. A second one ends the process at once."""

    def __init__(self) -> None:
        self.exit_code = 0
        self._heard = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._hear, signal.SIGINT, 130)
        loop.add_signal_handler(signal.SIGTERM, self._hear, signal.SIGTERM, 0)

    @property
    def heard(self) -> bool:
        """Whether the process is to end."""
        return self._heard.is_set()

    def _hear(self, number: signal.Signals, exit_code: int) -> None:
        if self.heard:
            os._exit(128 + number)
        self.exit_code = exit_code
        self._heard.set()

    async def interrupt(self, work: Coroutine[Any, Any, object]) -> bool:
        """Do `work`, unless a signal comes first: then it is cancelled. Whether a signal came."""
        task = asyncio.ensure_future(work)
        waiting = asyncio.ensure_future(self._heard.wait())
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if not task.cancelled():
            task.result()
        return self.heard


@contextlib.contextmanager
def told(supervised: bool) -> Iterator[None]:
    """Have `up` hear of settings that make no sense: it need not try them again."""
    try:
        yield
    except SettingsError as error:
        if supervised:
            print_json({"failed": str(error)})
        raise


async def run_controller(settings: ControllerSettings) -> int:
    """A controller's life; the exit code.

    Raises:
        SettingsError: it cannot listen there, or no strategy has that name.
    """
    from llava_grpc.controller.app import ControllerNode

    signals = Signals()
    node = ControllerNode(settings)
    try:
        if not await signals.interrupt(node.start()):
            _log.info("workers join with: llava-grpc worker --controller %s", node.address)
            await signals.interrupt(node.wait())
    except LlavaGrpcError as error:
        say_error(error)
        return 1
    finally:
        await node.stop()
    return signals.exit_code


async def run_gateway(settings: GatewaySettings, grace: float) -> int:
    """A gateway's life; the exit code.

    Raises:
        SettingsError: it cannot listen there.
    """
    from llava_grpc.gateway.app import GatewayNode

    signals = Signals()
    node = GatewayNode(settings, grace)
    try:
        if not await signals.interrupt(node.start()):
            await signals.interrupt(asyncio.Event().wait())
    finally:
        await node.stop()
    return signals.exit_code


async def run_worker(settings: WorkerSettings, supervised: bool) -> int:
    """A worker's life; the exit code.

    Raises:
        SettingsError: it cannot listen there, and other errors that `up` is told of as well.
    """
    from llava_grpc.engines.base import EngineStartError
    from llava_grpc.worker.app import WorkerNode

    report = print_json if supervised else _say_nothing
    signals = Signals()
    try:
        node = WorkerNode(settings, lambda words: _progress(report, words))
        try:
            loading = True
            if not await signals.interrupt(node.start()):
                loading = False
                report({"serving": node.address})
                await signals.interrupt(_member(node, report))
        finally:
            await node.stop()
        if loading:  # in a thread, which cannot be stopped and would be waited for
            sys.stdout.flush()
            os._exit(signals.exit_code)
    except EngineStartError as error:
        report({"failed": str(error)})
        if not supervised:
            say_failure(f"the engine cannot start: {error}")
        return 1
    except LlavaGrpcError as error:
        report({"failed": str(error)})
        if not supervised:
            say_error(error)
        return 1
    except SettingsError as error:
        report({"failed": str(error)})
        raise
    return signals.exit_code


async def _member(node: WorkerNode, report: Callable[[object], None]) -> None:
    async def joined() -> None:
        await node.registered()
        report({"joined": True})

    telling = asyncio.create_task(joined())
    try:
        await node.wait()
    finally:
        telling.cancel()


def _progress(report: Callable[[object], None], words: str) -> None:
    _log.info("%s", words)
    report({"progress": words})


def _say_nothing(value: object) -> None:
    pass


def hold_lifeline() -> None:
    """From now on, end when standard input closes."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(sys.stdin.fileno(), 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LIFELINE_GRACE)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
