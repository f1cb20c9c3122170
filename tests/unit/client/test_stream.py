"""The laws of a stream, against a server that breaks them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from llava_grpc import errors
from llava_grpc.client import AnswerStream, AsyncClient
from llava_grpc.core.stream import Delta
from llava_grpc.v1 import inference_pb2 as pb
from tests.support.fake_worker import dies_after_a_token, fake_worker

STARTED = pb.GenerateResponse(started=pb.Started(request_id="r", model="m"))
FINISHED = pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP))
UNKNOWN = pb.GenerateResponse()


def delta(end_offset: int, *token_ids: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        delta=pb.Delta(text=[f"{token} " for token in token_ids], token_ids=token_ids, end_offset=end_offset)
    )


@asynccontextmanager
async def answering(*frames: pb.GenerateResponse) -> AsyncIterator[Callable[[], AnswerStream]]:
    """Asks a worker that sends just these frames."""

    async def behaviour(request: pb.GenerateRequest, context: Any) -> None:
        for frame in frames:
            await context.write(frame)

    async with fake_worker(behaviour) as worker, AsyncClient(worker.address) as client:
        yield lambda: client.generate("hi", timeout=10)


async def test_a_good_stream_is_its_deltas_in_order():
    async with answering(STARTED, delta(2, 1, 2), delta(3, 3), FINISHED) as ask:
        stream = ask()
        assert [d async for d in stream] == [Delta("1 2 ", (1, 2), 2), Delta("3 ", (3,), 3)]
    assert (stream.text_so_far, stream.token_ids, stream.done) == ("1 2 3 ", (1, 2, 3), True)
    assert stream.started is not None
    assert stream.finished is not None
    assert await stream.text() == "1 2 3 ", "also after the client was closed"
    assert [d async for d in stream] == []


async def test_all_events_can_be_had():
    async with answering(STARTED, delta(1, 1), UNKNOWN, FINISHED) as ask:
        kinds = [type(event).__name__ async for event in ask().events()]
    assert kinds == ["Started", "Delta", "Finished"]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ((STARTED, delta(1, 1), delta(3, 3), FINISHED), "tokens 1 to 2 of the answer are missing"),
        ((STARTED, delta(1, 1), delta(1, 1), FINISHED), "tokens 0 to 1 of the answer came twice"),
        ((STARTED, delta(1, 1)), "broke off"),
        ((), "broke off"),
        ((delta(1, 1), FINISHED), "no start"),
        ((STARTED, STARTED, FINISHED), "started twice"),
        ((STARTED, FINISHED, delta(1, 1)), "after the end"),
    ],
    ids=["gap", "double", "no end", "nothing", "no start", "two starts", "after the end"],
)
async def test_a_stream_that_breaks_the_law_fails(frames: tuple[pb.GenerateResponse, ...], words: str):
    async with answering(*frames) as ask:
        stream = ask()
        with pytest.raises(errors.EngineFailedError, match=words):
            await stream.text()
        with pytest.raises(errors.EngineFailedError, match=words):
            await stream.text()  # for ever the same


async def test_what_came_before_a_failure_is_kept():
    async with fake_worker(dies_after_a_token) as worker, AsyncClient(worker.address) as client:
        stream = client.generate("hi", timeout=10)
        with pytest.raises(errors.ServerUnreachableError):
            await stream.text()
        assert (stream.text_so_far, stream.finished) == ("one", None)


async def test_a_cancel_by_the_server_is_an_error_and_not_a_cancelled_task():
    async def behaviour(request: pb.GenerateRequest, context: Any) -> None:
        await context.abort(grpc.StatusCode.CANCELLED, "no")

    async with fake_worker(behaviour) as worker, AsyncClient(worker.address) as client:
        with pytest.raises(errors.RequestCancelledError):
            await client.ask("hi")
