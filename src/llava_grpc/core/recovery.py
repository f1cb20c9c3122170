"""What to do when a worker's stream breaks off: have another worker go on, or tell the client.

Laws:
1. Before the first token a request is tried elsewhere, unseen by its client; after it, the answer is resumed elsewhere
   from its token log. Either way the client sees one stream.
2. A worker whose transport broke, or that fell silent, is suspect. One that merely declined is not, and its answer is
   no attempt: only lost workers count. What the worker itself found wrong with the request is final.
3. Losses are bounded twice: `max_attempts` in a row without a new token between them, and MOST_LOSSES in all: a request
   that kills whoever answers it does not get the whole fleet.
4. Retries before the first token are at most a share of the traffic (`core.retry_budget`): a fleet in trouble is not
   given more work for it. Going on with an answer that somebody is reading is not held to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from llava_grpc.errors import (
    AllSlotsTakenError,
    LlavaGrpcError,
    NoLiveWorkerError,
    QueueFullError,
    ResumeFailedError,
    ShuttingDownError,
    StartingError,
    WorkerLostError,
)

MOST_LOSSES = 8
"""Workers that one request may lose."""
BACKOFF_FIRST, BACKOFF_MOST = 0.05, 1.0
"""Seconds before the second retry in a row, doubled for each further one up to the second number; jittered by half."""

_DECLINED = (AllSlotsTakenError, NoLiveWorkerError, QueueFullError, ShuttingDownError, StartingError)
"""The last of a worker; the others also of a controller that is one's worker."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from a failure: whether others are asked `again`, whether the worker is `suspect`, or `declined`."""

    again: bool
    suspect: bool
    declined: bool


@dataclass(slots=True)
class Trail:
    """A request's losses. `max_attempts`: workers in a row that it may lose without a new token in between."""

    max_attempts: int
    in_a_row: int = 0
    in_all: int = 0
    broken_since: float = 0.0
    """When it first failed, since its last new token."""
    _offset: int = -1

    def judge(self, error: LlavaGrpcError, offset: int, now: float) -> Verdict:
        """Judge a failed attempt.

        Args:
            error: what ended it; WorkerLostError where the transport broke or the worker fell silent.
            offset: tokens of the answer that have been delivered, over all attempts.
            now: seconds.
        """
        if offset > self._offset:
            self._offset, self.in_a_row, self.broken_since = offset, 0, now
        if isinstance(error, _DECLINED):
            return Verdict(again=True, suspect=False, declined=True)
        if not isinstance(error, WorkerLostError | ResumeFailedError):
            return Verdict(again=False, suspect=False, declined=False)
        self.in_a_row += 1
        self.in_all += 1
        again = self.in_a_row < self.max_attempts and self.in_all < MOST_LOSSES
        return Verdict(again, suspect=isinstance(error, WorkerLostError), declined=False)

    def backoff(self, random: Random) -> float:
        """Seconds to wait before the next attempt: none after a first loss, another worker stands ready."""
        if self.in_a_row < 2:
            return 0.0
        longest: float = min(BACKOFF_FIRST * 2 ** (self.in_a_row - 2), BACKOFF_MOST)
        return longest * random.uniform(0.5, 1.0)


def gave_up(error: LlavaGrpcError, offset: int) -> LlavaGrpcError:
    """What to tell a client of whose answer so many tokens were delivered. A request's own fault stays what it is."""
    if not offset:
        return error
    delivered = {**error.metadata, "delivered_tokens": str(offset)}
    if not error.retryable:
        return type(error)(error.cause, remedy=error.remedy, retry_after=error.retry_after, metadata=delivered)
    return ResumeFailedError(
        f"after {offset} tokens nobody could go on with the answer: {error.cause}",
        remedy=error.remedy if isinstance(error, ResumeFailedError) else None,
        retry_after=error.retry_after,
        metadata={**delivered, "why": error.reason},
    )
