"""What follows from a failed stream."""

from random import Random

import pytest

from llava_grpc.core.recovery import BACKOFF_MOST, MOST_LOSSES, Trail, gave_up
from llava_grpc.errors import (
    AllSlotsTakenError,
    DeadlineExceededError,
    EngineFailedError,
    ImageInvalidError,
    LlavaGrpcError,
    NoLiveWorkerError,
    QueueFullError,
    ResumeFailedError,
    ShuttingDownError,
    StartingError,
    WorkerLostError,
)

LOST = WorkerLostError("the worker was lost")


def test_so_many_workers_in_a_row_may_be_lost():
    trail = Trail(max_attempts=3)
    assert [trail.judge(LOST, offset=0, now=0).again for _ in range(3)] == [True, True, False]


def test_a_new_token_in_between_begins_the_row_anew():
    trail = Trail(max_attempts=2)
    assert trail.judge(LOST, offset=5, now=0).again
    assert trail.judge(LOST, offset=6, now=1).again
    assert not trail.judge(LOST, offset=6, now=2).again


def test_a_request_that_makes_a_token_before_it_kills_each_worker_does_not_get_the_whole_fleet():
    trail = Trail(max_attempts=3)
    goes_on = [trail.judge(LOST, offset=offset, now=0).again for offset in range(1, MOST_LOSSES + 1)]
    assert goes_on == [True] * (MOST_LOSSES - 1) + [False]


@pytest.mark.parametrize(
    "error", [AllSlotsTakenError, QueueFullError, NoLiveWorkerError, ShuttingDownError, StartingError]
)
def test_who_declined_is_no_loss_and_no_suspect(error: type[LlavaGrpcError]):
    trail = Trail(max_attempts=1)
    for offset in (0, 0, 7):
        verdict = trail.judge(error("x"), offset, now=0)
        assert (verdict.again, verdict.suspect, verdict.declined) == (True, False, True)
    assert trail.in_all == 0


@pytest.mark.parametrize("error", [ImageInvalidError("x"), EngineFailedError("x"), DeadlineExceededError("x")])
def test_what_the_worker_found_is_final(error: LlavaGrpcError):
    for offset in (0, 3):
        verdict = Trail(max_attempts=3).judge(error, offset, now=0)
        assert (verdict.again, verdict.suspect, verdict.declined) == (False, False, False)


def test_a_broken_transport_makes_suspect_and_a_misfit_does_not():
    assert Trail(max_attempts=1).judge(LOST, offset=0, now=0).suspect
    misfit = Trail(max_attempts=2).judge(ResumeFailedError("other weights"), offset=4, now=0)
    assert (misfit.again, misfit.suspect) == (True, False)


def test_it_is_broken_since_the_first_failure_after_a_token():
    trail = Trail(max_attempts=9)
    for offset, now, since in ((0, 1.0, 1.0), (0, 2.0, 1.0), (3, 5.0, 5.0), (3, 6.0, 5.0)):
        trail.judge(AllSlotsTakenError("x"), offset, now)
        assert trail.broken_since == since


def test_the_first_retry_goes_at_once_and_later_ones_wait_ever_longer():
    trail, random = Trail(max_attempts=99), Random(1)
    pauses = []
    for _ in range(MOST_LOSSES):
        trail.judge(LOST, offset=0, now=0)
        pauses.append(trail.backoff(random))
    assert pauses[0] == 0
    assert all(0 < pause <= BACKOFF_MOST for pause in pauses[1:])
    assert pauses[5] > pauses[1]


def test_who_got_nothing_hears_the_failure_itself():
    assert gave_up(LOST, 0) is LOST


def test_who_got_a_part_hears_how_much_and_why_it_ends_there():
    told = gave_up(LOST, 12)
    assert isinstance(told, ResumeFailedError)
    assert told.metadata == {"delivered_tokens": "12", "why": "WORKER_LOST"}
    assert "12 tokens" in told.cause


def test_a_requests_own_fault_stays_what_it_is():
    told = gave_up(EngineFailedError("boom", metadata={"device": "0"}), 12)
    assert isinstance(told, EngineFailedError)
    assert told.metadata == {"device": "0", "delivered_tokens": "12"}
