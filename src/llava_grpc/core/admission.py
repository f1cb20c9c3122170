"""Who waits and who goes next, while every slot is taken: one queue a model.

The order, and why: priority class first, because that is what it is for; then the tenant that was served least, by the
virtual token counter, so that nobody's flood holds up somebody else; then the earliest deadline, then the earliest
arrival. A queue is bounded in length and in time: what cannot be served soon is told so at once.

Whose deadline leaves less time than an answer needs is turned away while it waits: served, it would take the time of
one that can still be answered, and under lasting overload none would be in time. And where the queue is full, the
tenant with the most entries in it gives one up (longest queue drop: Suter et al., INFOCOM 1998), so that a flood fills
the queue for itself alone.

The virtual token counter is Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each tenant's
counter grows by the tokens served to it, prompts weighing less than answers; the waiting tenant with the least counter
goes first; one that comes back after a pause is lifted to the least counter of those that wait, so that nobody saves up
idle time. Counters are compared within a priority class and a model; service counts wherever it was given.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from llava_grpc.core.demand import NOTHING, Demand
from llava_grpc.core.prompt import Priority
from llava_grpc.core.stream import Fingerprint
from llava_grpc.errors import DeadlineExceededError, LlavaGrpcError, QueueFullError

PROMPT_WEIGHT, ANSWER_WEIGHT = 1.0, 2.0
"""Of a token, in a tenant's counter: as in the paper, an answer's token costs about twice a prompt's."""
RETRY_WHEN_FULL = 1.0
"""Seconds after which a client that was not served is told to try again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A request that waits. Times in seconds on the clock that `now` is of; `key` names it, once.

    `begun`: what its answer was begun under, where it was: it is to be resumed on a worker like that.
    """

    key: str
    request_id: str = ""
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    demand: Demand = NOTHING
    deadline: float | None = None
    arrived: float
    begun: Fingerprint | None = None

    @property
    def prompt_tokens(self) -> int:
        """An estimate: the controller does not tokenize."""
        return self.demand.prompt_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """`length`: entries that may wait for one model; 0 turns waiting off. `wait`: seconds that one may wait."""

    length: int = 256
    wait: float = 60.0


@dataclass(slots=True)
class ServiceCounters:
    """What each tenant was served, as virtual tokens. One for all queues of a controller."""

    _served: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, tenant: str) -> float:
        return self._served.get(tenant, 0.0)

    def charge(self, tenant: str, *, prompt: int = 0, answer: int = 0) -> None:
        """Count tokens served to a tenant."""
        self._served[tenant] = self[tenant] + PROMPT_WEIGHT * prompt + ANSWER_WEIGHT * answer

    def lift(self, tenant: str, least: float) -> None:
        """A tenant that was away saves nothing up."""
        self._served[tenant] = max(self[tenant], least)


_Rank = tuple[float, float, int]


class AdmissionQueue:
    """The requests that wait for one model; see the module.

    Pushing, taking and removing cost O(log n) and O(tenants that wait).
    """

    def __init__(self, limits: QueueLimits, counters: ServiceCounters) -> None:
        self._limits = limits
        self._counters = counters
        self._entries: dict[str, Entry] = {}
        self._ranks: dict[str, _Rank] = {}
        # Heaps forget who was taken off when they come to it: an item counts while its rank is its key's.
        self._waiting: dict[tuple[Priority, str], list[tuple[_Rank, str]]] = {}
        self._counts: dict[tuple[Priority, str], int] = {}
        self._due: list[tuple[float, _Rank, str]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def push(self, entry: Entry, needs: float = 0.0) -> Entry | None:
        """Have a request wait that needs so many seconds once it is served; the one that had to make way, if any.

        Raises:
            QueueFullError: as many wait as may, and none that should make way.
            ValueError: its key waits already.
        """
        if entry.key in self._entries:
            raise ValueError(f"{entry.key} waits already")
        displaced = self._displace(entry) if len(self._entries) >= self._limits.length else None
        self._lift(entry)
        rank = (_deadline(entry), entry.arrived, next(self._order))
        line = (entry.priority, entry.tenant)
        self._entries[entry.key], self._ranks[entry.key] = entry, rank
        self._counts[line] = self._counts.get(line, 0) + 1
        heapq.heappush(self._waiting.setdefault(line, []), (rank, entry.key))
        heapq.heappush(self._due, (self._expires(entry, needs), rank, entry.key))
        return displaced

    def peek(self) -> Entry | None:
        """The one that goes next; None where nobody waits."""
        line = self._next_line()
        return None if line is None else self._entries[self._waiting[line][0][1]]

    def take(self) -> Entry | None:
        """The one that goes next, off the queue, its prompt charged to its tenant; None where nobody waits."""
        line = self._next_line()
        if line is None:
            return None
        entry = self.remove(heapq.heappop(self._waiting[line])[1])
        assert entry is not None, "the head of a line waits"
        self._counters.charge(entry.tenant, prompt=entry.prompt_tokens)
        return entry

    def remove(self, key: str) -> Entry | None:
        """Take one off that was cancelled; None where it does not wait."""
        self._ranks.pop(key, None)
        entry = self._entries.pop(key, None)
        if entry is not None:
            line = (entry.priority, entry.tenant)
            self._counts[line] -= 1
            if not self._counts[line]:
                del self._counts[line]
        return entry

    def expire(self, now: float) -> list[tuple[Entry, LlavaGrpcError]]:
        """Take off whose time is up, each with what to tell it."""
        expired = []
        while self._due and self._due[0][0] <= now:
            due, rank, key = heapq.heappop(self._due)
            if self._ranks.get(key) == rank:
                entry = self._entries[key]
                self.remove(key)
                expired.append((entry, self._too_late(entry, due)))
        return expired

    def next_expiry(self) -> float | None:
        """When the next one's time is up; None where nobody waits."""
        while self._due and self._ranks.get(self._due[0][2]) != self._due[0][1]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def ranking(self) -> dict[str, int]:
        """How many go before each as things stand, 0 for the next; an estimate, since counters move while they wait.
        Costs O(n log n)."""

        def rank(key: str) -> tuple[float, ...]:
            entry = self._entries[key]
            return (entry.priority, self._counters[entry.tenant], *self._ranks[key])

        return {key: position for position, key in enumerate(sorted(self._entries, key=rank))}

    def full(self) -> QueueFullError:
        """What to tell one that finds no place."""
        return QueueFullError(
            f"{len(self._entries)} requests wait already, the most that may", retry_after=RETRY_WHEN_FULL
        )

    def _displace(self, entry: Entry) -> Entry:
        """Take off who makes way for `entry`: of the least urgent class the last of the tenant with the most entries.

        Raises:
            QueueFullError: that class is more urgent than `entry`'s, or its tenant would then be the one with the most.
        """
        if not self._counts:
            raise self.full()
        (priority, tenant), count = max(self._counts.items(), key=lambda line: (line[0][0], line[1]))
        mine = self._counts.get((entry.priority, entry.tenant), 0)
        if priority < entry.priority or (priority == entry.priority and count <= mine + 1):
            raise self.full()
        last = max(item for item in self._waiting[priority, tenant] if self._ranks.get(item[1]) == item[0])
        removed = self.remove(last[1])
        assert removed is not None, "what waits can be removed"
        return removed

    def _lift(self, entry: Entry) -> None:
        tenants = {tenant for priority, tenant in self._counts if priority is entry.priority}
        if tenants and entry.tenant not in tenants:
            self._counters.lift(entry.tenant, min(self._counters[tenant] for tenant in tenants))

    def _next_line(self) -> tuple[Priority, str] | None:
        """The class and tenant whose turn it is."""
        best: tuple[Priority, float, _Rank] | None = None
        chosen = None
        for line in list(self._waiting):
            head = self._head(line)
            if head is None:
                del self._waiting[line]
                continue
            rank = (line[0], self._counters[line[1]], head[0])
            if best is None or rank < best:
                best, chosen = rank, line
        return chosen

    def _head(self, line: tuple[Priority, str]) -> tuple[_Rank, str] | None:
        """The first of a tenant's line that still waits."""
        heap = self._waiting[line]
        while heap and self._ranks.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0] if heap else None

    def _expires(self, entry: Entry, needs: float) -> float:
        latest = entry.arrived + self._limits.wait
        return latest if entry.deadline is None else min(latest, entry.deadline - needs)

    def _too_late(self, entry: Entry, due: float) -> LlavaGrpcError:
        if entry.deadline is not None and due < entry.arrived + self._limits.wait:
            left = entry.deadline - due
            return DeadlineExceededError(
                "no slot came free before the deadline"
                if left <= 0
                else f"no slot came free in time: answers take {left:.1f} s at present, and the deadline is sooner"
            )
        return QueueFullError(f"no slot came free within {self._limits.wait:g} s", retry_after=RETRY_WHEN_FULL)


def _deadline(entry: Entry) -> float:
    return entry.deadline if entry.deadline is not None else float("inf")
