"""Drill `controllers`: of two controllers one is killed under load, the one that clients use, again and again.

Shows that clients which know both lose no stream, that new work goes on within a second, and that a controller which
comes back has its fleet again.
"""

from __future__ import annotations

import asyncio
import re
import time

from drills.fleet import Fleet, Footprint, heard
from drills.load import Load
from drills.mix import questions
from drills.outcome import Outcome
from drills.stage import Stage, leave
from llava_grpc.client import AsyncClient

NAME = "controllers"
NEW_WORK_MS = 1000.0
"""From a kill to the first token of the next request, at most."""
WORKER = ("--engine", "echo", "--engine-option", "token_interval_ms=60", "--speed", "1")
CONTROLLER = ("--heartbeat-interval", "1", "--heartbeat-expiry", "10")
RATE = 20.0


async def drill(stage: Stage) -> Outcome:
    """See the module."""
    outcome, chance, kills = Outcome(NAME), stage.chance(NAME), stage.either(6, 1)
    move = stage.bar("controllers killed", kills)
    new_work_ms = []
    fleet = Fleet(controllers=2, workers=3, controller_flags=CONTROLLER, worker_flags=WORKER)
    async with fleet, AsyncClient(fleet.addresses) as client:
        asked = await questions(client, chance, stage.either(80, 40), tokens=(10, 60), at_once=60)
        before = Footprint(fleet.workers)
        async with Load(client, asked, RATE, chance) as load:
            for number in range(kills):
                await load.more(10)
                await asyncio.sleep(chance.uniform(0.0, 0.3))
                victim = next(node for node in fleet.controllers if node.address == client.address)
                victim.kill()
                killed_at = time.monotonic()
                outcome.kills += 1
                one, task = load.ask()
                await one.begun.wait()
                new_work_ms.append((time.monotonic() - killed_at) * 1e3)
                await task
                back = await fleet.replace(victim, port=True)
                for worker in fleet.workers:
                    await heard(back, rf"worker {re.escape(worker.address)} registered")
                move(number + 1)
            await load.calm()
        outcome.judge(load)
        await leave(outcome, fleet, before)
    worst = max(new_work_ms)
    outcome.notes.append(f"new work goes on {worst:.0f} ms after a kill at most")
    outcome.require(stage.quick or worst <= NEW_WORK_MS, f"new work went on after {worst:.0f} ms, not {NEW_WORK_MS:g}")
    outcome.require(outcome.streams >= kills, f"{kills} kills cut {outcome.streams} streams")
    return outcome
