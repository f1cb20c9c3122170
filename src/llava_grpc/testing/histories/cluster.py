"""The machines of a simulated cluster, the processes on them, and what befalls them.

The processes run the very nodes that serve in earnest (`ControllerNode`, `WorkerNode`); their world is a `Network` in
virtual time. A supervisor starts again what has ended, as an operating system's would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from random import Random

from llava_grpc.config import ControllerSettings, EngineSettings, ServerSettings, WorkerSettings
from llava_grpc.controller.app import ControllerNode
from llava_grpc.errors import LlavaGrpcError
from llava_grpc.rpc.world import World
from llava_grpc.testing.histories.engine import SteppingEngine
from llava_grpc.testing.histories.faults import REPLACED_LIVES_ON, Fault, Kind
from llava_grpc.testing.network import Network
from llava_grpc.testing.virtual_time import Process
from llava_grpc.worker.app import WorkerNode

INTERVAL, EXPIRY = 4.0, 12.0
"""Seconds between two heartbeats, and of silence after which a worker is dropped."""
GRACE = 1.0
"""Seconds that running streams get when a node is asked to stop."""
ENDS_WITHIN = 0.01
"""Seconds after a stop in which whatever the process still does must have ended."""
RESTARTED_AFTER = 0.5
"""Seconds in which the supervisor starts again what ended by itself."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What a worker is like."""

    model: str
    slots: int
    speed: float


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """Who is there, by name; names are machines' too, but for a replacement's."""

    controllers: tuple[str, ...]
    workers: dict[str, WorkerPlan]
    clients: tuple[str, ...]
    strategy: str = "shortest_queue"
    queue_wait: float = 60.0


@dataclass(slots=True, eq=False)
class Life:
    """One process of a node, from its start to its end."""

    number: int
    address: str
    process: Process
    node: ControllerNode | WorkerNode
    started: float
    engine: SteppingEngine | None = None
    ready: bool = False
    stopping: bool = False
    last_frozen: float = -1e9
    """When it last went on after it was frozen."""


@dataclass(slots=True, eq=False)
class Place:
    """A node's name and address, the machine that this leads to, and who lives there: the present life, and one that
    was replaced."""

    name: str
    address: str
    host: str
    life: Life | None = None
    replaced: Life | None = None
    wanted: bool = True
    """Whether the supervisor is to start it again when it has ended."""


@dataclass(slots=True)
class Cluster:
    """See the module."""

    plan: ClusterPlan
    network: Network
    random: Random
    log: Callable[..., None] = lambda *what: None
    on_start: Callable[[Life], None] = lambda life: None
    """Told of each new process before it runs."""
    places: dict[str, Place] = field(default_factory=dict)
    lives: dict[str, int] = field(default_factory=dict)
    """The numbers of workers' lives, by incarnation: later ones are higher."""
    by_process: dict[Process, Life] = field(default_factory=dict)
    """All lives, by their process."""
    left_over: list[str] = field(default_factory=list)
    """What nodes that had stopped still had to do."""
    _count: int = 0
    _nobody: Context = field(default_factory=Context)

    # ----------------------------------------------------------------------------------------------------- processes

    def start(self) -> None:
        """Start everybody."""
        for name in (*self.plan.controllers, *self.plan.workers):
            self.places[name] = Place(name, f"{name}:1", name)
            self.start_node(name)

    def start_node(self, name: str) -> None:
        """A new process of that name."""
        place = self.places[name]
        self._count += 1
        process = self.network.process(f"{name}#{self._count}", place.host)
        life = process.context.run(self._make, process, place)
        place.life, place.wanted = life, True
        self.by_process[process] = life
        self.on_start(life)
        self.log("start", process.name)
        process.spawn(self._live(place, life), name="main")

    def _make(self, process: Process, place: Place) -> Life:
        world = World(
            open_channel=self.network.open_channel,
            bind_server=self.network.bind_server,
            clock=self.network.loop.time,
            random=Random(self.random.getrandbits(64)),
        )
        server = ServerSettings(host=place.name, port=1, grace=GRACE)
        kind = self.plan.workers.get(place.name)
        if kind is None:
            settings = ControllerSettings(
                server=server,
                strategy=self.plan.strategy,
                heartbeat_interval=INTERVAL,
                heartbeat_expiry=EXPIRY,
                queue_wait=self.plan.queue_wait,
                join_token="a simulated cluster's",
            )
            return Life(self._count, place.address, process, ControllerNode(settings, world), world.clock())
        engine = SteppingEngine(EngineSettings(), world.random, kind.model, kind.slots, kind.speed)
        node = WorkerNode(
            WorkerSettings(
                server=server,
                controllers=tuple(f"{name}:1" for name in self.plan.controllers),
                address=place.address,
                join_token="a simulated cluster's",
            ),
            world=world,
            load_engine=lambda name, settings: engine,
        )
        self.lives[node.incarnation] = self._count
        return Life(self._count, place.address, process, node, world.clock(), engine)

    async def _live(self, place: Place, life: Life) -> None:
        """A process's main: start, serve; end when it must."""
        await life.node.start()
        life.ready = True
        if isinstance(life.node, WorkerNode):
            try:
                await life.node.wait()
            except LlavaGrpcError as error:  # refused for good: the process says so and ends
                self.log("ends", life.process.name, error.reason)
            if not life.stopping:
                await self._stop(place, life)

    async def _stop(self, place: Place, life: Life) -> None:
        life.stopping = True
        await life.node.stop()
        self._later(ENDS_WITHIN, self._ended, place, life)

    def _ended(self, place: Place, life: Life) -> None:
        """The process has come to its end by itself."""
        self.left_over += [f"{life.process.name}: {task.get_coro()}" for task in life.process.open_tasks()]
        self.kill(life)
        if place.life is life and place.wanted:
            self._later(RESTARTED_AFTER, self.start_node, place.name)

    def stop_node(self, name: str) -> asyncio.Task[None] | None:
        """Ask the node to stop (SIGTERM); None where there is none."""
        place = self.places[name]
        life = place.life
        if life is None or not life.process.alive or life.stopping:
            return None
        return life.process.spawn(self._stop(place, life), name="stop")

    def kill(self, life: Life) -> None:
        """End a process at once."""
        if life.process.alive:
            self.log("dead", life.process.name)
            life.process.kill()
            self.network.died(life.process)

    def living(self) -> list[Life]:
        """All processes that live, replaced ones included."""
        lives = (life for place in self.places.values() for life in (place.life, place.replaced))
        return [life for life in lives if life is not None and life.process.alive]

    def controllers(self) -> list[tuple[Life, ControllerNode]]:
        """The controllers that live and serve."""
        present = (self.places[name].life for name in self.plan.controllers)
        return [
            (life, life.node)
            for life in present
            if life is not None and life.process.alive and life.ready and isinstance(life.node, ControllerNode)
        ]

    # -------------------------------------------------------------------------------------------------------- faults

    def strike(self, fault: Fault) -> None:
        """Have it happen now, and end when it does."""
        self.log("fault", str(fault))
        network, kind = self.network, fault.kind
        if kind in (Kind.PARTITION, Kind.ONE_WAY):
            ways = [(fault.target, fault.other), (fault.other, fault.target)]
            self._cut(ways if kind is Kind.PARTITION else ways[:1], fault.lasts)
        elif kind is Kind.ISOLATE:
            self._cut(self._all_ways(fault.target), fault.lasts)
        elif kind is Kind.DELAY:
            for way in (network.way(fault.target, fault.other), network.way(fault.other, fault.target)):
                way.slower = max(way.slower, fault.factor)
                self._later(fault.lasts, setattr, way, "slower", 1.0)
        elif kind is Kind.RESET:
            network.reset(fault.target, fault.other)
        elif kind is Kind.DUPLICATE:
            network.duplicating = fault.factor
            self._later(fault.lasts, setattr, network, "duplicating", 0.0)
        else:
            self._strike_node(fault)

    def _strike_node(self, fault: Fault) -> None:
        place = self.places[fault.target]
        life, kind = place.life, fault.kind
        if life is None or not life.process.alive or life.stopping:
            return  # it is between two lives of its own accord
        if kind in (Kind.SUSPEND, Kind.STALL):
            life.process.freeze(answers_pings=kind is Kind.STALL)
            self.network.silence_began()
            self._later(fault.lasts, self._thaw, life)
        elif kind is Kind.SLOW:
            assert life.engine is not None, "workers are slow"
            life.engine.slower = fault.factor
            self._later(fault.lasts, setattr, life.engine, "slower", 1.0)
        elif kind is Kind.HANG:
            assert life.engine is not None, "workers hang"
            life.engine.hangs = True
            self._later(fault.lasts, life.process.context.run, life.engine.go_on)
        elif kind is Kind.RESTART:
            self.stop_node(place.name)
        elif kind is Kind.REPLACE:
            self._replace(place, life, fault)
        else:
            place.wanted = False
            if kind is Kind.POWER:
                self.network.lights_out(life.process.host)
                self._later(fault.lasts, self.network.lights_on, life.process.host)
            self.kill(life)
            self._later(fault.lasts, self.start_node, place.name)

    def _thaw(self, life: Life) -> None:
        if life.process.alive:
            self.log("thaw", life.process.name)
            life.last_frozen = self.network.loop.time()
            life.process.thaw()
            self.network.silence_ended()

    def _replace(self, place: Place, life: Life, fault: Fault) -> None:
        """The address leads to another machine; the first is cut off, comes back, and dies in the end."""
        old_host = life.process.host
        self._cut(self._all_ways(old_host), fault.lasts)
        place.replaced = life
        place.host = place.name if old_host != place.name else f"{place.name}'"
        self.start_node(place.name)
        self._later(fault.lasts + REPLACED_LIVES_ON, self._end_replaced, place, life)

    def _end_replaced(self, place: Place, life: Life) -> None:
        self.kill(life)
        place.replaced = None

    def _all_ways(self, host: str) -> list[tuple[str, str]]:
        others = {life.process.host: None for life in self.living()} | dict.fromkeys(self.plan.clients)
        return [way for other in others if other != host for way in ((host, other), (other, host))]

    def _cut(self, ways: list[tuple[str, str]], lasts: float) -> None:
        for way in ways:
            self.network.cut(*way)
            self._later(lasts, self.network.mend, *way)

    def _later(self, seconds: float, action: Callable[..., object], *arguments: object) -> None:
        self.network.loop.call_later(seconds, action, *arguments, context=self._nobody)
