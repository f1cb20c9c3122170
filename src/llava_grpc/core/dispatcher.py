"""Dispatch: the registry, a strategy and the queues together decide who gets a request and when.

Laws:
1. Late binding: a worker is given only what it has room for (slots and KV cache); the rest waits here, in one queue a
   model, and is given to whichever worker has room first. Nobody who comes later overtakes those who wait but by the
   queue's own order, and an answer that has begun: who reads it is waiting in the middle of a sentence. It waits in a
   line of its own for a worker that can go on with it, also while there is none.
2. Every assignment is released exactly once in effect, however often `release` is called, and even if its worker was
   taken off the register meanwhile.
3. What is expired is never dispatched.
4. A choice costs what its model's workers are many, in array operations; nothing else looks at all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from random import Random

import numpy as np

from llava_grpc.core.admission import RETRY_WHEN_FULL, AdmissionQueue, Entry, QueueLimits, ServiceCounters
from llava_grpc.core.columns import Rows
from llava_grpc.core.history import Decision, History
from llava_grpc.core.pace import ReleasePace, ServicePace
from llava_grpc.core.registry import Registry
from llava_grpc.core.strategies import Snapshot, Strategy
from llava_grpc.core.stream import Fingerprint, Queued
from llava_grpc.core.worker import Worker
from llava_grpc.errors import (
    AllSlotsTakenError,
    AllSpeedsZeroError,
    DeadlineExceededError,
    LlavaGrpcError,
    ModelNotFoundError,
    ModelRequiredError,
    NoLiveWorkerError,
    QueueFullError,
)

BEGUN_MAY_WAIT = 2**31
"""As many begun answers as there are streams: bounded by time alone."""
TELL_EVERY = 1.0
"""Seconds for which a ranking of those who wait is good enough to tell them their places by."""


@dataclass(slots=True, eq=False)
class Assignment:
    """A request for `model` given to one life of a worker. `kv_tokens`, `unread`: what is promised, see `Worker`."""

    worker: Worker
    model: str
    key: str
    kv_tokens: int
    unread: int
    released: bool = False

    @property
    def address(self) -> str:
        return self.worker.address

    @property
    def incarnation(self) -> str:
        return self.worker.incarnation


_Wanted = tuple[str, Fingerprint | None]
"""What a line waits for: a model's worker, of any fingerprint or to resume an answer of that one."""


@dataclass(slots=True)
class _Line:
    """What waits, and how fast it moves."""

    queue: AdmissionQueue
    pace: ReleasePace = field(default_factory=ReleasePace)
    ranking: dict[str, int] = field(default_factory=dict)
    ranked_at: float = -np.inf


@dataclass(slots=True)
class Dispatcher:
    """See the module. `limits` of length 0 turn waiting off. `strategy_name` is for the records."""

    registry: Registry
    strategy: Strategy
    random: Random = field(default_factory=Random)
    limits: QueueLimits = field(default_factory=lambda: QueueLimits(length=0))
    counters: ServiceCounters = field(default_factory=ServiceCounters)
    history: History = field(default_factory=History)
    strategy_name: str = ""
    _lines: dict[_Wanted, _Line] = field(default_factory=dict)
    _paces: dict[str, ServicePace] = field(default_factory=dict)
    _turned_away: list[tuple[Entry, LlavaGrpcError]] = field(default_factory=list)

    # -------------------------------------------------------------------------------------------------- to a worker

    def resolve(self, model: str) -> str:
        """The name to ask workers for: the model's proper one, or the only model's where none was given.

        Raises:
            ModelRequiredError: none was given and several are served.
            NoLiveWorkerError: none was given and none is served.
        """
        if model:
            return self.registry.canonical(model)
        names = self.registry.model_names()
        if not names:
            raise NoLiveWorkerError("no worker is registered")
        if len(names) > 1:
            raise ModelRequiredError(f"several models are served ({_listed(names)}) and the request names none")
        return names[0]

    def assign(self, model: str, entry: Entry, now: float, tried: Collection[str] = ()) -> Assignment | None:
        """Choose a worker for `model` (a resolved name), leaving out the incarnations in `tried`, and count the request
        in; None where those who are well have no room.

        Raises:
            ModelNotFoundError: nobody ever served it.
            NoLiveWorkerError: those who do are gone, suspect, draining, or tried already.
            AllSpeedsZeroError: all who are well advertise speed 0.
        """
        registry, columns, demand = self.registry, self.registry.columns, entry.demand
        rows = registry.rows(model) if entry.begun is None else registry.rows_to_resume(model, entry.begun)
        kv_tokens = demand.prompt_tokens + demand.most_answer_tokens
        fit = columns.open[rows]
        if columns.kv_bounded:
            fit &= columns.kv_room[rows] >= kv_tokens
        if tried:
            fit &= ~np.isin(rows, registry.rows_of(tried))
        roomy = rows[fit]
        if not len(roomy):
            self._check_served(model, rows, now, tried)
            return None
        affinity = registry.affinity
        snapshot = Snapshot(roomy, columns.taken(roomy, affinity.tokens(demand), affinity.pictures(demand)))
        pick = self.strategy(snapshot, demand, self.random)
        row = int(roomy[pick.index])
        unread = max(0, demand.prompt_tokens - int(snapshot.held_tokens[pick.index]))
        decision = Decision.of(now, self.strategy_name, snapshot, pick, registry.addresses)
        self.history.open(entry, model).decisions.append(decision)
        worker = registry.take(row, demand, kv_tokens, unread)
        return Assignment(worker, model, entry.key, kv_tokens, unread)

    def was_read(self, assignment: Assignment, now: float) -> None:
        """The request's first token came."""
        if assignment.released:
            return
        self.registry.was_read(assignment.worker, assignment.unread)
        assignment.unread = 0
        if (record := self.history.get(assignment.key)) is not None and record.first_token_at is None:
            record.first_token_at = now

    def release(self, assignment: Assignment, now: float) -> None:
        """The request's stream with that worker is over, however it ended."""
        if assignment.released:
            return
        assignment.released = True
        self.registry.give_back(assignment.worker, assignment.kv_tokens, assignment.unread)
        if (line := self._lines.get((assignment.model, None))) is not None:
            line.pace.record(now)

    def finish(self, key: str, now: float, outcome: str, prompt_tokens: int = 0, answer_tokens: int = 0) -> None:
        """The request is over; `outcome` as in `history.Record`. Tokens as counted by the worker, where known."""
        record = self.history.get(key)
        if record is None or record.outcome:
            return
        record.ended_at, record.outcome = now, outcome
        record.prompt_tokens, record.answer_tokens = prompt_tokens, answer_tokens
        if outcome == "ok" and record.decisions:
            pace = self._paces.setdefault(record.model, ServicePace())
            pace.record(now - record.decisions[-1].at, answer_tokens)

    # --------------------------------------------------------------------------------------------------- or to wait

    def admit(self, model: str, entry: Entry, now: float) -> Assignment | None:
        """A worker at once, where one has room and nobody waits; else None: the request waits (see `place`, which is to
        be called then, since somebody else may have had to make way).

        Raises:
            DeadlineExceededError: it has passed already.
            QueueFullError: as many wait as may.
            AllSlotsTakenError: no room, and waiting is off.
            The errors of `assign`.
        """
        if entry.deadline is not None and entry.deadline <= now:
            raise DeadlineExceededError("the deadline had passed before a worker could be asked")
        if entry.begun is not None:
            return self._admit_begun(model, entry, now)
        record = self.history.open(entry, model)
        line = self._lines.get((model, None))
        if line is None or not len(line.queue):
            assignment = self.assign(model, entry, now)
            if assignment is not None:
                self.counters.charge(entry.tenant, prompt=entry.prompt_tokens)
                return assignment
            if self.limits.length == 0:
                raise self._no_room(model)
        else:
            self._check_served(model, self.registry.rows(model), now)
        line = self._line((model, None), self.limits)
        pace = self._paces.get(model)
        needs = pace.expected(entry.demand.most_answer_tokens) if pace is not None else 0.0
        displaced = line.queue.push(entry, needs)
        if displaced is not None:
            self._turned_away.append((displaced, line.queue.full()))
        record.ahead = len(line.queue) - 1
        return None

    def _admit_begun(self, model: str, entry: Entry, now: float) -> Assignment | None:
        """An answer that has begun waits for whoever can go on with it, also where nobody is well just now."""
        try:
            assignment = self.assign(model, entry, now)
        except NoLiveWorkerError:
            assignment = None
        if assignment is not None:
            self.counters.charge(entry.tenant, prompt=entry.prompt_tokens)
            return assignment
        limits = QueueLimits(length=BEGUN_MAY_WAIT, wait=self.limits.wait)
        self._line((model, entry.begun), limits).queue.push(entry)
        return None

    def place(self, now: float) -> Iterator[tuple[Entry, Assignment | LlavaGrpcError]]:
        """Those who wait no longer: each with its worker, or with what to tell it. To be called when room may have
        come, and at `next_expiry`."""
        yield from self._turned_away
        self._turned_away.clear()
        freed, self.registry.freed = self.registry.freed, set()
        begun_first = sorted(self._lines.items(), key=lambda item: item[0][1] is None)
        for wanted, line in begun_first:
            model, begun = wanted
            if expired := line.queue.expire(now):
                yield from self._why_in_vain(model, expired)
                freed.add(model)  # who goes next may need less
            if model in freed:
                yield from self._give_room(model, line, now)
            if not len(line.queue) and (begun is not None or not self._busy(model)):
                del self._lines[wanted]

    def _why_in_vain(
        self, model: str, expired: list[tuple[Entry, LlavaGrpcError]]
    ) -> Iterator[tuple[Entry, LlavaGrpcError]]:
        """Whose wait is over is told of a full fleet only if there is one."""
        well = self.registry.columns.alive[self.registry.rows(model)].any()
        for entry, error in expired:
            if not well and isinstance(error, QueueFullError):
                error = NoLiveWorkerError(f"no worker that serves {model!r} has come back")
            yield entry, error

    def _give_room(self, model: str, line: _Line, now: float) -> Iterator[tuple[Entry, Assignment]]:
        while (entry := line.queue.peek()) is not None:
            try:
                assignment = self.assign(model, entry, now)
            except LlavaGrpcError:
                return  # nobody is well just now: they wait on, within their limit
            if assignment is None:
                return
            line.queue.take()
            yield entry, assignment

    def forget(self, model: str, entry: Entry) -> None:
        """A request that waits was cancelled."""
        line = self._lines.get((model, entry.begun))
        if line is not None and line.queue.remove(entry.key) is not None:
            self.registry.freed.add(model)  # who goes next may need less

    def outlook(self, model: str, entry: Entry, now: float) -> Queued:
        """Where a request that waits stands, as of TELL_EVERY ago at most.

        Raises:
            KeyError: it does not wait.
        """
        line = self._lines[model, entry.begun]
        if now - line.ranked_at >= TELL_EVERY or entry.key not in line.ranking:
            line.ranking, line.ranked_at = line.queue.ranking(), now
        position = line.ranking[entry.key]
        return Queued(position, line.pace.wait(position))

    def waiting(self, model: str) -> int:
        """How many wait for a model."""
        return sum(len(line.queue) for (waited_for, _), line in self._lines.items() if waited_for == model)

    def next_expiry(self) -> float | None:
        """When the next one that waits runs out of time; None where nobody waits."""
        return min(
            (due for line in self._lines.values() if (due := line.queue.next_expiry()) is not None), default=None
        )

    # --------------------------------------------------------------------------------------------------------- within

    def _check_served(self, model: str, rows: Rows, now: float, tried: Collection[str] = ()) -> None:
        """Raise the reason why none of those rows will have room in a while, where that is so."""
        columns = self.registry.columns
        alive = rows[columns.alive[rows]]
        if tried:
            alive = alive[~np.isin(alive, self.registry.rows_of(tried))]
        if len(alive):
            if not columns.have_speed(alive):
                raise AllSpeedsZeroError(f"every worker that serves {model!r} advertises speed 0")
            return
        if self.limits.length and self.registry.may_return(model, now, tried):
            return
        names = self.registry.model_names()
        if self.registry.was_served(model):
            raise NoLiveWorkerError(f"no worker that serves {model!r} is well")
        if not names:
            raise NoLiveWorkerError("no worker is registered")
        raise ModelNotFoundError(f"no model is named {model!r}; served are {_listed(names)}")

    def _no_room(self, model: str) -> AllSlotsTakenError:
        slots = sum(worker.registration.slots for worker in self.registry.serving(model))
        return AllSlotsTakenError(f"all {slots} slots for {model!r} are taken", retry_after=RETRY_WHEN_FULL)

    def _line(self, wanted: _Wanted, limits: QueueLimits) -> _Line:
        if wanted not in self._lines:
            self._lines[wanted] = _Line(AdmissionQueue(limits, self.counters))
        return self._lines[wanted]

    def _busy(self, model: str) -> bool:
        """Whether its pace is worth remembering."""
        return not self.registry.columns.are_idle(self.registry.rows(model))


def _listed(names: list[str], most: int = 10) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
