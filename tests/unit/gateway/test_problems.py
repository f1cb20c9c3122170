"""Errors in OpenAI's shape."""

import pytest

from llava_grpc import errors
from llava_grpc.errors import LlavaGrpcError
from llava_grpc.gateway.problems import ApiError


@pytest.mark.parametrize("leaf", list(LlavaGrpcError.leaves()), ids=lambda leaf: leaf.reason)
def test_every_error_has_a_status_and_keeps_its_reason(leaf: type[LlavaGrpcError]):
    told = ApiError.of(leaf("the cause"))
    error = told.body()["error"]
    assert 400 <= told.status < 600
    assert error["reason"] == leaf.reason
    assert "the cause" in error["message"]
    assert error["type"] in ("invalid_request_error", "rate_limit_error", "server_error")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.ModelNotFoundError("x"), 404, "model_not_found"),
        (errors.PromptTooLongError("x"), 400, "context_length_exceeded"),
        (errors.ImageInvalidError("x"), 400, "IMAGE_INVALID"),
        (errors.MessageTooLargeError("x"), 413, "MESSAGE_TOO_LARGE"),
        (errors.QueueFullError("x"), 429, "QUEUE_FULL"),
        (errors.NoLiveWorkerError("x"), 503, "NO_LIVE_WORKER"),
        (errors.ResumeFailedError("x"), 503, "RESUME_FAILED"),
        (errors.DeadlineExceededError("x"), 504, "DEADLINE_EXCEEDED"),
        (errors.EngineFailedError("x"), 500, "ENGINE_FAILED"),
    ],
)
def test_as_openai_has_it_where_it_has_it(error: LlavaGrpcError, status: int, code: str):
    told = ApiError.of(error)
    assert (told.status, told.body()["error"]["code"]) == (status, code)


def test_who_is_to_try_again_is_told_when_in_whole_seconds():
    assert ApiError.of(errors.QueueFullError("x", retry_after=1.2)).headers == {"Retry-After": "2"}
    assert ApiError.of(errors.QueueFullError("x", retry_after=0.01)).headers == {"Retry-After": "1"}
    assert ApiError.of(errors.EngineFailedError("x")).headers == {}


def test_a_field_is_named_by_the_way_to_it():
    told = ApiError.at(["messages", 2, "content"], "is empty").body()["error"]
    assert told["param"] == "messages[2].content"
    assert told["message"] == "messages[2].content: is empty"


def test_a_sampling_option_is_named():
    assert ApiError.of(errors.SamplingInvalidError("temperature is -1")).body()["error"]["param"] == "temperature"
    assert ApiError.of(errors.SamplingInvalidError("the stop token 9 is none")).body()["error"]["param"] is None
