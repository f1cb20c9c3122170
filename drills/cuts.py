"""Drills `echo-cuts` and `model-cuts`: workers are killed with SIGKILL while they answer.

Show that an answer cut at a random token goes on elsewhere and comes out as without the kill, byte for byte: greedy and
sampled, with stop strings, penalties, log-probabilities and pictures; and how soon a kill is noticed.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from random import Random

from drills.fleet import Fleet, Footprint, noticed
from drills.load import Load
from drills.mix import MODEL_TOLERANCE, questions
from drills.outcome import Outcome, percentile
from drills.stage import Stage, leave
from llava_grpc.client import AsyncClient
from tests.support.processes import NodeProcess

DETECT_MS = 100.0
"""From a kill to the controller's acting on it, p99 over the kills of echo workers. A process of half a gigabyte is not
judged by it: the kernel frees its memory before it closes its connections."""
CONTROLLER = ("--heartbeat-interval", "2", "--heartbeat-expiry", "6")
"""So that the dead leave the register while the drill goes on."""


@dataclass(frozen=True)
class Terms:
    """Of one of the two drills. `cuts`: streams to be cut; `kills`: at least, and `most` of them."""

    name: str
    workers: int
    worker_flags: tuple[str, ...]
    cuts: int
    kills: int
    most: int
    questions: int
    tokens: tuple[int, int]
    rate: float
    at_once: int
    fewest: int
    """Streams on a worker that is to be killed, at least; fewer than its share of `at_once`."""
    timed: bool = False
    tolerance: float = 0.0


async def echo(stage: Stage) -> Outcome:
    """With the echo engine, at one token a stream every 120 ms."""
    return await _drill(
        stage,
        Terms(
            name="echo-cuts",
            workers=4,
            worker_flags=("--engine", "echo", "--engine-option", "token_interval_ms=120", "--speed", "1"),
            cuts=stage.either(1000, 40),
            kills=stage.either(50, 3),
            most=stage.either(200, 20),
            questions=stage.either(200, 50),
            tokens=stage.either((10, 80), (10, 40)),
            rate=20.0,
            at_once=180,
            fewest=3,
            timed=not stage.quick,
        ),
    )


async def model(stage: Stage) -> Outcome:
    """With the bundled model, as fast as it goes."""
    return await _drill(
        stage,
        Terms(
            name="model-cuts",
            workers=2,
            worker_flags=("--engine", "transformers", "--threads", "1", "--slots", "24", "--speed", "1"),
            cuts=stage.either(100, 4),
            kills=stage.either(5, 1),
            most=stage.either(20, 4),
            questions=stage.either(60, 10),
            tokens=stage.either((40, 160), (30, 80)),
            rate=16.0,
            at_once=32,
            fewest=stage.either(12, 5),
            tolerance=MODEL_TOLERANCE,
        ),
    )


async def _drill(stage: Stage, terms: Terms) -> Outcome:
    outcome, chance = Outcome(terms.name), stage.chance(terms.name)
    move = stage.bar(f"{terms.name}: streams cut", terms.cuts)
    times: list[tuple[float, float]] = []
    fleet = Fleet(workers=terms.workers, controller_flags=CONTROLLER, worker_flags=terms.worker_flags)
    async with fleet, AsyncClient(fleet.addresses) as client:
        asked = await questions(
            client, chance, terms.questions, tokens=terms.tokens, at_once=16 * terms.workers, tolerance=terms.tolerance
        )
        before = Footprint(fleet.controllers)
        async with Load(client, asked, terms.rate, chance, terms.at_once) as load:
            while (load.cut < terms.cuts or len(times) < terms.kills) and len(times) < terms.most:
                times.append(await _kill_one(fleet, client, chance, terms.fewest))
                move(load.cut)
            await load.calm()
        outcome.judge(load)
        await leave(outcome, fleet, before)
    move(terms.cuts)
    outcome.kills = len(times)
    outcome.require(
        outcome.streams >= terms.cuts, f"{outcome.kills} kills cut {outcome.streams} of {terms.cuts} streams"
    )
    gone_ms, noticed_ms = zip(*times, strict=True)
    usual, slow = (percentile(noticed_ms, share) or 0.0 for share in (0.5, 0.99))
    outcome.notes.append(
        f"a kill is noticed within {usual} ms (p50), {slow} ms (p99); the process is gone after "
        f"{percentile(gone_ms, 0.5)} ms (p50)"
    )
    if terms.timed:
        outcome.detect_ms = list(noticed_ms)
        outcome.require(slow <= DETECT_MS, f"a kill is noticed within {slow} ms (p99), not {DETECT_MS:g}")
    return outcome


async def _kill_one(fleet: Fleet, client: AsyncClient, chance: Random, fewest: int) -> tuple[float, float]:
    """Kill a worker at a random moment, one of those that answer `fewest` and more, and replace it at once, half of the
    time at the very same address. Milliseconds until the process was gone, and until the controller had noticed."""
    while not (busy := await _busy(fleet, client, fewest)):
        await asyncio.sleep(0.05)
    victim = chance.choice(busy)
    await asyncio.sleep(chance.uniform(0.0, 0.3))
    said_before, killed_at = fleet.controller.lines, time.time()
    victim.kill()
    gone_at = time.time()
    noticed_at = await noticed(fleet.controller, victim, said_before)
    await fleet.replace(victim, port=chance.random() < 0.5)
    return (gone_at - killed_at) * 1e3, (noticed_at - killed_at) * 1e3


async def _busy(fleet: Fleet, client: AsyncClient, fewest: int) -> list[NodeProcess]:
    in_flight = {worker.address: worker.in_flight for worker in await client.workers()}
    return [node for node in fleet.workers if in_flight.get(node.address, 0) >= fewest]
