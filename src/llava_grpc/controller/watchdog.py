"""Looks after the streams that workers feed: asks after those that say nothing, and cuts those that nobody feeds any
more, so that they go on elsewhere.

Laws: what is long and what is too long is `core.vitals`' to say. One question at a time goes to a worker, however many
of its streams are silent. A worker that does not answer in time is suspect; its silent streams are cut once the
question has failed, unless a frame of any of them came meanwhile. Time is the watchdog's own, awake: an answer that
could not be heard because this controller did not run is not late.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc.aio

from llava_grpc.controller.fleet import Fleet
from llava_grpc.core.vitals import LOOK_EVERY, Vitals, Watch
from llava_grpc.v1 import worker_pb2
from llava_grpc.v1.worker_pb2_grpc import WorkerServiceStub

if TYPE_CHECKING:
    from llava_grpc.v1.worker_pb2_grpc import WorkerServiceAsyncStub

ANSWER_TIMEOUT, FIRST_ANSWER_TIMEOUT = 1.0, 3.0
"""Seconds awake without an answer after which a worker gets no new work, and its silent streams are cut; the second
where none of these has begun: it may be taking in a large picture, and nobody waits in the middle of a sentence."""
AFTER_A_DEFECT = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Watched:
    """A stream that is looked after. `cut` ends it from our side; `silence` is why, once it was cut."""

    address: str
    incarnation: str
    cut: Callable[[], object]
    vitals: Vitals
    silence: str = ""


@dataclass(slots=True)
class _Patient:
    """A worker, as long as it has streams. `tokens`: made in its life, as it said when it was last asked."""

    streams: dict[Watched, None] = field(default_factory=dict)
    tokens: int | None = None


class Watchdog:
    """See the module. `run` for as long as streams are to be looked after."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._watch = Watch()
        self._patients: dict[str, _Patient] = {}
        self._questions: dict[str, asyncio.Task[None]] = {}
        """By incarnation. A question outlives the streams that it was put for."""
        self._frames_before = 0

    @property
    def frames(self) -> int:
        """Frames that all streams have had, those that are over too."""
        return self._frames_before + sum(
            stream.vitals.frames for patient in self._patients.values() for stream in patient.streams
        )

    def watch(self, address: str, incarnation: str, cut: Callable[[], object]) -> Watched:
        """Look after a stream from now on. Its reader counts its frames in `vitals.frames`."""
        stream = Watched(address, incarnation, cut, Vitals(since=self._watch.awake))
        self._patients.setdefault(incarnation, _Patient()).streams[stream] = None
        return stream

    def leave(self, stream: Watched) -> None:
        """The stream is over."""
        patient = self._patients[stream.incarnation]
        patient.streams.pop(stream, None)
        self._frames_before += stream.vitals.frames
        if not patient.streams:
            del self._patients[stream.incarnation]

    async def run(self) -> None:
        """Look, again and again. Until cancelled."""
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY)
                try:
                    self.look()
                except Exception:
                    _log.exception("defect in the watchdog; it goes on")
                    await asyncio.sleep(AFTER_A_DEFECT)
        finally:
            questions = list(self._questions.values())
            for question in questions:
                question.cancel()
            await asyncio.gather(*questions, return_exceptions=True)

    def look(self) -> None:
        """Look at every stream once."""
        awake = self._watch.look(self._fleet.clock())
        for incarnation, patient in self._patients.items():
            silent = [stream for stream in patient.streams if stream.vitals.worth_asking(stream.vitals.look(awake))]
            if silent and incarnation not in self._questions:
                question = self._ask(silent[0].address, incarnation, patient)
                self._questions[incarnation] = asyncio.create_task(question, name=f"question to {silent[0].address}")

    async def _ask(self, address: str, incarnation: str, patient: _Patient) -> None:
        """Ask a worker some of whose streams are silent how it is, and act on the answer."""
        fleet = self._fleet
        frames = {stream: stream.vitals.frames for stream in patient.streams}
        asking = asyncio.ensure_future(self._status(address, incarnation))
        try:
            await self._awake(asking, ANSWER_TIMEOUT)
            if not any(stream.vitals.begun for stream in frames):
                await self._awake(asking, FIRST_ANSWER_TIMEOUT - ANSWER_TIMEOUT)
            if not asking.done():
                self._unanswered(address, incarnation, patient, frames, "no answer in time")
                return
            try:
                status = asking.result()
            except grpc.aio.UsageError:  # it left the register just now, and its channel with it: asked anew
                return
            except grpc.aio.AioRpcError as error:
                self._unanswered(address, incarnation, patient, frames, f"{error.code().name}: {error.details()}")
                return
            if status.incarnation != incarnation:
                self._cut(patient.streams, f"another worker answers at {address}")
                fleet.suspect(address, incarnation)
                return
            fleet.answered(address, incarnation, status)
            self._answered(address, incarnation, patient, status)
        finally:
            asking.cancel()
            self._questions.pop(incarnation, None)

    async def _status(self, address: str, incarnation: str) -> worker_pb2.GetStatusResponse:
        """What it says over the connection that its streams use; one that has left the register has none any more."""
        if self._fleet.registry.find(address, incarnation) is not None:
            return await _ask_status(self._fleet.channel(address, incarnation))
        async with self._fleet.world.open_channel(address) as channel:
            return await _ask_status(channel)

    async def _awake(self, answer: asyncio.Future[Any], seconds: float) -> None:
        """Wait for an answer, but no longer than so many seconds awake."""
        until = self._watch.awake + seconds
        while not answer.done() and self._watch.awake < until:
            await asyncio.wait({answer}, timeout=LOOK_EVERY)

    def _unanswered(
        self, address: str, incarnation: str, patient: _Patient, frames: dict[Watched, int], why: str
    ) -> None:
        if any(stream.vitals.frames != frames.get(stream, 0) for stream in patient.streams):
            return  # it does speak, only not to us
        _log.warning("worker %s is silent and does not say why (%s): its streams go on elsewhere", address, why)
        self._fleet.suspect(address, incarnation)
        asked_for = [stream for stream in patient.streams if stream in frames]
        self._cut(asked_for, f"worker {address} fell silent and did not answer when asked")

    def _answered(
        self, address: str, incarnation: str, patient: _Patient, status: worker_pb2.GetStatusResponse
    ) -> None:
        awake = self._watch.awake
        hung = []
        for stream in patient.streams:
            silence = stream.vitals.look(awake)
            if stream.vitals.is_hung(silence):
                hung.append(stream)
            elif stream.vitals.worth_asking(silence):
                stream.vitals.excuse(silence)
        before, patient.tokens = patient.tokens, status.tokens_generated
        if not hung:
            return
        if status.load.running and before == status.tokens_generated:
            _log.warning("worker %s answers but computes nothing: no work for it", address)
            self._fleet.hangs(address, incarnation, status.tokens_generated)
        self._cut(hung, f"worker {address} answers, but this stream stands still")

    def _cut(self, streams: Iterable[Watched], why: str) -> None:
        for stream in list(streams):
            stream.silence = why
            stream.cut()


async def _ask_status(channel: grpc.aio.Channel) -> worker_pb2.GetStatusResponse:
    stub: WorkerServiceAsyncStub = WorkerServiceStub(channel)
    return await stub.GetStatus(worker_pb2.GetStatusRequest())
