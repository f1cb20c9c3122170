"""Drills `cancels` and `model-cancels`: requests are cancelled by their clients at random moments: while they wait,
before the first token, in mid-answer, near the end.

Show that each gives its slot back, none is left running anywhere, and how soon a slot is free: a cancelled request may
keep it until the step in flight has ended. Thousands with the echo engine, in steps of a known length; a few with the
bundled model, whose steps are as long as the gaps between its tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from random import Random

from drills.fleet import Fleet, Footprint
from drills.load import TIMEOUT
from drills.mix import request
from drills.outcome import Outcome, percentile
from drills.rest import at_rest, running
from drills.stage import Stage, leave
from llava_grpc.client import AnswerStream, AsyncClient
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.errors import LlavaGrpcError, RequestCancelledError
from llava_grpc.rpc.channels import open_channel
from llava_grpc.rpc.identity import new_request_id

NAME, MODEL = "cancels", "model-cancels"
STEP_MS, SEQUENCE_MS = 10.0, 0.1
SLOTS = 32
AT_ONCE = 80
"""More than the slots of two workers: some are cancelled while they wait."""
LONGEST = 0.5
"""Seconds until a request is cancelled, at most."""
TIMED_AT_ONCE = 16
"""Requests that run while single cancels are timed."""
ALLOWED_MS = 20.0
"""From a cancel to the free slot, p99, beyond the step in flight."""
WORKER = (
    *("--engine", "echo", "--speed", "1", "--slots", str(SLOTS)),
    *("--engine-option", f"step_ms={STEP_MS}", "--engine-option", f"step_sequence_ms={SEQUENCE_MS}"),
)


async def drill(stage: Stage) -> Outcome:
    """See the module."""
    outcome, chance = Outcome(NAME), stage.chance(NAME)
    count, timed = stage.either(10_000, 600), stage.either(300, 40)
    move = stage.bar("cancels", count + timed)
    requests = [request(chance, 5, 100) for _ in range(100)]
    async with Fleet(workers=2, worker_flags=WORKER) as fleet, AsyncClient(fleet.addresses) as client:
        warm_up = Crowd(client, requests, chance, 2 * AT_ONCE)
        await warm_up.cancel_all()
        before = Footprint([*fleet.controllers, *fleet.workers])
        crowd = Crowd(client, requests, chance, count, move)
        await crowd.cancel_all()
        held = await at_rest(fleet)
        outcome.require(held.requests == 0, f"cancelled requests still run: {held.where}")
        outcome.answers, outcome.lost = crowd.complete, len(crowd.failed)
        outcome.require(not crowd.failed, f"{outcome.lost} requests failed: {'; '.join(crowd.failed[:5])}")
        outcome.cancel_ms, _ = await _time_cancels(client, chance, timed)
        move(count + timed)
        await leave(outcome, fleet, before)
    outcome.notes.append(f"{crowd.cancelled + timed} cancels")
    _judge(outcome, STEP_MS + TIMED_AT_ONCE * SEQUENCE_MS, stage.quick)
    return outcome


async def model(stage: Stage) -> Outcome:
    """With the bundled model."""
    outcome, chance, timed = Outcome(MODEL), stage.chance(MODEL), stage.either(200, 20)
    move = stage.bar("cancels of the model's", timed)
    flags = ("--engine", "transformers", "--threads", "1", "--slots", str(SLOTS), "--speed", "1")
    async with Fleet(workers=1, worker_flags=flags) as fleet, AsyncClient(fleet.addresses) as client:
        before = Footprint(fleet.controllers)
        outcome.cancel_ms, gaps = await _time_cancels(client, chance, timed)
        move(timed)
        await leave(outcome, fleet, before)
    _judge(outcome, percentile(gaps, 0.99) or 0.0, stage.quick)
    return outcome


def _judge(outcome: Outcome, step: float, quick: bool) -> None:
    """By how long a step takes, in milliseconds."""
    usual, slow = (percentile(outcome.cancel_ms, share) or 0.0 for share in (0.5, 0.99))
    outcome.notes.append(f"a slot is free after {usual} ms (p50), {slow} ms (p99); a step takes {step:.1f} ms")
    outcome.require(quick or slow <= step + ALLOWED_MS, f"that is more than a step and {ALLOWED_MS:g} ms")


@dataclass
class Crowd:
    """Clients that ask, and change their mind: `count` of them in all."""

    client: AsyncClient
    requests: Sequence[GenerationRequest]
    chance: Random
    count: int
    move: Callable[[float], None] = lambda done: None
    cancelled: int = 0
    complete: int = 0
    failed: list[str] = field(default_factory=list)

    async def cancel_all(self) -> None:
        """Returns when so many requests have been cancelled, not counting those that ended before."""

        async def one_after_the_other() -> None:
            while self.cancelled < self.count:
                await self._ask_and_cancel()
                self.move(self.cancelled)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(one_after_the_other())

    async def _ask_and_cancel(self) -> None:
        named = replace(self.chance.choice(self.requests), request_id=new_request_id(self.chance))
        async with self.client.send(named, timeout=TIMEOUT) as stream:
            reading = asyncio.create_task(stream.text())
            await asyncio.wait({reading}, timeout=self.chance.uniform(0.0, LONGEST))
            stream.leave()
            try:
                await reading
                self.complete += 1
            except RequestCancelledError:
                self.cancelled += 1
            except LlavaGrpcError as error:
                self.failed.append(f"{named.request_id}: {error.reason}: {error.cause}")


async def _time_cancels(client: AsyncClient, chance: Random, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds from each of so many cancels, one at a time among TIMED_AT_ONCE requests that run on, until the
    worker counts a slot less as taken; and between the frames of those requests."""
    times: list[float] = []
    gaps: list[float] = []
    async with AsyncExitStack() as stack:
        channels = {
            worker.address: await stack.enter_async_context(open_channel(worker.address))
            for worker in await client.workers()
        }
        group = await stack.enter_async_context(asyncio.TaskGroup())

        async def begun() -> AnswerStream:
            stream = client.send(request(chance, 1000, 1000), timeout=TIMEOUT)
            await stream.next_delta()
            group.create_task(_read(stream, gaps))
            return stream

        streams = [await begun() for _ in range(TIMED_AT_ONCE)]
        for _ in range(count):
            place = chance.randrange(TIMED_AT_ONCE)
            stream = streams[place]
            assert stream.started is not None
            channel = channels[stream.started.worker_address]
            before = await running(channel)
            await asyncio.sleep(chance.uniform(0.0, 2 * STEP_MS / 1e3))
            cancelled_at = time.perf_counter()
            stream.leave()
            while await running(channel) >= before:
                pass
            times.append((time.perf_counter() - cancelled_at) * 1e3)
            streams[place] = await begun()
        for stream in streams:
            stream.leave()
    return times, gaps


async def _read(stream: AnswerStream, gaps: list[float]) -> None:
    came = time.perf_counter()
    with contextlib.suppress(RequestCancelledError):
        while await stream.next_delta() is not None:
            before, came = came, time.perf_counter()
            gaps.append((came - before) * 1e3)
