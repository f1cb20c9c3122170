"""The controller's end of the heartbeat streams, one a worker.

Laws:
1. A stream speaks for one life of one worker, named in its first message, which is answered; later messages are
   answered only where the worker is not known (any more), and with that the stream ends.
2. However else a stream ends, its worker is in doubt and is asked at once whether it lives; unless it left the register
   before, or its latest stream is another one. Beats, not streams, are what a worker owes: one that opens no stream is
   in no doubt for that.
3. No stream holds up a controller that stops.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc.aio

from llava_grpc.controller.fleet import Fleet
from llava_grpc.errors import RegistrationInvalidError, ShuttingDownError
from llava_grpc.rpc.status import abort
from llava_grpc.v1 import controller_pb2 as pb

_log = logging.getLogger(__name__)
_Context = grpc.aio.ServicerContext[Any, Any]


class HeartbeatStreams:
    """See the module."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._open: dict[_Context, None] = {}  # in order, so that a stop is the same each time
        self._latest: dict[str, _Context] = {}
        self._closed = False

    async def listen(self, context: _Context) -> None:
        """Take heartbeats from a stream until it ends.

        Raises:
            RegistrationInvalidError: a later message is another worker's.
            ShuttingDownError: the controller is stopping.
        """
        if self._closed:
            raise _stopping()
        self._open[context] = None
        try:
            await self._listen(context)
        finally:
            self._open.pop(context, None)

    async def close(self) -> None:
        """End all streams, and take no more."""
        self._closed = True
        self._latest.clear()  # nobody is in doubt for that
        await asyncio.gather(*(abort(context, _stopping()) for context in self._open), return_exceptions=True)

    async def _listen(self, context: _Context) -> None:
        beat = await context.read()
        if beat is grpc.aio.EOF:  # ended before it began
            return
        address, incarnation = beat.address, beat.incarnation
        known = self._take(address, incarnation, beat)
        if known:
            self._latest[address] = context
        try:
            await context.write(pb.HeartbeatsResponse(known=known))
            while known and (beat := await context.read()) is not grpc.aio.EOF:
                if (beat.address or address) != address or (beat.incarnation or incarnation) != incarnation:
                    raise RegistrationInvalidError(
                        f"a heartbeat of {beat.address} came in the stream of {address}",
                        remedy="Open a stream for each worker",
                    )
                known = self._take(address, incarnation, beat)
                if not known:
                    await context.write(pb.HeartbeatsResponse(known=False))
        finally:
            if self._latest.get(address) is context:
                del self._latest[address]
                if self._fleet.suspect(address, incarnation, at_once=True):
                    _log.warning("worker %s: its heartbeats broke off; asking whether it lives", address)

    def _take(self, address: str, incarnation: str, beat: pb.HeartbeatsRequest) -> bool:
        load = beat.load
        return self._fleet.heartbeat(address, incarnation, beat.sequence, load.running, load.waiting, beat.draining)


def _stopping() -> ShuttingDownError:
    return ShuttingDownError("the controller is stopping")
