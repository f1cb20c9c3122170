"""The laws of a stream, against a server that breaks them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from llava_grpc import errors
from llava_grpc.client import AnswerStream, AsyncClient
from llava_grpc.client.prompts import build_prompt, build_request
from llava_grpc.core.stream import Delta
from llava_grpc.v1 import inference_pb2 as pb
from tests.support.chance import Hasty
from tests.support.fake_worker import breaks_after_the_end, dies_at_once, ends_early, fake_worker

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
        ((delta(1, 1), FINISHED), "no start"),
        ((STARTED, STARTED, FINISHED), "started twice"),
        ((STARTED, FINISHED, delta(1, 1)), "after the end"),
    ],
    ids=["gap", "double", "no start", "two starts", "after the end"],
)
async def test_a_stream_that_breaks_the_law_fails(frames: tuple[pb.GenerateResponse, ...], words: str):
    async with answering(*frames) as ask:
        stream = ask()
        with pytest.raises(errors.EngineFailedError, match=words):
            await stream.text()
        with pytest.raises(errors.EngineFailedError, match=words):
            await stream.text()  # for ever the same


async def test_what_came_before_a_failure_is_kept():
    async def behaviour(request: pb.GenerateRequest, context: Any) -> None:
        await context.write(STARTED)
        if not request.emitted_token_ids:
            await context.write(delta(1, 1))
        await dies_at_once(request, context)

    async with fake_worker(behaviour) as worker, AsyncClient(worker.address, random=Hasty()) as client:
        stream = client.generate("hi", timeout=10)
        with pytest.raises(errors.ServerUnreachableError):
            await stream.text()
        assert (stream.text_so_far, stream.token_ids, stream.finished) == ("1 ", (1,), None)
        assert worker.calls == stream.attempts == 4, "one that delivered a token, and three in a row without any"


async def test_an_answer_that_breaks_off_without_its_end_is_an_error_of_the_worker():
    async with fake_worker(ends_early) as worker, AsyncClient(worker.address) as client:
        with pytest.raises(errors.WorkerLostError, match="broke off"):
            await client.ask("hi", timeout=10)


async def test_an_answer_is_complete_though_the_transport_breaks_after_it():
    async with fake_worker(breaks_after_the_end) as worker, AsyncClient(worker.address) as client:
        assert await client.ask("hi", timeout=10) == "one"
        assert worker.calls == 1


async def test_a_request_with_a_token_log_goes_on_after_it():
    sent: list[pb.GenerateRequest] = []

    async def behaviour(request: pb.GenerateRequest, context: Any) -> None:
        sent.append(request)
        await context.write(STARTED)
        if len(sent) == 1:
            await context.write(delta(3, 3))
            await dies_at_once(request, context)
        await context.write(FINISHED)

    request = build_request(build_prompt("hi", (), None, None), request_id="mine")
    request = replace(request, emitted_token_ids=(1, 2), attempt=5)
    async with fake_worker(behaviour) as worker, AsyncClient(worker.address, random=Hasty()) as client:
        assert await client.send(request, timeout=10).text() == "3 "
    assert [list(one.emitted_token_ids) for one in sent] == [[1, 2], [1, 2, 3]]
    assert [(one.request_id, one.attempt) for one in sent] == [("mine", 5), ("mine", 6)]


async def test_a_cancel_by_the_server_is_an_error_and_not_a_cancelled_task():
    async def behaviour(request: pb.GenerateRequest, context: Any) -> None:
        await context.abort(grpc.StatusCode.CANCELLED, "no")

    async with fake_worker(behaviour) as worker, AsyncClient(worker.address) as client:
        with pytest.raises(errors.RequestCancelledError):
            await client.ask("hi")
