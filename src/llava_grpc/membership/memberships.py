"""A node's places in the fleets of all its controllers, which know nothing of one another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

import grpc.aio

from llava_grpc.core.worker import Registration
from llava_grpc.membership.membership import Membership
from llava_grpc.rpc.world import World
from llava_grpc.v1 import controller_pb2 as pb


class Memberships:
    """See the module. `join`, then in the end `leave` and `close`; both may be called at any stage.

    Args:
        controllers: their addresses.
        load: how busy the node is, asked at each heartbeat.
        join_token: shown to all of them.
        world: what the node meets.
    """

    def __init__(
        self,
        controllers: Iterable[str],
        load: Callable[[], pb.Load],
        join_token: str = "",
        world: World | None = None,
    ) -> None:
        self._controllers = tuple(controllers)
        self._load = load
        self._join_token = join_token
        self._world = world or World()
        self._channels: list[grpc.aio.Channel] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._all: list[Membership] = []

    def __iter__(self) -> Iterator[Membership]:
        return iter(self._all)

    def join(self, registration: Registration | None) -> None:
        """Begin to register, in the background; None: once there is something to register."""
        for controller in self._controllers:
            channel = self._world.open_channel(controller)
            membership = Membership(
                controller=controller,
                channel=channel,
                registration=registration,
                load=self._load,
                join_token=self._join_token,
                random=self._world.random,
            )
            self._channels.append(channel)
            self._all.append(membership)
            self._tasks.append(asyncio.create_task(membership.run(), name=f"membership of {controller}"))

    def update(self, registration: Registration | None) -> None:
        """See `Membership.update`."""
        for membership in self._all:
            membership.update(registration)

    async def registered(self) -> None:
        """Wait until every controller has registered the node."""
        await asyncio.gather(*(membership.registered.wait() for membership in self._all))

    async def refused(self) -> None:
        """Wait for ever, or until a controller refuses the node for good.

        Raises:
            MembershipError, RegistrationInvalidError: it does.
        """
        if self._tasks:
            ended, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in ended:
                if not task.cancelled():  # by `leave`
                    task.result()
        await asyncio.get_running_loop().create_future()

    async def drain(self) -> None:
        """Tell all controllers that nothing new is taken any more."""
        await asyncio.gather(*(membership.drain() for membership in self._all))

    async def leave(self) -> None:
        """Say goodbye to all controllers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(membership.leave() for membership in self._all))

    async def close(self) -> None:
        """Let go of the connections."""
        for channel in self._channels:
            await channel.close()
