"""What to do when a worker's stream breaks off: try another worker, or tell the client.

Laws: before the first token a request may be tried elsewhere, unseen by the client; after it, never (yet: going on from
the token log is the next step). A worker whose transport broke is suspect; one that merely declined is not, and its
answer is no attempt: only lost workers count. What the worker itself found wrong with the request is final.
"""

from __future__ import annotations

from dataclasses import dataclass

from llava_grpc.errors import (
    AllSlotsTakenError,
    LlavaGrpcError,
    ShuttingDownError,
    StartingError,
    WorkerLostError,
)

_DECLINED = (AllSlotsTakenError, ShuttingDownError, StartingError)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from a failure."""

    retry: bool
    suspect: bool
    declined: bool


def judge(error: LlavaGrpcError, *, delivered: bool, lost: int, max_attempts: int) -> Verdict:
    """Judge a failed stream.

    Args:
        error: what ended it; WorkerLostError where the transport broke.
        delivered: whether any of the answer has reached the client.
        lost: workers lost by this request before this failure.
        max_attempts: workers that may be lost before the client is told.
    """
    suspect = isinstance(error, WorkerLostError)
    declined = isinstance(error, _DECLINED)
    retry = not delivered and (declined or (suspect and lost + 1 < max_attempts))
    return Verdict(retry, suspect, declined)
