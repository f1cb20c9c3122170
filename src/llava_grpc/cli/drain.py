"""`llava-grpc drain`: a worker finishes what it has, and goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llava_grpc.cli.options import FLEET, NETWORK, ControllerAddress, JoinToken, Json, address_of, addresses_of
from llava_grpc.cli.output import console, error_console, print_json

if TYPE_CHECKING:
    from rich.status import Status

    from llava_grpc.core.states import DrainProgress

STREAMS_WERE_ENDED = 3
"""The exit code where the worker has gone, but some streams did not end by themselves."""


def drain(
    worker: Annotated[str, typer.Argument(metavar="WORKER", help="HOST:PORT, as `llava-grpc workers` shows it.")],
    controller: ControllerAddress = "127.0.0.1:21001",
    direct: Annotated[
        bool,
        typer.Option("--direct", help="Ask the worker itself, not its controller.", rich_help_panel=NETWORK),
    ] = False,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Running streams may go on for so long. Default: as the worker was started with.",
            rich_help_panel=FLEET,
        ),
    ] = None,
    join_token: JoinToken = "",
    as_json: Json = False,
) -> int:
    """Drain a worker: it takes nothing new, finishes what it has, leaves all its controllers, and its process ends.

    Streams that outlast the grace time are ended there and go on elsewhere. Interrupting this command leaves the drain
    going on. Exit code: 0 when all streams had ended by themselves, 3 when some were ended, 1 when it failed.
    """
    import asyncio

    from llava_grpc.client import AsyncClient

    worker = address_of(worker)

    async def watched(line: _Line) -> DrainProgress:
        async with AsyncClient(worker if direct else addresses_of(controller)) as client:
            return await client.drain(
                "" if direct else worker,
                grace=grace,
                join_token=join_token,
                on_progress=print_json if as_json else line.show,
            )

    with _Line(worker, quiet=as_json) as line:
        end = asyncio.run(watched(line))
    if not as_json:
        cut = f"{_streams(end.ended)} outlasted the grace time, to go on elsewhere"
        console().print(f"{worker} has drained: {cut if end.ended else 'every stream had come to its end'}")
    return STREAMS_WERE_ENDED if end.ended else 0


class _Line:
    """What is left, on standard error: one line that changes on a terminal, else a line for each change."""

    def __init__(self, worker: str, quiet: bool) -> None:
        self._worker = worker
        self._shown = -1
        self._status: Status | None = None
        if not quiet and error_console().is_terminal:
            self._status = error_console().status(f"asking {worker} to drain")

    def __enter__(self) -> _Line:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *how: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, progress: DrainProgress) -> None:
        words = f"draining {self._worker}: {_streams(progress.running)} left, {progress.grace_left:.0f} s of grace"
        if self._status is not None:
            self._status.update(words)
        elif progress.running != self._shown and not progress.done:
            self._shown = progress.running
            error_console().print(words, soft_wrap=True)


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"
