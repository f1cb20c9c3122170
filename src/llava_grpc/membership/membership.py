"""A worker's place in one controller's fleet: register, heartbeat, register again, say goodbye.

What is registered may change (where the worker is a controller it is what its own fleet serves); while there is nothing
to serve it is in no fleet.

Laws:
1. Runs beside the serving of requests and never holds it up: a controller that is down costs its worker nothing.
2. A controller that is not there yet is waited for, with jittered backoff; a refusal for good at the very first
   registration is the caller's to hear; later ones are logged and tried again.
3. A broken connection is looked into at once, not at the next heartbeat, so that a restarted controller knows its
   fleet again as soon as it is back.
4. Whoever leaves says goodbye before its heartbeats end, so that nobody doubts it.
5. A worker that drains tells its controller at once, in every heartbeat from then on, and never registers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from llava_grpc.config import PROTOCOL_VERSION
from llava_grpc.core.worker import Registration
from llava_grpc.errors import LlavaGrpcError, MembershipError, ProtocolVersionError, RegistrationInvalidError
from llava_grpc.membership.heartbeats import HeartbeatStream
from llava_grpc.rpc.convert import card_to_pb, duration_from_pb
from llava_grpc.rpc.joining import Metadata, join_metadata
from llava_grpc.rpc.status import explain_rpc_error
from llava_grpc.v1 import controller_pb2 as pb
from llava_grpc.v1.controller_pb2_grpc import ControllerServiceStub

if TYPE_CHECKING:
    from llava_grpc.v1.controller_pb2_grpc import ControllerServiceAsyncStub

CALL_TIMEOUT = 10.0
"""Seconds for one call. Registering includes the controller's calling back."""
GOODBYE_TIMEOUT = 1.0
"""Seconds for telling a controller that this worker drains, or leaves."""
BACKOFF_FIRST, BACKOFF_MOST = 0.1, 2.0
"""Seconds before trying again, doubled each time, up to the second number; jittered by half. Over when a connection
that was lost is back."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Membership:
    """See the module. One for each controller of a worker.

    Args:
        controller: its address.
        channel: to it.
        registration: what to be registered as; None while there is nothing to serve.
        load: how busy the worker is, asked at each heartbeat.
        join_token: shown to the controller.
        random: for the jitter.
    """

    controller: str
    channel: grpc.aio.Channel
    registration: Registration | None
    load: Callable[[], pb.Load]
    join_token: str = ""
    random: Random = field(default_factory=Random)
    registered: asyncio.Event = field(default_factory=asyncio.Event)
    _told: Registration | None = None
    """As what it is on the register, for all that is known here."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _draining: bool = False
    _ever_registered: bool = False
    _complaint: str = ""
    _sequence: int = 0
    _stream: HeartbeatStream | None = None

    async def run(self) -> None:
        """Be a member until cancelled, or unknown while draining; then `leave`, which closes what this leaves open.

        Raises:
            MembershipError, RegistrationInvalidError: the first registration was refused for good.
        """
        while not self._draining:
            self._changed.clear()
            if self.registration is None:
                await self.leave()
                await self._changed.wait()
            elif (interval := await self._register()) is not None:
                await self._stay(interval)
            self.registered.clear()

    def update(self, registration: Registration | None) -> None:
        """From now on, be registered as that; None leaves the fleet until there is something to serve again. The life
        that it names stays the same."""
        if registration != self.registration:
            self.registration = registration
            self._changed.set()

    async def drain(self) -> None:
        """Tell the controller, if it can be told, that nothing new is taken any more."""
        self._draining = True
        if self._stream is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_TIMEOUT):
                    await self._stream.send()

    async def leave(self) -> None:
        """Deregister, if it is on the register and the controller can be reached; quietly otherwise."""
        if (told := self._told) is not None:
            request = pb.DeregisterRequest(address=told.address, incarnation=told.incarnation)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._stub().Deregister(request, timeout=GOODBYE_TIMEOUT, metadata=self._metadata)
                _log.info("left the fleet of %s", self.controller)
            self._told = None
        await self._close_stream()

    @property
    def _metadata(self) -> Metadata:
        return join_metadata(self.join_token)

    def _stub(self) -> ControllerServiceAsyncStub:
        return ControllerServiceStub(self.channel)

    async def _stay(self, interval: float) -> None:
        """Send heartbeats, and register again what has changed beside them, until the controller does not know this
        worker, or there is nothing to serve."""
        heartbeats = asyncio.create_task(self._heartbeats(interval))
        try:
            while self.registration is not None:
                changed = asyncio.ensure_future(self._changed.wait())
                try:
                    await asyncio.wait({heartbeats, changed}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if heartbeats.done():
                    heartbeats.result()
                    return
                self._changed.clear()
                await self._register()
        finally:
            heartbeats.cancel()
            await asyncio.gather(heartbeats, return_exceptions=True)

    async def _register(self) -> float | None:
        """Register, however long it takes; the heartbeat interval in seconds. None where there is nothing to register
        (any more)."""
        backoff = BACKOFF_FIRST
        while (registration := self.registration) is not None and not self._draining:
            request = pb.RegisterRequest(
                address=registration.address,
                incarnation=registration.incarnation,
                protocol_version=PROTOCOL_VERSION,
                models=[card_to_pb(card) for card in registration.cards],
                speed=registration.speed,
                slots=registration.slots,
                check_heartbeat=registration.check_heartbeat,
                version=registration.version,
                kv_tokens=registration.kv_tokens,
                cached_pictures=registration.cached_pictures,
                controllers=registration.controllers,
            )
            try:
                response = await self._stub().Register(request, timeout=CALL_TIMEOUT, metadata=self._metadata)
            except grpc.aio.AioRpcError as rpc_error:
                error = explain_rpc_error(rpc_error, self.controller)
                final = isinstance(error, MembershipError | RegistrationInvalidError) and not error.retryable
                if final and not self._ever_registered:
                    raise error from rpc_error
                self._complain(error)
            else:
                interval = duration_from_pb(response.heartbeat_interval)
                _log.info(
                    "registered with %s as %s: a heartbeat every %g s, dropped after %g s without",
                    self.controller,
                    registration.address,
                    interval,
                    duration_from_pb(response.expiry),
                )
                self._told, self._complaint, self._ever_registered = registration, "", True
                self.registered.set()
                return interval
            await self._pause(backoff)
            backoff = min(2 * backoff, BACKOFF_MOST)
        return None

    async def _heartbeats(self, interval: float) -> None:
        """Send heartbeats until the controller does not know this worker (any more)."""
        try:
            await self._stream_heartbeats(interval)
        except ProtocolVersionError:
            await self._close_stream()
            _log.info("controller %s is older: a call for each heartbeat", self.controller)
            await self._call_heartbeats(interval)
        _log.info("controller %s does not know this worker: registering again", self.controller)

    async def _stream_heartbeats(self, interval: float) -> None:
        """Over a stream, and over another one as soon as it breaks.

        Raises:
            ProtocolVersionError: the controller knows no such streams.
        """
        clock = asyncio.get_running_loop().time
        backoff = 0.0
        while True:
            await self._close_stream()
            opened = clock()
            self._stream = stream = HeartbeatStream(self.channel, self.controller, self._heartbeat, self._metadata)
            try:
                if await stream.begin():
                    self._relieved()
                    # A fleet that registered all at once, with a restarted controller, does not beat all at once.
                    await stream.keep(interval, first=interval * self.random.random())
                await self._close_stream()
                return
            except ProtocolVersionError:
                raise
            except LlavaGrpcError as error:
                self._complain(error)
            if clock() - opened > BACKOFF_MOST:  # it had held: the first look at why it broke does not wait
                backoff = 0.0
            await self._pause(backoff)
            backoff = min(max(2 * backoff, BACKOFF_FIRST), BACKOFF_MOST)

    def _heartbeat(self) -> pb.HeartbeatsRequest:
        assert self._told is not None, "not registered"
        self._sequence += 1
        return pb.HeartbeatsRequest(
            address=self._told.address,
            incarnation=self._told.incarnation,
            sequence=self._sequence,
            load=self.load(),
            draining=self._draining,
        )

    async def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def _call_heartbeats(self, interval: float) -> None:
        """By a call each."""
        while True:
            await self._interval_or_broken_connection(interval)
            backoff = BACKOFF_FIRST
            while True:
                beat = self._heartbeat()  # as of this try, not of the first one
                request = pb.HeartbeatRequest(
                    address=beat.address,
                    incarnation=beat.incarnation,
                    sequence=beat.sequence,
                    load=beat.load,
                    draining=beat.draining,
                )
                try:
                    response = await self._stub().Heartbeat(request, timeout=CALL_TIMEOUT, metadata=self._metadata)
                    break
                except grpc.aio.AioRpcError as rpc_error:
                    self._complain(explain_rpc_error(rpc_error, self.controller))
                    await self._pause(backoff)
                    backoff = min(2 * backoff, BACKOFF_MOST)
            self._relieved()
            if not response.known:
                return

    async def _interval_or_broken_connection(self, interval: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(interval):
                state = self.channel.get_state()
                while state is grpc.ChannelConnectivity.READY:
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state()
                # Left READY: lost, or idle. Either way a call says which.

    async def _pause(self, backoff: float) -> None:
        """Wait before trying again, but no longer than until a connection that was lost is back."""
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(backoff * self.random.uniform(0.5, 1.0)):
                state = self.channel.get_state(try_to_connect=True)
                if state is grpc.ChannelConnectivity.READY:  # the controller is there and refuses
                    await asyncio.get_running_loop().create_future()
                while state is not grpc.ChannelConnectivity.READY:
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)

    def _relieved(self) -> None:
        if self._complaint:
            _log.info("controller %s answers again", self.controller)
            self._complaint = ""

    def _complain(self, error: LlavaGrpcError) -> None:
        """Say once, not at every try, what is wrong."""
        if error.reason != self._complaint:
            self._complaint = error.reason
            if error.reason in ("SERVER_UNREACHABLE", "SHUTTING_DOWN"):
                _log.warning("waiting for the controller at %s: %s", self.controller, error.cause)
            else:
                _log.error("controller %s: %s: %s", self.controller, error.reason, error)
