"""Drill `wall-clock`: every node's wall clock is moved by an hour, forth and back, under load and a kill.

Shows that nobody is dropped for it, that deadlines under way keep their length, and that a worker killed meanwhile is
replaced as ever. The clock is libfaketime's (package libfaketime of Debian), preloaded into controllers and workers; it
leaves the monotonic clock alone, as somebody who sets the time of a machine does.
"""

from __future__ import annotations

import asyncio
import glob
import re
import tempfile
import time
from pathlib import Path

from drills.fleet import Fleet, Footprint, heard, stamp
from drills.load import Load
from drills.mix import questions
from drills.outcome import Outcome
from drills.stage import Stage, leave
from llava_grpc.client import AsyncClient
from tests.support.processes import NodeProcess

NAME = "wall-clock"
LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")
EXPIRY = 5.0
CONTROLLER = ("--heartbeat-interval", "1", "--heartbeat-expiry", str(EXPIRY))
WORKER = ("--engine", "echo", "--engine-option", "token_interval_ms=60", "--speed", "1")
RATE = 15.0
MOVES = (3600, -3600)
"""Seconds by which the clock is off, one after the other."""
MOVE_TIMEOUT = 30.0
DATED = r"^\d{4}-\d\d-\d\d "


async def drill(stage: Stage) -> Outcome:
    """See the module."""
    outcome, chance = Outcome(NAME), stage.chance(NAME)
    library = next((found for pattern in LIBRARIES for found in glob.glob(pattern)), None)
    if library is None:
        outcome.skipped = "libfaketime is not installed (apt-get install libfaketime)"
        return outcome
    moves = stage.either(MOVES, MOVES[:1])
    move = stage.bar("moves of the wall clock", len(moves))
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "clock"
        _set(clock, 0)
        environment = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        fleet = Fleet(workers=3, controller_flags=CONTROLLER, worker_flags=WORKER, environment=environment)
        async with fleet, AsyncClient(fleet.addresses) as client:
            asked = await questions(client, chance, 40, tokens=(10, 50), at_once=40)
            before = Footprint(fleet.controllers)
            async with Load(client, asked, RATE, chance) as load:
                for number, seconds in enumerate(moves):
                    await load.more(10)
                    lines = fleet.controller.lines
                    _set(clock, seconds)
                    await _has_moved(fleet.controller, seconds)
                    victim = chance.choice(fleet.workers)
                    victim.kill()
                    outcome.kills += 1
                    await fleet.replace(victim)
                    await asyncio.sleep(EXPIRY + 1)  # whoever is to be dropped for it is dropped by then
                    for node in fleet.workers:
                        dropped = fleet.controller.count(rf"worker {re.escape(node.address)} was dropped", lines)
                        outcome.require(not dropped, f"{node.address} was dropped, the clock being off by {seconds} s")
                    move(number + 1)
                await load.calm()
            outcome.judge(load)
            await leave(outcome, fleet, before)
    return outcome


def _set(clock: Path, seconds: int) -> None:
    """Have all nodes' wall clock be off by so much, from some moment within the next second."""
    fresh = clock.with_suffix(".new")
    fresh.write_text(f"{seconds:+d}")
    fresh.replace(clock)


async def _has_moved(node: NodeProcess, seconds: int) -> None:
    """Wait until what the node says is dated so many seconds off."""
    async with asyncio.timeout(MOVE_TIMEOUT):
        while True:
            line = await heard(node, DATED, node.lines)
            if abs(stamp(line) - time.time() - seconds) < 60:
                return
