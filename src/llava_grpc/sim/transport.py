"""The way between controller and workers, which takes time.

It matters more than its length says: a request that waited at the controller is sent when an answer has ended, and is
under way while the worker begins its next step. So it waits for that step too, as it would in a real fleet.
"""

from __future__ import annotations

from llava_grpc.sim.engine import Clock
from llava_grpc.sim.service import Done, ServerKind, Spec
from llava_grpc.sim.workload import Job


class Far:
    """A server `way` seconds off: requests reach it, and its tokens and ends are seen, so much later."""

    __slots__ = ("_clock", "_done", "_server", "_way")

    def __init__(self, clock: Clock, spec: Spec, done: Done, *, kind: ServerKind, way: float) -> None:
        self._clock, self._done, self._way = clock, done, way
        self._server = kind(clock, spec, self._ended)

    def start(self, job: Job) -> None:
        self._clock.at(self._clock.now + self._way, self._server.start, job)

    def stop(self) -> None:
        self._server.stop()

    def _ended(self, job: Job) -> None:
        job.first_token += self._way
        self._clock.at(self._clock.now + self._way, self._done, job)
