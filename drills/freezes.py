"""Drill `freezes`: a worker is stopped (SIGSTOP) under load, and runs on (SIGCONT) after it has been dropped.

Shows that a process that is there but does nothing, whose connections stay open, is found out by its silence; that its
streams go on elsewhere; and that it comes back once, with nothing of its earlier life counted.
"""

from __future__ import annotations

from drills import silence
from drills.fleet import Fleet, Footprint
from drills.mix import questions
from drills.outcome import Outcome
from drills.stage import Stage, leave
from llava_grpc.client import AsyncClient

NAME = "freezes"


async def drill(stage: Stage) -> Outcome:
    """See the module."""
    outcome, chance, rounds = Outcome(NAME), stage.chance(NAME), stage.either(2, 1)
    move = stage.bar("freezes", rounds)
    fleet = Fleet(workers=3, controller_flags=silence.CONTROLLER, worker_flags=silence.WORKER)
    async with fleet, AsyncClient(fleet.addresses) as client:
        asked = await questions(
            client, chance, stage.either(60, 30), tokens=stage.either((10, 60), (10, 40)), at_once=60
        )
        before = Footprint([*fleet.controllers, *fleet.workers])
        for number in range(rounds):
            victim = chance.choice(fleet.workers)
            await silence.falls_silent(
                fleet, client, asked, chance, outcome, victim, begin=victim.freeze, end=victim.thaw
            )
            move(number + 1)
        await leave(outcome, fleet, before)
    silence.judge_detection(outcome, stage.quick)
    return outcome
