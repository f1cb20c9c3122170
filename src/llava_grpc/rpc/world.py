"""What a node meets of the world: a network, a clock, and chance.

Nodes take it as a parameter, so that the very same node runs in a world made up for a test, in virtual time.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import Protocol

import grpc
import grpc.aio

from llava_grpc.config import DEFAULT_MAX_MESSAGE_BYTES, ServerSettings
from llava_grpc.rpc.channels import open_channel
from llava_grpc.rpc.server import NodeServer, bind_server


class OpenChannel(Protocol):
    """A way to open channels, as `rpc.channels.open_channel`."""

    def __call__(self, address: str, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
        """A channel to `host:port`."""


BindServer = Callable[[ServerSettings, Iterable[str], Iterable[grpc.GenericRpcHandler]], Awaitable[NodeServer]]
"""A way to listen, as `rpc.server.bind_server`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """See the module. By default the real one. `clock` tells seconds and never goes back."""

    open_channel: OpenChannel = open_channel
    bind_server: BindServer = bind_server
    clock: Callable[[], float] = time.monotonic
    random: Random = field(default_factory=SystemRandom)
