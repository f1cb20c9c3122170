"""A worker's place in one controller's fleet: register, heartbeat, register again, say goodbye.

Laws:
1. Runs beside the serving of requests and never holds it up: a controller that is down costs its worker nothing.
2. A controller that is not there yet is waited for, with jittered backoff; a refusal for good at the very first
   registration is the caller's to hear; later ones are logged and tried again.
3. A broken connection is looked into at once, not at the next heartbeat, so that a restarted controller knows its
   fleet again as soon as it is back.
4. Whoever leaves says goodbye before its heartbeats end, so that nobody doubts it.
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
from llava_grpc.core.registry import Registration
from llava_grpc.errors import LlavaGrpcError, MembershipError, ProtocolVersionError, RegistrationInvalidError
from llava_grpc.rpc.convert import card_to_pb, duration_from_pb
from llava_grpc.rpc.status import explain_rpc_error
from llava_grpc.v1 import controller_pb2 as pb
from llava_grpc.v1.controller_pb2_grpc import ControllerServiceStub
from llava_grpc.worker.heartbeats import HeartbeatStream

if TYPE_CHECKING:
    from llava_grpc.v1.controller_pb2_grpc import ControllerServiceAsyncStub

CALL_TIMEOUT = 10.0
"""Seconds for one call. Registering includes the controller's calling back."""
BACKOFF_FIRST, BACKOFF_MOST = 0.1, 2.0
"""Seconds before trying again, doubled each time, up to the second number; jittered by half. Over when a connection
that was lost is back."""

_log = logging.getLogger(__name__)


def join_metadata(join_token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that shows a join token."""
    return (("authorization", f"Bearer {join_token}"),) if join_token else ()


@dataclass(slots=True, kw_only=True)
class Membership:
    """See the module. One for each controller of a worker."""

    controller: str
    channel: grpc.aio.Channel
    registration: Registration
    load: Callable[[], pb.Load]
    join_token: str = ""
    random: Random = field(default_factory=Random)
    registered: asyncio.Event = field(default_factory=asyncio.Event)
    _ever_registered: bool = False
    _complaint: str = ""
    _sequence: int = 0
    _stream: HeartbeatStream | None = None

    async def run(self) -> None:
        """Be a member until cancelled; then `leave`, which also closes what this leaves open.

        Raises:
            MembershipError, RegistrationInvalidError: the first registration was refused for good.
        """
        while True:
            interval = await self._register()
            await self._heartbeats(interval)
            self.registered.clear()

    async def leave(self) -> None:
        """Deregister, if it was ever registered and the controller can be reached; quietly otherwise."""
        if self._ever_registered:
            request = pb.DeregisterRequest(address=self.registration.address, incarnation=self.registration.incarnation)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._stub().Deregister(request, timeout=1.0, metadata=join_metadata(self.join_token))
                _log.info("left the fleet of %s", self.controller)
        await self._close_stream()

    def _stub(self) -> ControllerServiceAsyncStub:
        return ControllerServiceStub(self.channel)

    async def _register(self) -> float:
        """Register, however long it takes; the heartbeat interval in seconds."""
        request = pb.RegisterRequest(
            address=self.registration.address,
            incarnation=self.registration.incarnation,
            protocol_version=PROTOCOL_VERSION,
            models=[card_to_pb(card) for card in self.registration.cards],
            speed=self.registration.speed,
            slots=self.registration.slots,
            check_heartbeat=self.registration.check_heartbeat,
            version=self.registration.version,
            kv_tokens=self.registration.kv_tokens,
            cached_pictures=self.registration.cached_pictures,
        )
        backoff = BACKOFF_FIRST
        while True:
            try:
                response = await self._stub().Register(
                    request, timeout=CALL_TIMEOUT, metadata=join_metadata(self.join_token)
                )
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
                    self.registration.address,
                    interval,
                    duration_from_pb(response.expiry),
                )
                self._complaint, self._ever_registered = "", True
                self.registered.set()
                return interval
            await self._pause(backoff)
            backoff = min(2 * backoff, BACKOFF_MOST)

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
            self._stream = stream = HeartbeatStream(
                self.channel, self.controller, self._heartbeat, join_metadata(self.join_token)
            )
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
        self._sequence += 1
        return pb.HeartbeatsRequest(
            address=self.registration.address,
            incarnation=self.registration.incarnation,
            sequence=self._sequence,
            load=self.load(),
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
                self._sequence += 1
                request = pb.HeartbeatRequest(
                    address=self.registration.address,
                    incarnation=self.registration.incarnation,
                    sequence=self._sequence,
                    load=self.load(),  # as of this try, not of the first one
                )
                try:
                    response = await self._stub().Heartbeat(
                        request, timeout=CALL_TIMEOUT, metadata=join_metadata(self.join_token)
                    )
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
