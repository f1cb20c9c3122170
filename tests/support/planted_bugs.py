"""Bugs of kinds that such fabrics have had, each a small patch of the real code. All of them are to be caught."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from llava_grpc.client import stream as client_stream
from llava_grpc.controller.control import ControlServicer
from llava_grpc.controller.fleet import Fleet
from llava_grpc.controller.relay import Relay
from llava_grpc.controller.token_log import TokenLog
from llava_grpc.controller.watchdog import Watchdog
from llava_grpc.core.dispatcher import Assignment
from llava_grpc.core.registry import Registry, Worker
from llava_grpc.core.states import WorkerEvent, WorkerState
from llava_grpc.membership.membership import Membership
from llava_grpc.testing.histories.invariants import Invariant
from llava_grpc.v1 import inference_pb2 as pb
from llava_grpc.worker.host import Answer, EngineHost


class Planted(NamedTuple):
    """A bug, and the invariants that may be the first to break."""

    plant: Callable[[pytest.MonkeyPatch], None]
    caught_by: frozenset[Invariant]


PLANTED: dict[str, Planted] = {}


def _caught_by(*invariants: Invariant) -> Callable[[Callable[[pytest.MonkeyPatch], None]], None]:
    def enter(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
        PLANTED[plant.__name__] = Planted(plant, frozenset(invariants))

    return enter


# ------------------------------------------------------------------------------------------------------------ token log


@_caught_by(Invariant.ONE_LOG)
def a_resume_doubles_a_token(patch: pytest.MonkeyPatch) -> None:
    """The worker is sent all tokens but the last, and goes on with that one."""
    log = TokenLog.token_ids.fget
    assert log is not None
    patch.setattr(TokenLog, "token_ids", property(lambda self: log(self)[:-1]))


@_caught_by(Invariant.ONE_LOG)
def a_resume_skips_a_token(patch: pytest.MonkeyPatch) -> None:
    """The worker is sent a token that the client never got, and it is believed whatever offset it goes on from."""
    log = TokenLog.token_ids.fget
    assert log is not None
    patch.setattr(TokenLog, "token_ids", property(lambda self: log(self) + log(self)[-1:]))
    patch.setattr(Relay, "_check", lambda self, delta: None)


@_caught_by(Invariant.ONE_LOG)
def a_resume_draws_another_seed(patch: pytest.MonkeyPatch) -> None:
    next_attempt = Relay.next_attempt

    def reseeded(self: Relay) -> bytes:
        first = not self.sent
        request = next_attempt(self)
        other = pb.GenerateRequest(sampling=pb.SamplingParams(seed=self.sent))
        return request if first else request + other.SerializeToString()

    patch.setattr(Relay, "next_attempt", reseeded)


@_caught_by(Invariant.ONE_LOG)
def a_retry_after_the_first_token_forgets_the_log(patch: pytest.MonkeyPatch) -> None:
    """The answer begins again from its beginning."""
    patch.setattr(Relay, "next_attempt", lambda self: self._request)
    patch.setattr(Relay, "_check", lambda self, delta: None)


@_caught_by(Invariant.ONE_LOG)
def the_end_is_sent_twice(patch: pytest.MonkeyPatch) -> None:
    finish = Relay.finish

    async def twice(self: Relay, frame: bytes) -> None:
        await finish(self, frame)
        await finish(self, frame)

    patch.setattr(Relay, "finish", twice)


@_caught_by(Invariant.ONE_LOG)
def a_client_goes_on_without_its_log(patch: pytest.MonkeyPatch) -> None:
    going_on = client_stream.going_on
    patch.setattr(
        client_stream, "going_on", lambda request, begun, ids, attempts: going_on(request, begun, (), attempts)
    )


# ---------------------------------------------------------------------------------------------------------------- slots


@_caught_by(Invariant.SLOTS)
def a_slot_leaks_when_a_client_leaves(patch: pytest.MonkeyPatch) -> None:
    release = Fleet.release

    def forgetful(self: Fleet, assignment: Assignment) -> None:
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            release(self, assignment)

    patch.setattr(Fleet, "release", forgetful)


@_caught_by(Invariant.SLOTS)
def a_slot_is_given_back_twice(patch: pytest.MonkeyPatch) -> None:
    give_back = Registry.give_back

    def twice(self: Registry, worker: Worker, kv_tokens: int, unread: int) -> None:
        give_back(self, worker, kv_tokens, unread)
        give_back(self, worker, kv_tokens, unread)

    patch.setattr(Registry, "give_back", twice)


@_caught_by(Invariant.SLOTS)
def a_worker_takes_more_than_its_slots(patch: pytest.MonkeyPatch) -> None:
    async def there_is_always_room(self: EngineHost) -> None:
        """Takes them all."""

    patch.setattr(EngineHost, "_free_slot", there_is_always_room)


@_caught_by(Invariant.CANCELLED)
def a_cancel_is_lost(patch: pytest.MonkeyPatch) -> None:
    """It does not reach the engine."""
    patch.setattr(Answer, "close", lambda self: None)


@_caught_by(Invariant.SERVED, Invariant.CLEAN)
def a_request_that_waits_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Every third one that gets a slot is not told so."""
    count = 0

    def forgetful(self: Fleet) -> None:
        nonlocal count
        for entry, outcome in self.dispatcher.place(self.clock()):
            count += 1
            if count % 3 == 0 and isinstance(outcome, Assignment):
                continue
            future = self._waiting[entry.key]
            future.set_result(outcome) if isinstance(outcome, Assignment) else future.set_exception(outcome)

    patch.setattr(Fleet, "place", forgetful)


# ----------------------------------------------------------------------------------------------------------- membership


@_caught_by(Invariant.ONE_LIFE)
def an_old_incarnation_is_heard(patch: pytest.MonkeyPatch) -> None:
    """An address is taken for an identity."""
    patch.setattr(Registry, "find", lambda self, address, incarnation: self._workers.get(address))


@_caught_by(Invariant.ONE_LIFE)
def an_old_incarnation_registers_again(patch: pytest.MonkeyPatch) -> None:
    """Nobody is called back."""

    async def believed(self: ControlServicer, registration: Any) -> None:
        """Whoever says so is there."""

    patch.setattr(ControlServicer, "_call_back", believed)


@_caught_by(Invariant.REAPED)
def the_reaper_reaps_nobody(patch: pytest.MonkeyPatch) -> None:
    """Silent workers stay on the register."""
    patch.setattr(Registry, "expire", lambda self, now: [])
    patch.setattr(Registry, "next_expiry", lambda self: None)


@_caught_by(Invariant.CHOSEN)
def suspects_get_work(patch: pytest.MonkeyPatch) -> None:
    write = Registry._write

    def lenient(self: Registry, worker: Worker) -> None:
        state = worker.state
        if state is WorkerState.SUSPECT:
            worker.state = WorkerState.ALIVE
        write(self, worker)
        worker.state = state

    patch.setattr(Registry, "_write", lenient)


@_caught_by(Invariant.SERVED)
def a_suspect_is_never_asked(patch: pytest.MonkeyPatch) -> None:
    """Nor do its heartbeats make it well."""

    see = Registry._see

    async def nothing(self: Fleet, address: str, incarnation: str, pause: float) -> None:
        """Asks nobody."""

    def deaf(self: Registry, worker: Worker, event: WorkerEvent) -> None:
        if event is not WorkerEvent.SIGN_OF_LIFE:
            see(self, worker, event)

    patch.setattr(Fleet, "_probe", nothing)
    patch.setattr(Registry, "_see", deaf)


@_caught_by(Invariant.SERVED)
def a_worker_that_is_unknown_does_not_register_again(patch: pytest.MonkeyPatch) -> None:
    heartbeats = Membership._heartbeats

    async def once(self: Membership, interval: float) -> None:
        await heartbeats(self, interval)
        await asyncio.get_running_loop().create_future()

    patch.setattr(Membership, "_heartbeats", once)


# ---------------------------------------------------------------------------------------------------------------- tasks


@_caught_by(Invariant.CLEAN)
def a_controller_that_stops_leaves_its_watchdog_running(patch: pytest.MonkeyPatch) -> None:
    run = Watchdog.run

    async def stubborn(self: Watchdog) -> None:
        try:
            await run(self)
        except asyncio.CancelledError:
            orphan = asyncio.create_task(run(self))
            await asyncio.wait({orphan}, timeout=0)
            raise

    patch.setattr(Watchdog, "run", stubborn)


@_caught_by(Invariant.CLEAN, Invariant.ONE_LOG)
def an_exception_is_lost(patch: pytest.MonkeyPatch) -> None:
    """A worker that leaves in good order is a surprise."""
    deregister = Fleet.deregister

    def surprised(self: Fleet, address: str, incarnation: str) -> Worker | None:
        deregister(self, address, incarnation)
        raise KeyError(address)

    patch.setattr(Fleet, "deregister", surprised)
