"""Registry, queue and dispatcher under any history: nothing leaks, nobody unfit is chosen, every request ends once."""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llava_grpc.core.admission import Entry, QueueLimits
from llava_grpc.core.demand import Demand, Piece
from llava_grpc.core.dispatcher import Assignment, Dispatcher
from llava_grpc.core.prompt import Priority
from llava_grpc.core.registry import Registry
from llava_grpc.core.states import WorkerState
from llava_grpc.core.strategies import STRATEGIES
from llava_grpc.core.stream import Fingerprint, ModelCard
from llava_grpc.core.worker import Registration, Worker
from llava_grpc.errors import LlavaGrpcError

EXPIRY = 90.0
PORTS, LIVES = st.integers(1, 4), st.integers(1, 2)


class Fleet(RuleBasedStateMachine):
    """A controller's core, its workers and its requests, in any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.registry = Registry(expiry=EXPIRY)
        self.dispatcher = Dispatcher(
            self.registry, STRATEGIES["expected_first_token"], Random(0), limits=QueueLimits(length=3, wait=50.0)
        )
        self.asked = 0
        self.sequence = 0
        self.waiting: dict[str, Entry] = {}
        self.running: dict[str, Assignment] = {}
        self.over: list[str] = []

    # ------------------------------------------------------------------------------------------------------- workers

    @rule(port=PORTS, life=LIVES, slots=st.integers(1, 3), speed=st.sampled_from([0.0, 1.0, 4.0]), kv=st.booleans())
    def register(self, port: int, life: int, slots: int, speed: float, kv: bool) -> None:
        self.registry.register(
            Registration(
                address=f"h:{port}",
                incarnation=f"{port}-{life}",
                cards=(ModelCard("m"),),
                speed=speed,
                slots=slots,
                kv_tokens=250 if kv else 0,
            ),
            self.now,
        )
        self.place()

    @rule(port=PORTS, life=LIVES, running=st.integers(0, 5))
    def heartbeat(self, port: int, life: int, running: int) -> None:
        self.sequence += 1
        self.registry.heartbeat(f"h:{port}", f"{port}-{life}", self.sequence, running, 0, self.now)
        self.place()

    @rule(port=PORTS, life=LIVES)
    def deregister(self, port: int, life: int) -> None:
        self.registry.deregister(f"h:{port}", f"{port}-{life}")

    @rule(port=PORTS, life=LIVES)
    def transport_breaks(self, port: int, life: int) -> None:
        self.registry.call_failed(f"h:{port}", f"{port}-{life}", self.now)

    @rule(seconds=st.floats(0.0, 60.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.registry.stalls.tick(self.now)
        self.registry.expire(self.now)
        self.place()

    # ------------------------------------------------------------------------------------------------------ requests

    @rule(
        tenant=st.sampled_from("ab"),
        priority=st.sampled_from(Priority),
        tokens=st.sampled_from([10, 100, 300]),
        patience=st.none() | st.floats(0.0, 40.0),
    )
    def ask(self, tenant: str, priority: Priority, tokens: int, patience: float | None) -> None:
        self.asked += 1
        entry = Entry(
            key=str(self.asked),
            tenant=tenant,
            priority=priority,
            demand=Demand((Piece(b"%d" % tokens, tokens),), (), 50),
            deadline=None if patience is None else self.now + patience,
            arrived=self.now,
        )
        before = self.free()
        try:
            assignment = self.dispatcher.admit("m", entry, self.now)
        except LlavaGrpcError:
            self.over.append(entry.key)
            return
        if assignment is None:
            self.waiting[entry.key] = entry
            self.place()
        else:
            self.takes(entry.key, assignment, before)

    @rule(data=st.data())
    def one_gives_up(self, data: st.DataObject) -> None:
        if self.waiting:
            key = data.draw(st.sampled_from(sorted(self.waiting)))
            self.dispatcher.forget("m", self.waiting.pop(key))
            self.over.append(key)
            self.place()

    @rule(data=st.data())
    def first_token_comes(self, data: st.DataObject) -> None:
        if self.running:
            self.dispatcher.was_read(self.running[data.draw(st.sampled_from(sorted(self.running)))], self.now)

    @rule(data=st.data(), twice=st.booleans())
    def one_ends(self, data: st.DataObject, twice: bool) -> None:
        if self.running:
            self.end(data.draw(st.sampled_from(sorted(self.running))), twice=twice)

    @rule(data=st.data())
    def one_goes_on_elsewhere(self, data: st.DataObject) -> None:
        if self.running:
            key = data.draw(st.sampled_from(sorted(self.running)))
            self.dispatcher.release(self.running.pop(key), self.now)
            before = self.free()
            entry = Entry(key=key, arrived=self.now, begun=Fingerprint())
            try:
                assignment = self.dispatcher.admit("m", entry, self.now)
            except LlavaGrpcError:
                self.over.append(key)
                return
            if assignment is None:
                self.waiting[key] = entry
            else:
                self.takes(key, assignment, before)
            self.place()

    def end(self, key: str, *, twice: bool = False) -> None:
        assignment = self.running.pop(key)
        for _ in range(1 + twice):
            self.dispatcher.release(assignment, self.now)
        self.over.append(key)
        self.place()

    def place(self) -> None:
        """As the controller does whenever room may have come."""
        placed = self.dispatcher.place(self.now)
        while True:
            before = self.free()
            entry, outcome = next(placed, (None, None))
            if entry is None:
                return
            self.waiting.pop(entry.key)
            if isinstance(outcome, Assignment):
                assert entry.deadline is None or self.now < entry.deadline, "what is expired is never dispatched"
                self.takes(entry.key, outcome, before)
            else:
                self.over.append(entry.key)

    def free(self) -> dict[str, int]:
        """Slots of those who may be chosen."""
        return {
            worker.incarnation: worker.registration.slots - worker.in_flight
            for worker in self.registry.workers()
            if worker.state is WorkerState.ALIVE and worker.registration.speed > 0
        }

    def takes(self, key: str, assignment: Assignment, before: dict[str, int]) -> None:
        assert before.get(assignment.incarnation, 0) > 0, "whoever is chosen is well and has room"
        self.running[key] = assignment

    # ---------------------------------------------------------------------------------------------------- invariants

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        keys = [*self.waiting, *self.running, *self.over]
        assert sorted(keys, key=int) == [str(number) for number in range(1, self.asked + 1)]
        assert self.dispatcher.waiting("m") == len(self.waiting)
        assert sum(entry.begun is None for entry in self.waiting.values()) <= 3

    @invariant()
    def no_slot_leaks(self) -> None:
        for worker in self.registry.workers():
            mine = self.on(worker)
            assert worker.in_flight == len(mine)
            assert worker.unread == sum(assignment.unread for assignment in mine)
            assert worker.promised == sum(assignment.kv_tokens for assignment in mine)

    def on(self, worker: Worker) -> list[Assignment]:
        return [assignment for assignment in self.running.values() if assignment.worker is worker]

    def teardown(self) -> None:
        for key in list(self.waiting):
            self.dispatcher.forget("m", self.waiting.pop(key))
            self.over.append(key)
        while self.running:
            self.end(next(iter(self.running)))
        assert len(self.over) == len(set(self.over)) == self.asked
        for worker in self.registry.workers():
            assert (worker.in_flight, worker.unread, worker.promised) == (0, 0, 0)


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
