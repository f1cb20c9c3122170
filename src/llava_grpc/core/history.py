"""What was decided and why: a record of each request, kept in a ring, for people and for replaying.

Law: nothing here is read by dispatch; a record may be dropped at any time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llava_grpc.core.admission import Entry
from llava_grpc.core.columns import Floats
from llava_grpc.core.strategies import Pick, Snapshot

KEPT = 4096
"""Records."""
SHOWN = 8
"""Candidates of a decision that are recorded: the best, and the chosen one among them."""


@dataclass(frozen=True, slots=True)
class Considered:
    """A candidate as it stood when a decision was made; see `strategies.Snapshot` for the figures."""

    address: str
    score: float
    speed: float
    queue: int
    room: int
    unread: int
    held_tokens: int
    held_pictures: int


@dataclass(frozen=True, slots=True)
class Decision:
    """A worker was chosen. `candidates`: how many had room. Times as `now` is.

    What was considered is kept as it came and made readable when somebody asks: most are never read.
    """

    at: float
    strategy: str
    candidates: int
    pick: Pick
    """Its indexes are those of `snapshot`."""
    snapshot: Snapshot
    """Of those shown alone."""
    addresses: tuple[str, ...]
    """Of these."""

    @classmethod
    def of(cls, at: float, strategy: str, snapshot: Snapshot, pick: Pick, addresses: Sequence[str]) -> Decision:
        """The record of a choice. `addresses`: of all workers, by row."""
        candidates = len(snapshot)
        if candidates > SHOWN:
            snapshot, pick = _shown(snapshot, pick)
        named = tuple([addresses[row] for row in snapshot.rows.tolist()])
        return cls(at, strategy, candidates, pick, snapshot, named)

    @property
    def address(self) -> str:
        """Of the one chosen."""
        return self.addresses[self.pick.index]

    @property
    def considered(self) -> list[Considered]:
        """At most SHOWN candidates, the best first, the chosen one among them."""
        snapshot, pick = self.snapshot, self.pick
        weighed = range(len(snapshot)) if pick.considered is None else pick.considered.tolist()
        found = [
            Considered(
                address=self.addresses[index],
                score=float(score),
                speed=float(snapshot.speed[index]),
                queue=int(snapshot.queue[index]),
                room=int(snapshot.room[index]),
                unread=int(snapshot.unread[index]),
                held_tokens=int(snapshot.held_tokens[index]),
                held_pictures=int(snapshot.held_pictures[index]),
            )
            for index, score in zip(weighed, pick.scores.tolist(), strict=True)
        ]
        return sorted(found, key=lambda one: -one.score if pick.most_is_best else one.score)


def _shown(snapshot: Snapshot, pick: Pick) -> tuple[Snapshot, Pick]:
    """Those of many candidates that are worth keeping."""
    scores, chosen = pick.scores, pick.index
    weighed = None if pick.considered is None else pick.considered.tolist()
    if len(scores) > SHOWN:
        best = _best(scores, pick.most_is_best)
        place = chosen if weighed is None else weighed.index(chosen)
        if place not in best:
            best[-1] = place
        scores, weighed = scores.take(best), best if weighed is None else [weighed[one] for one in best]
    assert weighed is not None, "of many candidates, all were weighed or some named"
    return snapshot.of(weighed), Pick(weighed.index(chosen), scores, pick.unit, None, pick.most_is_best)


def _best(scores: Floats, most_is_best: bool) -> list[int]:
    """Where the SHOWN best are, in no order."""
    found = scores.argpartition(-SHOWN)[-SHOWN:] if most_is_best else scores.argpartition(SHOWN)[:SHOWN]
    best: list[int] = found.tolist()
    return best


@dataclass(slots=True)
class Record:
    """A request's way: when it came, who was chosen (several where it was tried again), how it ended.

    `outcome` is "" while it goes on, "ok", or the reason of its error. `ahead`: requests before it in the queue as it
    came; None where it did not wait.
    """

    entry: Entry
    model: str
    ahead: int | None = None
    decisions: list[Decision] = field(default_factory=list)
    first_token_at: float | None = None
    ended_at: float | None = None
    outcome: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0


class History:
    """The records of the last requests, by the key of their entry."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._records: OrderedDict[str, Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        """Oldest first."""
        return iter(self._records.values())

    def open(self, entry: Entry, model: str) -> Record:
        """The request's record; a new one, where it has none."""
        record = self._records.get(entry.key)
        if record is None:
            record = self._records[entry.key] = Record(entry, model)
            if len(self._records) > self._kept:
                self._records.popitem(last=False)
        return record

    def get(self, key: str) -> Record | None:
        """The record of that key, if it is still kept."""
        return self._records.get(key)

    def find(self, request_id: str) -> list[Record]:
        """Records of a request id, oldest first: clients may use one twice."""
        return [record for record in self if record.entry.request_id == request_id]
