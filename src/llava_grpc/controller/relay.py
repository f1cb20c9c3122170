"""The client's end of a proxied stream: one stream for the client, however many workers feed it.

Laws:
1. Frames are told apart by their first byte and passed on as the bytes that they are. Looked into are Finished, the
   first Delta after a resume, and, once a worker is lost, Started and the token log.
2. A client gets one Started. It is held back until the first frame of the answer itself, so that a worker that dies
   before can be replaced unseen. A worker that resumes must have the same weights and tokens, and go on from the very
   offset.
3. What a resume needs is kept within the controller's memory for it, and let go with the stream.
"""

from __future__ import annotations

from enum import IntEnum

import grpc.aio

from llava_grpc.controller.token_log import TokenLog
from llava_grpc.core.stream import Fingerprint
from llava_grpc.errors import ResumeFailedError, ShuttingDownError
from llava_grpc.rpc.convert import fingerprint_from_pb
from llava_grpc.v1 import inference_pb2 as pb


class Frame(IntEnum):
    """Frames by the first byte of their serialized form: the field number and wire type of GenerateResponse.event."""

    STARTED = 0x0A
    DELTA = 0x12
    FINISHED = 0x1A
    QUEUED = 0x22


class Relay:
    """See the module.

    Args:
        context: the client's call.
        request: as it is to be sent.
        earlier: attempts elsewhere, before this controller was asked.
        base: tokens of the answer that those have delivered, and that the request brings along.
        begun_under: what made those, where it says so.
    """

    def __init__(
        self,
        context: grpc.aio.ServicerContext[bytes, bytes],
        request: bytes,
        earlier: int = 0,
        base: int = 0,
        begun_under: Fingerprint | None = None,
    ) -> None:
        self._context = context
        self._request: bytes | None = request
        self._started = b""
        self._earlier = earlier
        self._begun_under = begun_under
        self._checked = not base
        self.log = TokenLog(base)
        self.begun = False
        """Whether the client has been given anything of the answer."""
        self.sent = 0
        """How often it was sent."""
        self.resumes = 0
        self.usage: pb.Usage | None = None
        """Once the answer is complete."""

    @property
    def begun_under(self) -> Fingerprint | None:
        """What made the answer so far; None where there is none, or that is not known."""
        if self._begun_under is None and self.begun:
            self._begun_under = fingerprint_from_pb(pb.GenerateResponse.FromString(self._started).started.fingerprint)
        return self._begun_under

    @property
    def request_bytes(self) -> int:
        """What keeping the request takes."""
        return len(self._request or b"")

    def drop_request(self) -> None:
        """There is no memory to resume this one."""
        self._request = None

    def next_attempt(self) -> bytes:
        """What to send for the next attempt: at first the request as it came.

        Joined messages merge, the last scalar counts and repeated fields continue: no picture is copied through a
        parser for the sake of a few numbers.

        Raises:
            ResumeFailedError: the request was not kept.
        """
        if self._request is None:
            raise ResumeFailedError(
                "the request was not kept: too many bytes of requests under way are kept already",
                remedy="Give the controller more --resume-memory-mb, or send smaller pictures",
            )
        if not self.sent:
            self.sent = 1
            return self._request
        self._checked = not self.log.offset
        self.resumes += self.begun
        addition = pb.GenerateRequest(attempt=self._earlier + self.sent, emitted_token_ids=self.log.token_ids)
        self.sent += 1
        return self._request + addition.SerializeToString()

    def start(self, frame: bytes) -> None:
        """A worker has taken the request up.

        Raises:
            ResumeFailedError: it is to go on with an answer, but has other weights or tokens.
        """
        if (wanted := self.begun_under) is not None:
            self._check_fingerprint(frame, wanted)
        if not self.begun:
            self._started = frame

    def _check_fingerprint(self, frame: bytes, wanted: Fingerprint) -> None:
        started = pb.GenerateResponse.FromString(frame).started
        if not fingerprint_from_pb(started.fingerprint).may_continue(wanted):
            raise ResumeFailedError(f"the model of worker {started.worker_address} has other weights or tokens")

    async def deltas(self, frame: bytes) -> None:
        """Pass a part of the answer on.

        Raises:
            ResumeFailedError: it does not follow on what the client has.
        """
        if not self._checked:
            self._check(pb.GenerateResponse.FromString(frame).delta)
        if not self.begun:
            await self._begin()
        self.log.add(frame)
        await self._context.write(frame)

    async def finish(self, frame: bytes) -> None:
        """Pass the end of the answer on.

        Raises:
            ShuttingDownError: it is the worker's end rather than the answer's.
        """
        finished = pb.GenerateResponse.FromString(frame).finished
        if finished.reason == pb.FINISH_REASON_CANCELLED:  # not by our client, who is still there
            raise ShuttingDownError("the worker ended the stream before the answer")
        if not self.begun:
            await self._begin()
        if self.resumes:
            total = pb.Finished(resumes=self.resumes + finished.resumes)
            frame += pb.GenerateResponse(finished=total).SerializeToString()
        await self._context.write(frame)
        self.usage = finished.usage

    async def wait(self, frame: bytes) -> None:
        """Tell the client where it stands, unless its answer has begun."""
        if not self.begun:
            await self._context.write(frame)

    async def _begin(self) -> None:
        self.begun = True
        await self._context.write(self._started)

    def _check(self, delta: pb.Delta) -> None:
        self._checked = True
        begins = delta.end_offset - len(delta.token_ids)
        if begins != self.log.offset:
            raise ResumeFailedError(f"the worker went on from token {begins} instead of {self.log.offset}")
