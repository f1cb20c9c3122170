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


def test_before_the_first_token_a_lost_worker_is_replaced_so_many_times():
    assert judge(WorkerLostError("x"), delivered=False, lost=0, max_attempts=3).retry
    assert judge(WorkerLostError("x"), delivered=False, lost=1, max_attempts=3).retry
    assert not judge(WorkerLostError("x"), delivered=False, lost=2, max_attempts=3).retry
    assert not judge(WorkerLostError("x"), delivered=True, lost=0, max_attempts=3).retry


@pytest.mark.parametrize("error", [AllSlotsTakenError("x"), ShuttingDownError("x")])
def test_a_worker_that_declined_is_no_attempt_and_no_suspect(error: LlavaGrpcError):
    verdict = judge(error, delivered=False, lost=2, max_attempts=3)
    assert (verdict.retry, verdict.suspect, verdict.declined) == (True, False, True)


@pytest.mark.parametrize("error", [ImageInvalidError("x"), EngineFailedError("x"), DeadlineExceededError("x")])
def test_what_the_worker_found_is_final(error: LlavaGrpcError):
    verdict = judge(error, delivered=False, lost=0, max_attempts=3)
    assert (verdict.retry, verdict.suspect, verdict.declined) == (False, False, False)


def test_a_broken_transport_makes_suspect():
    assert judge(WorkerLostError("x"), delivered=True, lost=0, max_attempts=3).suspect
