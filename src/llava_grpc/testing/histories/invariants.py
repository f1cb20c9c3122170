"""What must hold in a simulated cluster: at every moment, and when all is over.

`Watch` looks at each process that has run, whenever everything that can happen at one moment of virtual time has
happened; at each choice of a worker as it is made; and at each answer of a controller to a worker as it is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from random import Random

from llava_grpc.controller.app import ControllerNode
from llava_grpc.core.demand import Demand
from llava_grpc.core.stall import tick_period
from llava_grpc.core.states import WorkerState
from llava_grpc.core.strategies import Pick, Snapshot
from llava_grpc.testing.histories.cluster import EXPIRY, INTERVAL, Cluster, Life
from llava_grpc.testing.virtual_time import Process
from llava_grpc.v1 import controller_pb2 as pb
from llava_grpc.worker.app import WorkerNode

GENERATE = "/llava_grpc.v1.InferenceService/Generate"
_CONTROL = "/llava_grpc.v1.ControllerService/"
SLACK = 2 * tick_period(INTERVAL)
"""Seconds within which the reaper acts."""


class Invariant(Enum):
    """What must hold."""

    ONE_END = "a request ends exactly once, as its user's answer or at its user's wish"
    ONE_LOG = "an answer's tokens are those of the undisturbed one: none lost, doubled or different"
    UNSEEN = "where faults come one at a time, no user notices any"
    SLOTS = "a slot is taken by one request at a time, and free after it"
    CANCELLED = "what nobody waits for any more is not computed"
    CHOSEN = "work goes only to workers that are on the register and well"
    ONE_LIFE = "an address has one life; what an earlier one says is answered 'unknown'"
    REAPED = "who was silent for too long is off the register"
    SERVED = "when the faults are over, everything is served, and everybody is back"
    CLEAN = "no exception is lost, and who has stopped leaves nothing running"


class BrokenError(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: Invariant, what: str) -> None:
        self.invariant, self.what = invariant, what
        super().__init__(f"{invariant.name}: {what} ({invariant.value})")


class Watch:
    """See the module. `broken` is told of the first violation."""

    def __init__(self, cluster: Cluster, broken: Callable[[Exception], None]) -> None:
        self._cluster, self._broken = cluster, broken
        self._network = cluster.network
        self._loop = cluster.network.loop
        self._newest: dict[tuple[Life, str], int] = {}
        cluster.on_start = self._starts
        self._network.on_answer = self._answered
        self._loop.at_rest = self._at_rest

    def wrong(self, invariant: Invariant, what: str) -> None:
        """It does not hold."""
        self._broken(BrokenError(invariant, what))

    def _at_rest(self) -> None:
        for process in self._loop.ran:
            life = self._cluster.by_process.get(process)
            if life is None or not process.alive or not life.ready:
                continue
            if isinstance(life.node, ControllerNode):
                self._look_at_controller(life, life.node)
            elif not life.stopping:
                self._look_at_worker(life, life.node)
        for context in self._loop.defects:
            self.wrong(Invariant.CLEAN, f"{context.get('message')}: {context.get('exception')!r}")

    def _look_at_worker(self, life: Life, node: WorkerNode) -> None:
        assert life.engine is not None, "workers have one"
        running, slots = node.host.running, life.engine.slots
        if running > slots:
            self.wrong(Invariant.SLOTS, f"{life.process} runs {running} requests in {slots} slots")
        wanted = life.engine.wanted
        asked = self._network.servers[life.process].running(GENERATE)
        if wanted > asked:
            self.wrong(
                Invariant.CANCELLED, f"{life.process} goes on computing {wanted} requests of which {asked} are open"
            )

    def _look_at_controller(self, life: Life, node: ControllerNode) -> None:
        in_flight, silent_since = 0, self._loop.time() - EXPIRY - SLACK
        for worker in node.registry.workers():
            slots, address = worker.registration.slots, worker.registration.address
            in_flight += worker.in_flight
            if not 0 <= worker.in_flight <= slots:
                self.wrong(Invariant.SLOTS, f"{life.process} counts {worker.in_flight} of {slots} slots of {address}")
            number, key = self._cluster.lives[worker.registration.incarnation], (life, address)
            if number < self._newest.get(key, 0):
                self.wrong(Invariant.ONE_LIFE, f"{life.process} has an earlier life of {address} on its register")
            self._newest[key] = number
            if worker.last_sign < silent_since and not self._was_stalled(life):
                silence = self._loop.time() - worker.last_sign
                self.wrong(Invariant.REAPED, f"{life.process} has heard nothing of {address} for {silence:.1f} s")
        streams = self._network.calling[life.process, GENERATE]
        running = self._network.servers[life.process].running(GENERATE) if in_flight or streams else 0
        if in_flight > running:
            self.wrong(Invariant.SLOTS, f"{life.process} counts {in_flight} slots taken by {running} requests")
        if streams > running:
            self.wrong(Invariant.CANCELLED, f"{life.process} has {streams} streams of workers for {running} requests")

    def _was_stalled(self, life: Life) -> bool:
        """Lately enough for its workers to be excused."""
        return life.process.frozen or self._loop.time() - life.last_frozen < EXPIRY + 2 * INTERVAL

    def _starts(self, life: Life) -> None:
        """A controller's strategy is watched."""
        if not isinstance(life.node, ControllerNode):
            return
        registry, dispatcher = life.node.registry, life.node.fleet.dispatcher
        strategy = dispatcher.strategy

        def watched(candidates: Snapshot, demand: Demand, random: Random) -> Pick:
            pick = strategy(candidates, demand, random)
            address = registry.addresses[int(candidates.rows[pick.index])]
            worker = next((one for one in registry.workers() if one.address == address), None)
            state = "not on the register" if worker is None else worker.state.value
            if worker is None or worker.state is not WorkerState.ALIVE:
                self.wrong(Invariant.CHOSEN, f"{life.process} chooses {address}, which is {state}")
            elif worker.in_flight >= worker.registration.slots:
                self.wrong(Invariant.CHOSEN, f"{life.process} chooses {address}, whose slots are all taken")
            return pick

        dispatcher.strategy = watched

    def _answered(self, process: Process, method: str, heard: bytes, answer: bytes) -> None:
        if not (method.startswith(_CONTROL) and process.alive):
            return
        life = self._cluster.by_process[process]
        assert isinstance(life.node, ControllerNode), "it answers as one"
        said: pb.RegisterRequest | pb.HeartbeatsRequest | pb.HeartbeatRequest
        match method.removeprefix(_CONTROL):
            case "Register":
                said, known = pb.RegisterRequest.FromString(heard), True
            case "Heartbeats":
                said, known = pb.HeartbeatsRequest.FromString(heard), pb.HeartbeatsResponse.FromString(answer).known
            case "Heartbeat":
                said, known = pb.HeartbeatRequest.FromString(heard), pb.HeartbeatResponse.FromString(answer).known
            case _:
                return
        registered = (worker.incarnation for worker in life.node.registry.workers())
        if known and said.incarnation not in registered:
            number = self._cluster.lives[said.incarnation]
            self.wrong(
                Invariant.ONE_LIFE, f"{process} tells life {number} of {said.address} that it is on the register"
            )

    def has_new_controller(self) -> bool:
        """Whether one has started lately, and may not have heard from everybody."""
        return any(self._loop.time() - life.started < EXPIRY for life, _ in self._cluster.controllers())

    def well(self) -> str:
        """What is not yet as it should be when no fault is left, or nothing."""
        controllers = [one for one in self._cluster.controllers() if not one[0].stopping]
        if len(controllers) < len(self._cluster.plan.controllers):
            return "a controller is not there"
        for life, node in controllers:
            present = {worker.address: worker for worker in node.registry.workers()}
            for name in self._cluster.plan.workers:
                place = self._cluster.places[name]
                worker = present.get(place.address)
                if place.life is None or not place.life.process.alive:
                    return f"{name} is not there"
                if worker is None or worker.state is not WorkerState.ALIVE:
                    return f"{life.process} does not have {name} on its register, or not as well"
                if self._cluster.lives[worker.incarnation] != place.life.number:
                    return f"{life.process} has an earlier life of {name} on its register"
        return ""

    def look_at_the_end(self) -> None:
        """When nobody asks any more: nothing may be taken."""
        for life, node in self._cluster.controllers():
            for worker in node.registry.workers():
                if worker.in_flight or worker.unread or worker.promised:
                    self.wrong(
                        Invariant.SLOTS,
                        f"{life.process} still counts {worker.in_flight} requests on {worker.address}, "
                        f"{worker.promised} tokens promised, {worker.unread} unread",
                    )
            for model in {plan.model for plan in self._cluster.plan.workers.values()}:
                if waiting := node.fleet.dispatcher.waiting(model):
                    self.wrong(Invariant.SLOTS, f"at {life.process} {waiting} requests for {model} still wait")
        for life in self._cluster.living():
            if life.engine is not None and not isinstance(life.node, ControllerNode) and life.ready:
                taken, computed = life.node.host.running, life.engine.stats().running
                if taken or computed:
                    self.wrong(
                        Invariant.SLOTS,
                        f"{life.process} still has {taken} slots taken, and computes {computed} requests",
                    )
        if self._cluster.left_over:
            self.wrong(Invariant.CLEAN, f"stopped nodes left running: {self._cluster.left_over}")
