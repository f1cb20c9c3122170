"""What to do when a worker's stream breaks off: try another worker, or tell the client.

Laws: before the first token a request may be tried elsewhere, unseen by the client; after it, never (yet: going on from
the token log is the next step). A worker whose transport broke is suspect; one that merely declined is not. What the
worker itself found wrong with the request is final.
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


def judge(error: LlavaGrpcError, *, delivered: bool, attempts: int, max_attempts: int) -> Verdict:
    """Judge a failed stream.

    Args:
        error: what ended it; WorkerLostError where the transport broke.
        delivered: whether any of the answer has reached the client.
        attempts: workers tried so far, this one included.
        max_attempts: the most to be tried.
    """
    lost = isinstance(error, WorkerLostError)
    elsewhere = lost or isinstance(error, _DECLINED)
    return Verdict(retry=elsewhere and not delivered and attempts < max_attempts, suspect=lost)
