"""Drill `rolling`: four workers are restarted one after the other (SIGTERM, then a fresh one at the same address) under
50 requests a second.

Shows that a planned restart is no fault at all: no request fails, and none even has to go on elsewhere.
"""

from __future__ import annotations

import asyncio
import signal

from drills.fleet import Fleet, Footprint
from drills.load import Load
from drills.mix import questions
from drills.outcome import Outcome
from drills.stage import Stage, leave
from llava_grpc.client import AsyncClient

NAME = "rolling"
RATE = 50.0
WORKER = ("--engine", "echo", "--engine-option", "token_interval_ms=40", "--speed", "1", "--grace", "60")
CONTROLLER = ("--heartbeat-interval", "1", "--heartbeat-expiry", "10")
EXIT_TIMEOUT = 60.0


async def drill(stage: Stage) -> Outcome:
    """See the module."""
    outcome, chance = Outcome(NAME), stage.chance(NAME)
    fleet = Fleet(workers=4, controller_flags=CONTROLLER, worker_flags=WORKER)
    restarts = stage.either(4, 2)
    move = stage.bar("workers restarted", restarts)
    async with fleet, AsyncClient(fleet.addresses) as client:
        asked = await questions(client, chance, stage.either(80, 40), tokens=(10, 40), at_once=80)
        before = Footprint(fleet.controllers)
        async with Load(client, asked, RATE, chance) as load:
            for number, old in enumerate(fleet.workers[:restarts]):
                await load.more(20)
                old.send_signal(signal.SIGTERM)
                code = await asyncio.to_thread(old.wait, EXIT_TIMEOUT)
                outcome.require(code == 0, f"a worker that was told to stop ended with code {code}")
                await fleet.replace(old, port=True)
                move(number + 1)
            await load.calm()
        outcome.judge(load)
        await leave(outcome, fleet, before)
    outcome.require(outcome.streams == 0, f"{outcome.streams} streams were cut by a planned restart")
    return outcome
