"""The way between controller and workers, which takes time.

It matters more than its length says: a request that waited at the controller is sent when an answer has ended, and is
under way while the worker begins its next step. So it waits for that step too, as it does in a real fleet.
"""

from __future__ import annotations

from collections.abc import Callable

from llava_grpc.sim.engine import Clock
from llava_grpc.sim.service import Done, ServerKind, Spec
from llava_grpc.sim.workload import Job


class Far:
    """A server `way` seconds off: requests reach it, and its first tokens and ends are seen, so much later.

    When it dies, so does what is on the way.
    """

    __slots__ = ("_clock", "_done", "_server", "_stopped", "_way")

    def __init__(self, clock: Clock, spec: Spec, done: Done, *, kind: ServerKind, way: float) -> None:
        self._clock, self._done, self._way = clock, done, way
        self._server = kind(clock, spec, self._ended)
        self._stopped = False

    def start(self, job: Job) -> None:
        if (when_read := job.when_read) is not None:
            job.when_read = lambda read: self._send(when_read, read)
        self._send(self._server.start, job)

    def stop(self) -> None:
        self._stopped = True
        self._server.stop()

    def _ended(self, job: Job) -> None:
        job.first_token += self._way
        self._send(self._done, job)

    def _send(self, call: Callable[[Job], None], job: Job) -> None:
        def arrive(sent: Job) -> None:
            if not self._stopped:
                call(sent)

        self._clock.at(self._clock.now + self._way, arrive, job)
