"""What a client does when a call fails, without any call."""

from dataclasses import replace
from random import Random

import pytest

from llava_grpc import errors
from llava_grpc.client.failover import (
    BACKOFF_FIRST,
    BACKOFF_MOST,
    Failover,
    check_goes_on,
    going_on,
    leads_on,
)
from llava_grpc.core.prompt import Conversation, GenerationRequest, Role, Sampling, Turn
from llava_grpc.core.stream import Fingerprint, Started
from llava_grpc.errors import LlavaGrpcError

LOST = errors.ServerUnreachableError("gone")
FULL = errors.AllSlotsTakenError("full")
OTHER = errors.ResumeFailedError("other weights")


def failover(addresses: int, attempts: int = 3, at: int = 0, seed: int = 0) -> Failover:
    return Failover(addresses=addresses, at=at, attempts=attempts, random=Random(seed))


UNAVAILABLE = {"NO_LIVE_WORKER", "ALL_SPEEDS_ZERO", "WORKER_LOST", "RESUME_FAILED"} | {
    "SERVER_UNREACHABLE",
    "STARTING",
    "SHUTTING_DOWN",
}
BUSY = {"ALL_SLOTS_TAKEN", "QUEUE_FULL"}


@pytest.mark.parametrize("kind", list(LlavaGrpcError.leaves()), ids=lambda kind: kind.reason)
def test_which_failures_lead_on(kind: type[LlavaGrpcError]):
    error = kind("x")
    assert leads_on(error, elsewhere=False, begun=False) == (kind.reason in UNAVAILABLE)
    assert leads_on(error, elsewhere=True, begun=False) == (kind.reason in UNAVAILABLE | BUSY)
    assert leads_on(error, elsewhere=False, begun=True) == (kind.reason in UNAVAILABLE | {"MODEL_NOT_FOUND"})


def test_what_a_newer_server_says_is_told():
    assert not leads_on(LlavaGrpcError("NEWER: x"), elsewhere=True, begun=True)


@pytest.mark.parametrize("error", [LOST, FULL])
def test_alone_and_unanswered_a_failure_is_told_at_once(error: LlavaGrpcError):
    assert failover(1).failed(error) is None


def test_alone_but_answered_the_same_address_is_asked_again_after_a_pause():
    way = failover(1)
    way.answered()
    assert 0 < (way.failed(LOST) or 0) <= BACKOFF_FIRST
    assert way.at == 0
    assert way.failed(FULL) is None, "there is nobody else"


def test_the_next_address_is_asked_at_once_and_a_pause_comes_after_all_of_them():
    way = failover(3, attempts=9, at=1)
    pauses, asked = [], []
    while (pause := way.failed(LOST)) is not None:
        pauses.append(pause)
        asked.append(way.at)
    assert asked == [2, 0, 1, 2, 0, 1, 2, 0]
    assert [pause > 0 for pause in pauses] == [False, False, True] * 2 + [False, False]
    assert 0.5 * BACKOFF_FIRST <= pauses[2] <= BACKOFF_FIRST <= pauses[5] <= 2 * BACKOFF_FIRST


def test_pauses_grow_to_a_limit_and_are_jittered():
    way = failover(1, attempts=20)
    way.answered()
    pauses = [way.failed(LOST) or 0 for _ in range(19)]
    assert all(BACKOFF_MOST / 2 <= pause <= BACKOFF_MOST for pause in pauses[5:])
    assert len(set(pauses)) == 19
    assert way.failed(LOST) is None


def test_a_server_that_says_when_is_not_asked_before():
    way = failover(2)
    late = errors.StartingError("loading", retry_after=7.0)
    assert way.failed(late) == 0.0, "the other one may be ready"
    assert way.failed(late) == 7.0


def test_failures_in_a_row_are_bounded_and_a_token_makes_good_for_them():
    way = failover(2, attempts=3)
    assert way.failed(LOST) is not None
    assert way.failed(LOST) is not None
    way.progressed()
    failures = [way.failed(LOST) for _ in range(4)]
    assert [failure is None for failure in failures] == [False, False, False, True], "the first had brought a token"


def test_a_single_attempt_is_a_single_attempt():
    assert failover(2, attempts=1).failed(LOST) is None


def test_a_full_fleet_is_asked_no_more_often_than_one_that_is_gone():
    way = failover(2)
    assert [way.failed(FULL) is None for _ in range(3)] == [False, False, True]


def test_what_is_the_requests_fault_is_told_at_once():
    way = failover(2)
    way.answered()
    way.progressed()
    for error in (errors.SamplingInvalidError("x"), errors.DeadlineExceededError("x"), errors.EngineFailedError("x")):
        assert way.failed(error) is None


def test_a_server_that_does_not_know_the_model_yet_is_asked_again_once_somebody_did():
    unknown = errors.ModelNotFoundError("unknown")
    assert failover(2).failed(unknown) is None
    way = failover(1)
    way.answered()
    assert way.failed(unknown) is None, "a place in a queue is no answer"
    way.answered(begun=True)
    assert way.failed(unknown) is not None


def test_who_cannot_go_on_is_not_asked_twice():
    way = failover(3)
    way.answered()
    way.progressed()
    assert way.failed(LOST) == 0.0
    assert way.failed(OTHER) == 0.0, "there is a third"
    assert way.failed(OTHER) is None


REQUEST = GenerationRequest(
    request_id="mine", model="alias", prompt=Conversation((Turn(Role.USER, ("hi",)),)), sampling=Sampling()
)
WEIGHTS = Fingerprint(weights="w", tokenizer="t", dtype="float32", engine="one")
BEGUN = Started("mine", "model", 7, WEIGHTS, "there:1")


def test_the_first_attempt_is_the_request_as_it_is():
    assert going_on(REQUEST, None, (), 0) == REQUEST


def test_before_anybody_answered_only_the_attempt_differs():
    assert going_on(REQUEST, None, (), 2) == replace(REQUEST, attempt=2)


def test_before_the_first_token_the_seed_that_was_told_stays():
    again = going_on(REQUEST, BEGUN, (), 1)
    assert (again.sampling.seed, again.model, again.emitted_token_ids, again.begun) == (7, "model", (), None)


def test_after_it_the_request_carries_all_that_a_resume_needs():
    again = going_on(REQUEST, BEGUN, (4, 5), 1)
    assert (again.sampling.seed, again.model, again.emitted_token_ids) == (7, "model", (4, 5))
    assert (again.request_id, again.attempt, again.begun) == ("mine", 1, WEIGHTS)
    assert again.prompt is REQUEST.prompt


def test_what_a_server_does_not_say_of_itself_is_not_asked_for():
    assert going_on(REQUEST, replace(BEGUN, fingerprint=Fingerprint()), (4,), 1).begun is None


def test_a_clients_own_log_comes_first():
    given = replace(REQUEST, emitted_token_ids=(1, 2), attempt=3)
    again = going_on(given, BEGUN, (3,), 2)
    assert (again.emitted_token_ids, again.attempt) == ((1, 2, 3), 5)


@pytest.mark.parametrize(
    "now",
    [
        BEGUN,
        replace(BEGUN, worker_address="here:2", attempt=1),
        replace(BEGUN, fingerprint=replace(WEIGHTS, dtype="bfloat16", engine="another")),
        replace(BEGUN, fingerprint=Fingerprint()),
    ],
)
def test_an_answer_goes_on_under_the_same_weights_and_tokens(now: Started):
    check_goes_on(BEGUN, now, 3)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (replace(BEGUN, model="another"), "there:1 answers as another, not as model"),
        (replace(BEGUN, fingerprint=replace(WEIGHTS, weights="others")), "other weights or tokens"),
        (replace(BEGUN, fingerprint=replace(WEIGHTS, tokenizer="others")), "other weights or tokens"),
    ],
)
def test_and_under_no_others(now: Started, words: str):
    with pytest.raises(errors.ResumeFailedError, match=words) as caught:
        check_goes_on(BEGUN, now, 3)
    assert caught.value.metadata == {"delivered_tokens": "3"}
