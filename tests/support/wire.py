"""Requests and answers as messages, for tests that look at the wire itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from llava_grpc.rpc.channels import open_channel
from llava_grpc.v1 import inference_pb2 as pb
from llava_grpc.v1.controller_pb2_grpc import ControllerServiceStub
from llava_grpc.v1.inference_pb2_grpc import InferenceServiceStub
from llava_grpc.v1.worker_pb2_grpc import WorkerServiceStub


@dataclass
class Stubs:
    """Every service at one address."""

    inference: Any
    control: Any
    worker: Any
    channel: grpc.aio.Channel


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Stubs]:
    """Stubs on a channel that is closed at the end."""
    async with open_channel(address) as channel:
        yield Stubs(InferenceServiceStub(channel), ControllerServiceStub(channel), WorkerServiceStub(channel), channel)


def ask(text: str = "hello", *, model: str = "", image: bytes = b"", **sampling: Any) -> pb.GenerateRequest:
    """One user turn."""
    parts = [pb.Part(image=pb.Image(data=image))] if image else []
    parts.append(pb.Part(text=text))
    turn = pb.Turn(role=pb.ROLE_USER, parts=parts)
    return pb.GenerateRequest(
        model=model, conversation=pb.Conversation(turns=[turn]), sampling=pb.SamplingParams(**sampling)
    )


@dataclass
class Answer:
    """A whole stream, in order."""

    frames: list[pb.GenerateResponse] = field(default_factory=list)

    @property
    def kinds(self) -> list[str | None]:
        return [frame.WhichOneof("event") for frame in self.frames]

    @property
    def started(self) -> pb.Started:
        return self.frames[0].started

    @property
    def finished(self) -> pb.Finished:
        return self.frames[-1].finished

    @property
    def text(self) -> str:
        return "".join("".join(frame.delta.text) for frame in self.frames)

    @property
    def token_ids(self) -> list[int]:
        return [token_id for frame in self.frames for token_id in frame.delta.token_ids]


async def answer_to(stub: Any, request: pb.GenerateRequest, timeout: float = 20.0) -> Answer:
    """The whole stream. Checks that offsets follow on one another, with no gap and no double."""
    answer, offset = Answer(), len(request.emitted_token_ids)
    async for frame in stub.Generate(request, timeout=timeout):
        answer.frames.append(frame)
        if frame.HasField("delta"):
            offset += len(frame.delta.token_ids)
            assert frame.delta.end_offset == offset
    assert answer.kinds[0] == "started"
    assert answer.kinds[-1] == "finished"
    assert set(answer.kinds[1:-1]) <= {"delta"}
    return answer
