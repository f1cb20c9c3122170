"""`llava-grpc models` and `llava-grpc workers`: who is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava_grpc.cli.options import ControllerAddress, Json, addresses_of
from llava_grpc.cli.output import console, plain, print_json, table_with

if TYPE_CHECKING:
    from rich.table import Table

    from llava_grpc.client.fleet import ServedModel, WorkerView

TIMEOUT = 10.0
"""Seconds to wait for the list."""

_DEFAULT = "127.0.0.1:21001"
_COLOURS = {"alive": "green", "suspect": "yellow", "draining": "cyan", "joining": "cyan", "dead": "red"}


def models(controller: ControllerAddress = _DEFAULT, as_json: Json = False) -> None:
    """List the models that can be asked for."""
    import asyncio

    from llava_grpc.client import AsyncClient

    async def fetch() -> list[ServedModel]:
        async with AsyncClient(addresses_of(controller), timeout=TIMEOUT) as client:
            return await client.models()

    served = asyncio.run(fetch())
    if as_json:
        print_json([{**plain(model.card), "workers": model.workers} for model in served])
    elif served:
        console().print(models_table(served))
    else:
        console().print(f"no model is served at {controller}; start a worker: llava-grpc worker")


def workers(controller: ControllerAddress = _DEFAULT, as_json: Json = False) -> None:
    """List the workers that the controller knows, with their state and load."""
    import asyncio

    from llava_grpc.client import AsyncClient

    async def fetch() -> list[WorkerView]:
        async with AsyncClient(addresses_of(controller), timeout=TIMEOUT) as client:
            return await client.workers()

    known = asyncio.run(fetch())
    if as_json:
        print_json(known)
    elif known:
        console().print(workers_table(known))
    else:
        console().print(f"no worker is registered at {controller}; start one: llava-grpc worker")


def models_table(served: Sequence[ServedModel]) -> Table:
    """Models, a row each."""
    table = table_with("model", "pictures", ">context", ">workers", "engine", "type")
    for model in served:
        card = model.card
        table.add_row(
            "\n".join((f"[bold]{card.name}[/]", *(f"[dim]also {alias}[/]" for alias in card.aliases))),
            "yes" if card.sees_images else "no",
            f"{card.context_tokens:,}",
            str(model.workers),
            card.fingerprint.engine or "several",
            card.fingerprint.dtype or "several",
        )
    return table


def workers_table(known: Sequence[WorkerView]) -> Table:
    """Workers, a row each."""
    table = table_with("worker", "state", "models", ">in flight", ">reported", ">speed", ">kv tokens", ">heard")
    for worker in known:
        state = worker.state.value if worker.state is not None else "?"
        table.add_row(
            f"[bold]{worker.address}[/]",
            f"[{_COLOURS.get(state, 'white')}]{state}[/]",
            ", ".join(worker.models),
            f"{worker.in_flight} of {worker.slots}",
            str(worker.running + worker.waiting),
            f"{worker.speed:,.4g}",
            f"{worker.kv_tokens:,}" if worker.kv_tokens else "?",
            f"{worker.heartbeat_age:.0f} s ago" if worker.check_heartbeat else "not watched",
        )
    return table
