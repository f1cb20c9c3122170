"""`llava-grpc up`: a whole fleet on this machine, which proves that it works before it says so."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava_grpc.cli.ask import show
from llava_grpc.cli.fleet import workers_table
from llava_grpc.cli.output import console, error_console, say_error, say_failure
from llava_grpc.cli.serve import Signals
from llava_grpc.cli.supervise import DRAINED, Died, Event, GaveUp, Joined, Progress, Serving, Supervisor
from llava_grpc.client import AsyncClient
from llava_grpc.config import DEFAULT_CONTROLLER_PORT, ControllerSettings
from llava_grpc.controller.app import ControllerNode
from llava_grpc.demo import SAMPLE
from llava_grpc.errors import LlavaGrpcError

if TYPE_CHECKING:
    from rich.table import Table

PROOF_TIMEOUT = 120.0
"""Seconds for the first answer, which may have to warm the model up."""


class UpFailedError(Exception):
    """It cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start: the controller, a `llava-grpc worker` command line each, and whether to stop after the proof.

    `bundled`: the model is the bundled one, whose answer to the sample is known.
    """

    controller: ControllerSettings
    workers: tuple[tuple[str, ...], ...]
    bundled: bool
    check: bool


def share_of_cores(workers: int) -> int:
    """CPU threads for each of so many workers: more in all than there are cores slow every one of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


async def run_up(plan: Plan) -> int:
    """Everything, from start to end; the exit code.

    Raises:
        SettingsError: the port is taken; nothing was started.
    """
    signals = Signals()
    node = ControllerNode(plan.controller)
    supervisor: Supervisor | None = None
    try:
        await node.start()
        place = ("--host", "127.0.0.1", "--port", "0", "--controller", node.address)
        supervisor = Supervisor([(*place, *command) for command in plan.workers], _echo)
        supervisor.start()
        await signals.interrupt(_live(plan, node.address, supervisor))
    except UpFailedError as error:
        say_failure(str(error))
        return 1
    except LlavaGrpcError as error:
        say_error(error)
        return 1
    finally:
        if signals.heard:
            console().print("\n[dim]stopping; once more to stop at once[/]")
        if supervisor is not None:
            await supervisor.stop()
        await node.stop()
    return signals.exit_code


async def _live(plan: Plan, address: str, supervisor: Supervisor) -> None:
    began = time.monotonic()
    await _all_joined(supervisor, len(plan.workers))
    console().print(f"[green]✓[/] {_workers(len(plan.workers))} ready after {time.monotonic() - began:.1f} s\n")
    async with AsyncClient(address) as client:
        await _prove(client, plan.bundled)
        console().print(workers_table(await client.workers()))
    if plan.check:
        return
    _say_what_now(address)
    await _watch(supervisor, len(plan.workers))


# --------------------------------------------------------------------------------------------------------------- start


async def _all_joined(supervisor: Supervisor, count: int) -> None:
    """Show how the workers come up, until all have."""
    doing = dict.fromkeys(range(1, count + 1), "starting")
    waiting = set(doing)
    out = console()
    if not out.is_terminal:
        while waiting:
            number, words = await _next_step(supervisor, waiting)
            out.print(f"worker {number}: {words}")
        return
    from rich.live import Live

    with Live(_steps(doing, waiting), console=out, transient=True) as live:
        while waiting:
            number, words = await _next_step(supervisor, waiting)
            doing[number] = words
            live.update(_steps(doing, waiting))


async def _next_step(supervisor: Supervisor, waiting: set[int]) -> tuple[int, str]:
    number, event = await supervisor.events.get()
    match event:
        case Joined():
            waiting.discard(number)
            return number, "ready"
        case Progress(words):
            return number, words
        case Serving(address):
            return number, f"at {address}, joining"
        case Died():
            waiting.add(number)
            return number, _death(event)
        case GaveUp(why):
            raise UpFailedError(f"worker {number} cannot run: {why}")


def _steps(doing: dict[int, str], waiting: set[int]) -> Table:
    from rich.spinner import Spinner
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    for number, words in doing.items():
        sign = Spinner("dots", style="cyan") if number in waiting else "[green]✓[/]"
        grid.add_row(sign, f"worker {number}", f"[dim]{words}[/]")
    return grid


# --------------------------------------------------------------------------------------------------------------- proof


async def _prove(client: AsyncClient, bundled: bool) -> None:
    """Ask about the sample picture, through controller and worker, as any client would.

    Raises:
        UpFailedError: the bundled model gave another answer than the one that is known.
    """
    sees = (await client.models())[0].card.sees_images
    out = console()
    if sees and out.is_terminal and out.color_system == "truecolor":
        from llava_grpc.cli.thumbnail import thumbnail

        out.print(thumbnail(SAMPLE.picture))
    question = SAMPLE.question if sees else "Say hello."
    if sees:
        out.print(f"[dim]picture [/] {SAMPLE.picture}", soft_wrap=True)
    out.print(f"[dim]question[/] [bold]{question}[/]")
    out.print("[dim]answer  [/] ", end="")
    began = time.monotonic()
    async with client.generate(
        question, SAMPLE.picture if sees else (), max_new_tokens=128, timeout=PROOF_TIMEOUT
    ) as stream:
        await show(stream, began, out)
        answer = (await stream.text()).strip()
    if bundled:
        if answer != SAMPLE.answer:
            raise UpFailedError(f"that is not what the picture shows; the answer should have been: {SAMPLE.answer}")
        out.print("[green]✓[/] right: that is what the picture shows\n")
    else:
        out.print("[green]✓[/] an answer came through\n")


def _say_what_now(address: str) -> None:
    """Commands to copy, each on a line of its own however narrow the terminal."""
    from rich.text import Text

    picture = shlex.quote(str(SAMPLE.picture))
    default = address == f"127.0.0.1:{DEFAULT_CONTROLLER_PORT}"
    there = "" if default else f" --controller {address}"
    client = "Client()" if default else f'Client("{address}")'
    python = f'from llava_grpc import Client; print({client}.ask("{SAMPLE.question}", "{SAMPLE.picture}"))'
    for what, how in (
        ("ask     ", f'llava-grpc generate "{SAMPLE.question}" --image {picture}{there}'),
        ("python  ", f"python -c {shlex.quote(python)}"),
        ("fleet   ", f"llava-grpc workers{there}"),
        ("grpc    ", f"grpcurl -plaintext {address} describe llava_grpc.v1.InferenceService"),
        ("stop    ", "Ctrl-C"),
    ):
        console().print(Text.assemble((what, "dim"), how), soft_wrap=True)


# --------------------------------------------------------------------------------------------------------------- serve


async def _watch(supervisor: Supervisor, left: int) -> None:
    """Say what becomes of the workers.

    Raises:
        UpFailedError: none is left.
    """
    addresses: dict[int, str] = {}
    while True:
        number, event = await supervisor.events.get()
        if isinstance(event, Serving):
            addresses[number] = event.address
        line = _news(number, event, addresses.get(number, ""))
        if line:
            console().print(f"[dim]{time.strftime('%H:%M:%S')}[/] {line}")
        if isinstance(event, GaveUp):
            left -= 1
            if not left:
                raise UpFailedError("no worker is left")


def _news(number: int, event: Event, address: str) -> str:
    match event:
        case Died():
            return f"[yellow]worker {number} {_death(event)}[/]"
        case Joined():
            return f"[green]worker {number} is back, at {address}[/]"
        case GaveUp(why):
            return f"[red]worker {number} cannot run any more: {why}[/]"
        case _:
            return ""


def _death(event: Died) -> str:
    how = event.how if event.how == DRAINED else f"died: {event.how}"
    return f"{how}; starting it again in {event.pause:g} s"


def _workers(count: int) -> str:
    return f"{count} worker" if count == 1 else f"{count} workers"


def _echo(number: int, line: str) -> None:
    """A line of a worker's log; above the display where there is one."""
    from rich.text import Text

    target = console() if console().is_terminal else error_console()
    target.print(Text.assemble((f"worker {number} │ ", "cyan"), (line, "dim")), soft_wrap=True)
