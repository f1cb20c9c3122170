"""What follows from a failed stream."""

import pytest

from llava_grpc.core.recovery import judge
from llava_grpc.errors import (
    AllSlotsTakenError,
    DeadlineExceededError,
    EngineFailedError,
    ImageInvalidError,
    LlavaGrpcError,
    ShuttingDownError,
    WorkerLostError,
)


@pytest.mark.parametrize("error", [WorkerLostError("x"), AllSlotsTakenError("x"), ShuttingDownError("x")])
def test_before_the_first_token_another_worker_is_tried(error: LlavaGrpcError):
    assert judge(error, delivered=False, attempts=1, max_attempts=3).retry
    assert not judge(error, delivered=False, attempts=3, max_attempts=3).retry
    assert not judge(error, delivered=True, attempts=1, max_attempts=3).retry


@pytest.mark.parametrize("error", [ImageInvalidError("x"), EngineFailedError("x"), DeadlineExceededError("x")])
def test_what_the_worker_found_is_final(error: LlavaGrpcError):
    verdict = judge(error, delivered=False, attempts=1, max_attempts=3)
    assert not verdict.retry
    assert not verdict.suspect


def test_only_a_broken_transport_makes_suspect():
    assert judge(WorkerLostError("x"), delivered=True, attempts=1, max_attempts=3).suspect
    assert not judge(AllSlotsTakenError("x"), delivered=False, attempts=1, max_attempts=3).suspect
