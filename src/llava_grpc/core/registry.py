"""The live set: who is there, what they serve, how busy they are, what they are likely to hold.

Laws:
1. An address has at most one live incarnation; what an earlier one says is answered "unknown".
2. Liveness is the time that this registry is handed (the controller's monotonic clock), never a sender's.
3. In-flight counts are this controller's own. A heartbeat's load tells only what others put on the worker: the excess
   over our own count. It reconciles, it never overwrites. Being as old as the heartbeat, it weighs in the choice
   between workers but never says that one is full: the worker owns its slots, and declines.
4. `columns` say the same as the workers, always: whatever changes a worker here writes its row.
5. Silence is held against a worker only where it could have been heard: after a stall of the controller there is a
   grace (`core.stall`).
6. Nothing is looked for among all workers to know who expires next: they are kept in order of their last sign.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from llava_grpc.core.affinity import DEFAULT_PICTURES, DEFAULT_PREFIX_TOKENS, AffinityIndex
from llava_grpc.core.columns import Columns, Rows
from llava_grpc.core.demand import Demand
from llava_grpc.core.stall import StallWatch
from llava_grpc.core.states import WorkerEvent, WorkerState
from llava_grpc.core.stream import Fingerprint, ModelCard
from llava_grpc.core.worker import Registration, Worker

RETURNS_WITHIN = 3.0
"""Seconds in which a worker in doubt is likely to be back, if it lives: it is asked after one and after two more."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model of the fleet and how many live workers serve it."""

    card: ModelCard
    workers: int


@dataclass(slots=True)
class Registry:
    """See the module. `expiry` is in seconds, as are all times handed in as `now`, which never goes back."""

    expiry: float
    stalls: StallWatch = field(default_factory=StallWatch)
    columns: Columns = field(default_factory=Columns)
    affinity: AffinityIndex = field(default_factory=AffinityIndex)
    freed: set[str] = field(default_factory=set)
    """Names and aliases of models that may have room again; whoever uses it clears it."""
    on_change: Callable[[], None] = lambda: None
    """Called when who is there, what is served or who may get work has changed; it must not look here before later."""
    addresses: list[str] = field(default_factory=list)
    """Of the workers, by row."""
    _workers: dict[str, Worker] = field(default_factory=dict)
    _by_model: dict[str, dict[str, Worker]] = field(default_factory=dict)
    _by_alias: dict[str, dict[str, Worker]] = field(default_factory=dict)
    _ever_served: set[str] = field(default_factory=set)
    _by_incarnation: dict[str, Worker] = field(default_factory=dict)
    _rows: dict[str, Rows] = field(default_factory=dict)
    """By name or alias, as far as asked for since the last change of membership."""
    _canonical: dict[str, str] = field(default_factory=dict)
    """Likewise."""
    _silent: OrderedDict[str, float] = field(default_factory=OrderedDict)
    """Addresses of those who owe heartbeats, longest silent first, and the time awake of their last sign."""

    # ------------------------------------------------------------------------------------------------- membership

    def register(self, registration: Registration, now: float) -> Worker | None:
        """Put a worker that was reached on the register. Returns the one it replaces, if another life was there."""
        present = self._workers.get(registration.address)
        replaced, draining = None, False
        if present is not None and present.incarnation == registration.incarnation:
            # The same life again (it was told "unknown" elsewhere, or repeats itself): its streams still run.
            self._unlist(present)
            worker, draining = present, present.state is WorkerState.DRAINING
            worker.registration, worker.last_sign, worker.state = registration, now, WorkerState.JOINING
        else:
            if present is not None:
                self._remove(present)
                present.see(WorkerEvent.REPLACED)
                replaced = present
            worker = Worker(registration, self.columns.add(), registered_at=now, last_sign=now)
        worker.see(WorkerEvent.REACHED)
        if draining:
            worker.see(WorkerEvent.DRAIN)
        self._list(worker)
        self._heard(worker, now)
        return replaced

    def heartbeat(self, address: str, incarnation: str, sequence: int, running: int, waiting: int, now: float) -> bool:
        """Take a sign of life; False where no such life is known. An old sequence number changes no load."""
        worker = self.find(address, incarnation)
        if worker is None:
            return False
        self._heard(worker, now)
        if worker.hung_at is None:
            self._see(worker, WorkerEvent.SIGN_OF_LIFE)
        if sequence > worker.sequence:
            worker.sequence = sequence
            worker.reported_running, worker.reported_waiting = running, waiting
            worker.external = max(0, running + waiting - worker.in_flight)
            self._write(worker)
        return True

    def deregister(self, address: str, incarnation: str) -> Worker | None:
        """Take a worker off at its own wish; None where no such life is known."""
        worker = self.find(address, incarnation)
        if worker is not None:
            worker.see(WorkerEvent.LEFT)
            self._remove(worker)
        return worker

    def expire(self, now: float) -> list[Worker]:
        """Take off and return the workers that were silent for longer than `expiry`. A tick for `stalls`."""
        self.stalls.tick(now)
        expired = []
        while (due := self.next_expiry()) is not None and due <= now:
            worker = self._workers[next(iter(self._silent))]
            worker.see(WorkerEvent.EXPIRED)
            self._remove(worker)
            expired.append(worker)
        return expired

    def next_expiry(self) -> float | None:
        """When the next worker expires if nothing more is heard and no stall comes; None where none can."""
        if not self._silent:
            return None
        address, awake = next(iter(self._silent.items()))
        return max(self._workers[address].last_sign + self.expiry, self.stalls.excused_until(awake + self.expiry))

    def answered(self, address: str, incarnation: str, running: int = 0, tokens: int = 0) -> None:
        """A worker in doubt answered a call of ours: it is well, unless it hangs. Heartbeats stay owed.

        It runs so many requests, and has made so many tokens in its life.
        """
        worker = self.find(address, incarnation)
        if worker is None or (running and tokens == worker.hung_at):
            return
        worker.hung_at = None
        self._see(worker, WorkerEvent.SIGN_OF_LIFE)

    def hangs(self, address: str, incarnation: str, tokens: int, now: float) -> None:
        """A worker answers, but has made no token for too long: no work for it until it makes one or is idle."""
        worker = self.find(address, incarnation)
        if worker is not None:
            worker.hung_at = tokens
            self.call_failed(address, incarnation, now)

    def call_failed(self, address: str, incarnation: str, now: float) -> None:
        """The transport to a worker broke: no work for it until its next sign of life."""
        worker = self.find(address, incarnation)
        if worker is not None:
            if worker.state is WorkerState.ALIVE:
                worker.doubted_at = now
            self._see(worker, WorkerEvent.CALL_FAILED)

    def drain(self, address: str, incarnation: str) -> None:
        """A worker finishes what it has: no work for it any more in this life."""
        worker = self.find(address, incarnation)
        if worker is not None:
            self._see(worker, WorkerEvent.DRAIN)

    def may_return(self, name: str, now: float, tried: Collection[str] = ()) -> bool:
        """Whether a worker of that model came in doubt so lately that it may well be back at once. None of `tried`."""
        return any(
            worker.state is WorkerState.SUSPECT
            and now - worker.doubted_at < RETURNS_WITHIN
            and worker.incarnation not in tried
            for worker in self.serving(name)
        )

    def find(self, address: str, incarnation: str) -> Worker | None:
        """The worker of that address in that life."""
        worker = self._workers.get(address)
        return worker if worker is not None and worker.incarnation == incarnation else None

    def at(self, address: str) -> Worker | None:
        """The worker of that address, in whatever life."""
        return self._workers.get(address)

    def workers(self) -> list[Worker]:
        """All of them, in order of address."""
        return [self._workers[address] for address in sorted(self._workers)]

    def _heard(self, worker: Worker, now: float) -> None:
        worker.last_sign = max(worker.last_sign, now)
        if worker.registration.check_heartbeat:
            self._silent[worker.address] = self.stalls.awake(now)
            self._silent.move_to_end(worker.address)

    def _list(self, worker: Worker) -> None:
        registration = worker.registration
        self._workers[worker.address] = self._by_incarnation[worker.incarnation] = worker
        for card in registration.cards:
            self._by_model.setdefault(card.name, {})[registration.address] = worker
            for alias in card.aliases:
                self._by_alias.setdefault(alias, {})[registration.address] = worker
        self._ever_served.update(worker.names)
        self._membership_changed()
        while len(self.addresses) <= worker.row:
            self.addresses.append("")
        self.addresses[worker.row] = worker.address
        self._write(worker)
        self.freed.update(worker.names)

    def _unlist(self, worker: Worker) -> None:
        del self._workers[worker.address]
        self._by_incarnation.pop(worker.incarnation, None)
        self._silent.pop(worker.address, None)
        for card in worker.registration.cards:
            _discard(self._by_model, card.name, worker.address)
            for alias in card.aliases:
                _discard(self._by_alias, alias, worker.address)
        self._membership_changed()

    def _remove(self, worker: Worker) -> None:
        self._unlist(worker)
        self.affinity.forget(worker.row)
        self.columns.drop(worker.row)

    def _membership_changed(self) -> None:
        self._rows.clear()
        self._canonical.clear()
        self.on_change()

    def _see(self, worker: Worker, event: WorkerEvent) -> None:
        before = worker.state
        worker.see(event)
        if worker.state is not before:
            self._write(worker)
            self.on_change()
            if worker.state is WorkerState.ALIVE:
                self.freed.update(worker.names)

    def _write(self, worker: Worker) -> None:
        """Its row says what it says."""
        registration = worker.registration
        # Whoever runs nothing takes any request: whether it fits at all is the worker's to say.
        known = registration.kv_tokens and worker.in_flight
        self.columns.write(
            worker.row,
            alive=worker.state is WorkerState.ALIVE,
            speed=registration.speed,
            queue=worker.queue_length,
            room=registration.slots - worker.in_flight,
            unread=worker.unread,
            kv_room=registration.kv_tokens - worker.promised if known else math.inf,
        )

    # ------------------------------------------------------------------------------------------------------- requests

    def take(self, row: int, demand: Demand, kv_tokens: int, unread: int) -> Worker:
        """Count a request in, which may take so many tokens of KV cache, and has so many prompt tokens to be read."""
        worker = self._workers[self.addresses[row]]
        worker.in_flight += 1
        worker.promised += kv_tokens
        worker.unread += unread
        self._write(worker)
        registration = worker.registration
        self.affinity.remember(
            row,
            demand,
            registration.kv_tokens or DEFAULT_PREFIX_TOKENS,
            registration.cached_pictures or DEFAULT_PICTURES,
        )
        return worker

    def was_read(self, worker: Worker, unread: int) -> None:
        """A request counted in has had its first token: its prompt holds nobody up any more."""
        if self._is_here(worker):
            worker.unread -= unread
            self._write(worker)

    def give_back(self, worker: Worker, kv_tokens: int, unread: int) -> None:
        """Count a request out; with the prompt tokens that were never read."""
        if self._is_here(worker):
            worker.in_flight -= 1
            worker.promised -= kv_tokens
            worker.unread -= unread
            self._write(worker)
            self.freed.update(worker.names)

    def _is_here(self, worker: Worker) -> bool:
        """Whether it is on the register and has been since: one that was dropped and came back counts from nothing."""
        return self._workers.get(worker.address) is worker

    # ----------------------------------------------------------------------------------------------------- models

    def serving(self, name: str) -> Iterable[Worker]:
        """Workers on the register that serve the model of that name; if there is none, of that alias."""
        return (self._by_model.get(name) or self._by_alias.get(name) or {}).values()

    def rows(self, name: str) -> Rows:
        """Rows, ascending, of those workers."""
        rows = self._rows.get(name)
        if rows is None:
            rows = np.array(sorted(worker.row for worker in self.serving(name)), dtype=np.intp)
            rows.setflags(write=False)
            self._rows[name] = rows
        return rows

    def rows_to_resume(self, name: str, begun: Fingerprint) -> Rows:
        """Those of them on which an answer begun under that fingerprint can go on: token for token, where such a worker
        is well; else without a gap or a double."""
        near, equal = [], []
        for worker in self.serving(name):
            for card in worker.registration.cards:
                if card.answers_to(name) and card.fingerprint.may_continue(begun):
                    near.append(worker.row)
                    if card.fingerprint == begun and worker.state is WorkerState.ALIVE:
                        equal.append(worker.row)
        return np.array(sorted(equal or near), dtype=np.intp)

    def rows_of(self, incarnations: Iterable[str]) -> list[int]:
        """Rows of those of these lives that are on the register."""
        return [worker.row for name in incarnations if (worker := self._by_incarnation.get(name)) is not None]

    def canonical(self, name: str) -> str:
        """The model's proper name, where `name` is an alias that all who have it use for the same model."""
        if name in self._by_model:
            return name
        known = self._canonical.get(name)
        if known is None and name in self._by_alias:
            meant = {
                card.name
                for worker in self._by_alias[name].values()
                for card in worker.registration.cards
                if name in card.aliases
            }
            known = self._canonical[name] = meant.pop() if len(meant) == 1 else name
        return name if known is None else known

    def was_served(self, name: str) -> bool:
        """Whether anybody ever served a model of that name or alias."""
        return name in self._ever_served

    def model_names(self) -> list[str]:
        """Names of the models of workers on the register, in order."""
        return sorted(self._by_model)

    def models(self) -> Iterator[ListedModel]:
        """The union over the workers that may get work, in order of name.

        Where workers differ, aliases are united, sight must be everybody's, the context is the shortest, and the
        fingerprint is empty.
        """
        for name in self.model_names():
            cards = [
                card
                for worker in self._by_model[name].values()
                if worker.state is WorkerState.ALIVE
                for card in worker.registration.cards
                if card.name == name
            ]
            if cards:
                yield ListedModel(_united(cards), len(cards))


def _united(cards: list[ModelCard]) -> ModelCard:
    fingerprints = {card.fingerprint for card in cards}
    return ModelCard(
        name=cards[0].name,
        aliases=tuple(sorted({alias for card in cards for alias in card.aliases})),
        sees_images=all(card.sees_images for card in cards),
        context_tokens=min(card.context_tokens for card in cards),
        fingerprint=fingerprints.pop() if len(fingerprints) == 1 else Fingerprint(quantization=""),
    )


def _discard(index: dict[str, dict[str, Worker]], name: str, address: str) -> None:
    entries = index.get(name)
    if entries is not None:
        entries.pop(address, None)
        if not entries:
            del index[name]
