"""A client's way to its servers: a channel to each address, and each call's attempts at one address after another.

Laws: a call begins at the address that last worked; its deadline holds over all its attempts and pauses; nothing goes
on by itself: an attempt is made, and a pause is waited for, by whoever awaits the call.
"""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import Any

import grpc.aio

from llava_grpc.client.failover import Failover
from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.errors import DeadlineExceededError, LlavaGrpcError, MessageTooLargeError, SamplingInvalidError
from llava_grpc.rpc.convert import request_to_pb
from llava_grpc.rpc.world import OpenChannel
from llava_grpc.v1.inference_pb2_grpc import InferenceServiceStub

GenerateCall = grpc.aio.UnaryStreamCall[Any, Any]


class Route:
    """The channels, and which address last worked.

    Args:
        addresses: at least one.
        attempts: of one call, in a row and without a new token.
        max_message_bytes: the largest message sent or taken.
    """

    def __init__(
        self,
        addresses: tuple[str, ...],
        *,
        attempts: int,
        max_message_bytes: int,
        open_channel: OpenChannel,
        random: Random,
    ) -> None:
        self.addresses = addresses
        self.max_message_bytes = max_message_bytes
        self.at = 0
        """Number of the address that last worked."""
        self.closed = asyncio.Event()
        self._attempts = attempts
        self._open_channel = open_channel
        self._random = random
        self._channels: dict[str, grpc.aio.Channel] = {}

    def attempts(self, timeout: float | None) -> Attempts:
        """Those of a call that begins now and may take so many seconds."""
        failover = Failover(addresses=len(self.addresses), at=self.at, attempts=self._attempts, random=self._random)
        return Attempts(self, failover, timeout)

    def channel(self, address: str) -> grpc.aio.Channel:
        """The channel there; made when first needed, as it belongs to the event loop that runs then."""
        if self.closed.is_set():
            raise RuntimeError("the client is closed")
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._open_channel(address, self.max_message_bytes)
        return channel

    async def close(self) -> None:
        """Let go of all connections."""
        self.closed.set()
        for channel in self._channels.values():
            await channel.close()


class Attempts:
    """The attempts of one call. Make one at `address`; where it fails, await `another`."""

    def __init__(self, route: Route, failover: Failover, timeout: float | None) -> None:
        self._route = route
        self._failover = failover
        self._clock = asyncio.get_running_loop().time
        self._deadline = None if timeout is None else self._clock() + timeout

    @property
    def address(self) -> str:
        """Where the attempt is to be made."""
        return self._route.addresses[self._failover.at]

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel there."""
        return self._route.channel(self.address)

    @property
    def time_left(self) -> float | None:
        """Seconds for all that is still to come; None: no limit."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def generate(self, request: GenerationRequest) -> GenerateCall:
        """Generate there; the call is under way when this returns.

        Raises:
            MessageTooLargeError: the request is over this client's own limit.
            SamplingInvalidError: a number that the wire cannot carry.
        """
        try:
            message = request_to_pb(request)
        except ValueError as error:
            raise SamplingInvalidError(f"a number is out of range: {error}", remedy="Use 32-bit numbers") from error
        size, limit = message.ByteSize(), self._route.max_message_bytes
        if size > limit:
            raise MessageTooLargeError(
                f"the request has {size:,} bytes, over this client's limit of {limit:,}",
                metadata={"bytes": str(size), "limit": str(limit)},
            )
        return InferenceServiceStub(self.channel).Generate(message, timeout=self.time_left)

    def answered(self, *, begun: bool = False) -> None:
        """The server there does answer: the next call begins with it. `begun`: it has taken the request up."""
        self._failover.answered(begun=begun)
        self._route.at = self._failover.at

    def progressed(self) -> None:
        """A new token has come."""
        self._failover.progressed()

    async def another(self, error: LlavaGrpcError, left: asyncio.Event) -> None:
        """The attempt failed: wait until it is time for the next one, or until `left` is set.

        Raises:
            LlavaGrpcError: `error` itself: there is to be no other attempt.
            DeadlineExceededError: it comes before the next attempt.
        """
        pause = self._failover.failed(error)
        if pause is None:
            raise error
        time_left = self.time_left
        late = time_left is not None and time_left <= pause
        seconds = time_left if late else pause
        if seconds:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await left.wait()
        if late and not left.is_set():
            raise DeadlineExceededError(
                f"the deadline passed before anybody answered; last: {error.reason}: {error.cause}"
            ) from error
