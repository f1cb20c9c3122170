"""`llava-grpc explain`: why a request went where it went, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_grpc.cli.options import OUTPUT, ControllerAddress, Json, addresses_of
from llava_grpc.cli.output import console, plain, print_json, say_failure, table_with

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from llava_grpc.client import DecisionView, RecordView, WorkerView

TIMEOUT = 30.0
"""Seconds to wait for the records."""


def explain(
    request_id: Annotated[
        str, typer.Argument(help="The request, as in the answer and in the logs. Default: the latest requests.")
    ] = "",
    controller: ControllerAddress = "127.0.0.1:21001",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Show the latest N.")] = 20,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the workers and all records that are kept as JSON lines, for `simulate --replay`.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show why a request went where it went: who had room, how they were weighed, who was chosen, how it ended."""
    import asyncio

    from llava_grpc.client import AsyncClient

    async def fetch() -> tuple[list[WorkerView], list[RecordView]]:
        async with AsyncClient(addresses_of(controller), timeout=TIMEOUT) as client:
            workers = await client.workers() if export is not None else []
            return workers, await client.explain(request_id, limit=None if export is not None else limit)

    workers, records = asyncio.run(fetch())
    if export is not None:
        _write(export, workers, records)
        console().print(f"{len(workers)} workers and {len(records)} requests are in {export}")
    elif as_json:
        print_json(records)
    elif not records and request_id:
        say_failure(f"the controller knows nothing of {request_id!r}, any more or at all")
        raise typer.Exit(1)
    elif not records:
        console().print(f"no request has come to {controller} yet")
    elif request_id:
        for record in records:
            for part in story(record):
                console().print(part)
    else:
        console().print(records_table(records))


def _write(path: Path, workers: Sequence[WorkerView], records: Sequence[RecordView]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for kind, values in (("worker", workers), ("request", records)):
            file.writelines(json.dumps({kind: plain(value)}, ensure_ascii=False) + "\n" for value in values)


def records_table(records: Sequence[RecordView]) -> Table:
    """Requests, a row each."""
    table = table_with(
        "at", "request", "model", "outcome", ">waited", ">first token", ">whole", ">tokens", "worker", ">tries"
    )
    for record in records:
        table.add_row(
            f"{record.arrived_at.astimezone():%H:%M:%S}",
            f"[bold]{_plain(record.request_id)}[/]",
            _plain(record.model),
            _outcome(record),
            _seconds(record.waited),
            _seconds(record.first_token),
            _seconds(record.ended),
            f"{record.answer_tokens:,}" if record.answer_tokens else "-",
            record.decisions[-1].address if record.decisions else "-",
            str(len(record.decisions)),
        )
    return table


def story(record: RecordView) -> list[RenderableType]:
    """A request's way, choice by choice."""
    asked = f"about {sum(piece.tokens for piece in record.pieces):,} prompt tokens, {len(record.pictures)} pictures"
    for_whom = f", tenant {_plain(record.tenant)}" if record.tenant else ""
    parts: list[RenderableType] = [
        f"[bold]{_plain(record.request_id)}[/]  {_outcome(record)}",
        f"  {_plain(record.model)}, {record.priority.name.lower()} priority{for_whom}; {asked}; "
        f"came {record.arrived_at.astimezone():%Y-%m-%d %H:%M:%S}",
    ]
    if record.ahead is not None:
        until = f" for {_seconds(record.waited)}" if record.waited is not None else ""
        parts.append(f"  [yellow]waited{until}[/], {record.ahead} ahead of it as it came: no worker had room")
    for number, decision in enumerate(record.decisions):
        again = " [yellow]again[/]" if number else ""
        parts.append(
            f"  after {_seconds(decision.after)}{again} [cyan]{_plain(decision.strategy)}[/] chose "
            f"[bold green]{decision.address}[/] of {decision.candidates:,} with room"
        )
        parts.append(decision_table(decision))
    if record.first_token is not None:
        parts.append(f"  first token after {_seconds(record.first_token)}")
    if record.ended is not None:
        parts.append(
            f"  ended after {_seconds(record.ended)}: {record.prompt_tokens:,} prompt tokens, "
            f"{record.answer_tokens:,} of the answer"
        )
    return parts


def decision_table(decision: DecisionView) -> Table:
    """The candidates of a choice, the best first."""
    table = table_with(
        "", "worker", f">{decision.unit}", ">speed", ">requests", ">free", ">unread", ">held", ">pictures"
    )
    for one in decision.considered:
        chosen = one.address == decision.address
        table.add_row(
            "  [green]>[/]" if chosen else "   ",
            f"[bold green]{one.address}[/]" if chosen else one.address,
            f"{one.score:,.4g}",
            f"{one.speed:,.4g}",
            f"{one.queue:,}",
            f"{one.room:,}",
            f"{one.unread:,}",
            f"{one.held_tokens:,}",
            f"{one.held_pictures:,}",
        )
    return table


def _outcome(record: RecordView) -> str:
    if not record.outcome:
        return "[cyan]under way[/]" if record.decisions else "[yellow]waits[/]"
    return "[green]ok[/]" if record.outcome == "ok" else f"[red]{record.outcome}[/]"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{1000 * seconds:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _plain(text: str) -> str:
    """What a client has written, without the markup that it might contain."""
    from rich.markup import escape

    return escape(text)
