"""What drills share in which a worker falls silent under load, its connections open, until it has been dropped, and
then goes on as if nothing had been."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from random import Random

from drills.fleet import Fleet, heard, noticed
from drills.load import Load
from drills.mix import Question
from drills.outcome import Outcome
from drills.rest import at_rest
from llava_grpc.client import AsyncClient
from tests.support.processes import NodeProcess

DETECT_MS = 2000.0
"""From the first moment of the silence until the worker's streams go on elsewhere."""
EXPIRY = 4.0
CONTROLLER = ("--heartbeat-interval", "1", "--heartbeat-expiry", str(EXPIRY))
WORKER = ("--engine", "echo", "--engine-option", "token_interval_ms=60", "--speed", "1")
RATE = 20.0
WARM_UP = 20
"""Requests that have ended before a silence begins."""
WORK_AGAIN = 40
"""Requests at once, of which the one that came back gets its share."""


async def falls_silent(
    fleet: Fleet,
    client: AsyncClient,
    questions: Sequence[Question],
    chance: Random,
    outcome: Outcome,
    victim: NodeProcess,
    begin: Callable[[], None],
    end: Callable[[], None],
) -> None:
    """One silence of `victim`, from `begin` to `end`, judged: it is found out, nothing is lost, it is back once."""
    name = re.escape(victim.address)
    async with Load(client, questions, RATE, chance) as load:
        await load.more(WARM_UP)
        lines, began_at = fleet.controller.lines, time.time()
        begin()
        try:
            outcome.detect_ms.append((await noticed(fleet.controller, victim, lines) - began_at) * 1e3)
            await heard(fleet.controller, rf"worker {name} was dropped: no heartbeat", lines)
        finally:
            end()
        lines = fleet.controller.lines
        await heard(fleet.controller, rf"worker {name} registered", lines)
        await load.calm()
    outcome.judge(load)
    held = await at_rest(fleet)
    outcome.require(held.requests == 0, f"ghost load after the silence: {held.where}")
    times = fleet.controller.count(rf"worker {name} registered", lines)
    outcome.require(times == 1, f"the worker that came back registered {times} times")
    await _works_again(client, questions, chance, outcome, victim)


def judge_detection(outcome: Outcome, quick: bool) -> None:
    """Demand that each silence was found out in time, and did cut streams."""
    worst = max(outcome.detect_ms)
    outcome.require(quick or worst <= DETECT_MS, f"a silence was found out after {worst:.0f} ms, not {DETECT_MS:g}")
    outcome.require(outcome.streams > 0, "no stream was cut")


async def _works_again(
    client: AsyncClient, questions: Sequence[Question], chance: Random, outcome: Outcome, victim: NodeProcess
) -> None:
    async with Load(client, questions, RATE, chance) as load:
        await asyncio.gather(*(load.ask()[1] for _ in range(WORK_AGAIN)))
        await load.calm()
    outcome.judge(load)
    workers = {one.stream.started.worker_address for one in load.ended if one.stream and one.stream.started}
    outcome.require(victim.address in workers, "the worker that came back gets no work")
