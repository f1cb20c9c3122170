"""What a client does when a call fails: ask the next address, after a pause or at once, or tell the caller.

Pure: no clock and no connection; `route` asks and obeys.

Laws:
1. What is the request's fault, the caller's own doing or a defect is told at once: it would be the same elsewhere.
   A server that cannot be reached, that stops, or that has nobody to answer, leads on; a full one only where there is
   another address. That nobody serves the model is no fault of a request that was being answered: the server there
   has just begun, and does not know its workers yet.
2. The next address is asked at once; only when all have failed in turn comes a pause, jittered, and longer each time.
3. Failures in a row without a new token are bounded. A new token makes good for all failures before it.
4. Whoever cannot go on with an answer, for want of the same weights, is not asked for it twice.
5. With one address, a call to which nothing was answered yet fails at once: there is nobody else to ask, and whoever
   mistyped the address is to hear of it.
6. An answer goes on only under what it was begun under: the same model, weights and tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from llava_grpc.core.prompt import GenerationRequest
from llava_grpc.core.stream import Fingerprint, Started
from llava_grpc.errors import (
    LlavaGrpcError,
    ModelNotFoundError,
    OverloadedError,
    ResumeFailedError,
    UnavailableError,
)

ATTEMPTS = 3
"""Failures in a row, without a new token, after which the caller is told; more where there are more addresses."""
BACKOFF_FIRST, BACKOFF_MOST = 0.5, 4.0
"""Seconds of the pause when all addresses have failed, doubled each time up to the second number; jittered by half."""


@dataclass(slots=True, kw_only=True)
class Failover:
    """One call's way through the addresses. `at` is the number of the one to ask.

    Args:
        addresses: how many there are.
        at: which one to begin with.
        attempts: failures in a row, without a new token, after which the caller is told.
        random: for the jitter.
    """

    addresses: int
    at: int
    attempts: int
    random: Random
    _answered: bool = False
    """Something has come, from whichever address."""
    _begun: bool = False
    """Somebody has taken the request up."""
    _progress: bool = False
    """A token has come from the attempt under way."""
    _barren: int = 0
    """Failures since the last token."""
    _asked: int = 0
    """Addresses that failed since then."""

    def answered(self, *, begun: bool = False) -> None:
        """A server has said something that is no failure; `begun`: that it has taken the request up."""
        self._answered = True
        self._begun = self._begun or begun

    def progressed(self) -> None:
        """A new token has come."""
        self._progress = True
        self._barren = self._asked = 0

    def failed(self, error: LlavaGrpcError) -> float | None:
        """The attempt has failed. The seconds to wait before the next one, at `at`; None: the caller is to be told."""
        if not self._progress:
            self._barren += 1
        self._progress = False
        self._asked += 1
        alone = self.addresses == 1
        if not leads_on(error, elsewhere=not alone, begun=self._begun) or self._barren >= self.attempts:
            return None
        if alone and not self._answered:
            return None
        if isinstance(error, ResumeFailedError) and self._asked >= self.addresses:
            return None
        self.at = (self.at + 1) % self.addresses
        rounds, asked_again = divmod(self._asked, self.addresses)
        if asked_again:
            return 0.0
        longest: float = min(BACKOFF_FIRST * 2 ** (rounds - 1), BACKOFF_MOST)
        return max(longest * self.random.uniform(0.5, 1.0), error.retry_after or 0.0)


def leads_on(error: LlavaGrpcError, *, elsewhere: bool, begun: bool) -> bool:
    """Whether the same call may fare better later or at another address.

    Args:
        error: why it failed.
        elsewhere: there is another address.
        begun: the request was taken up before.
    """
    if isinstance(error, OverloadedError):
        return elsewhere
    if isinstance(error, ModelNotFoundError):
        return begun
    return isinstance(error, UnavailableError)


def going_on(
    request: GenerationRequest, begun: Started | None, token_ids: Sequence[int], attempts: int
) -> GenerationRequest:
    """The request for the next attempt.

    Args:
        request: as it was at first.
        begun: who answered last, if anybody did: its model and its seed stay in force, and once there are tokens, its
            weights too.
        token_ids: what was delivered: the answer goes on after it.
        attempts: how many there were.
    """
    if begun is not None:
        request = replace(request.with_seed(begun.seed), model=begun.model or request.model)
        if token_ids and _known(begun.fingerprint):
            request = replace(request, begun=begun.fingerprint)
    emitted = (*request.emitted_token_ids, *token_ids)
    return replace(request, attempt=request.attempt + attempts, emitted_token_ids=emitted)


def check_goes_on(begun: Started, now: Started, delivered: int) -> None:
    """Raises ResumeFailedError unless `now` can go on with an answer of which so many tokens came under `begun`."""
    if now.model != begun.model:
        differs = f"answers as {now.model}, not as {begun.model}"
    elif _known(begun.fingerprint) and not now.fingerprint.may_continue(begun.fingerprint):
        differs = f"has other weights or tokens for {now.model}"
    else:
        return
    raise ResumeFailedError(
        f"after {delivered} tokens the answer cannot go on: {now.worker_address or 'the next worker'} {differs}",
        remedy="Send the request again, from its beginning",
        metadata={"delivered_tokens": str(delivered)},
    )


def _known(fingerprint: Fingerprint) -> bool:
    return bool(fingerprint.weights or fingerprint.tokenizer)
