"""What a controller remembers of the requests that it dispatched, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from llava_grpc.core.history import Considered
from llava_grpc.core.prompt import Priority


@dataclass(frozen=True, slots=True)
class PieceView:
    """A piece of a prompt. `key`, in hexadecimal, names it and all before it; `tokens` is an estimate."""

    key: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionView:
    """A worker was chosen, `after` so many seconds. `considered`: the best of the candidates, the best first."""

    after: float
    strategy: str
    candidates: int
    address: str
    unit: str
    considered: tuple[Considered, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordView:
    """A request's way. Times in seconds since it arrived; None where it did not come to that, or not yet.

    `outcome` is "" while it goes on, "ok", or the reason of its error; `ahead` are the requests before it in the queue
    as it came, None where it did not wait. `pictures` are digests in hexadecimal.
    """

    request_id: str
    model: str
    tenant: str
    priority: Priority
    arrived_at: datetime
    deadline: float | None
    pieces: tuple[PieceView, ...]
    pictures: tuple[str, ...]
    most_answer_tokens: int
    ahead: int | None
    decisions: tuple[DecisionView, ...]
    first_token: float | None
    ended: float | None
    outcome: str
    prompt_tokens: int
    answer_tokens: int

    @property
    def waited(self) -> float | None:
        """Until the choice of the worker that answered, or was to."""
        return self.decisions[-1].after if self.decisions else None
