"""One seed's cluster, from its start to its end.

A history's cluster, requests, faults, delays and everything that its nodes draw come from its seed: the same seed is
the same history, to the last message.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from random import Random

from llava_grpc.client import AsyncClient
from llava_grpc.core.prompt import Priority
from llava_grpc.errors import LlavaGrpcError
from llava_grpc.testing.histories.cluster import Cluster, ClusterPlan, WorkerPlan
from llava_grpc.testing.histories.faults import Fault, draw_gentle_plan, draw_plan
from llava_grpc.testing.histories.invariants import BrokenError, Invariant, Watch
from llava_grpc.testing.histories.load import Asked, Leaves, Order, draw_orders
from llava_grpc.testing.network import Network
from llava_grpc.testing.virtual_time import PROCESS, Process, StuckError, VirtualLoop

BEGIN, END = 1.0, 12.0
"""Seconds from the start between which requests come and faults begin."""
SERVED_WITHIN = 120.0
"""Seconds after the last fault is over in which every request must have ended."""
WELL_WITHIN = 30.0
"""Seconds after that in which everybody must be back."""
SETTLES = 2.0
"""Seconds in which what the last fault held up has arrived."""
GENTLE_SHARE = 0.25
"""Of all histories."""
STRATEGIES = ("shortest_queue", "lottery", "power_of_two", "cache_affinity", "expected_first_token")


@dataclass(frozen=True, slots=True)
class Script:
    """What is to happen in a history."""

    seed: int
    cluster: ClusterPlan
    orders: tuple[Order, ...]
    faults: tuple[Fault, ...]
    gentle: bool = False
    """Faults come one at a time: no user may notice any, not even by having to ask again."""

    def __str__(self) -> str:
        workers = ", ".join(
            f"{name} ({plan.model}, {plan.slots} slots, speed {plan.speed:g})"
            for name, plan in self.cluster.workers.items()
        )
        return "\n".join(
            [
                f"seed {self.seed}: controllers {', '.join(self.cluster.controllers)} by {self.cluster.strategy}"
                + (", one fault at a time" if self.gentle else ""),
                f"workers {workers}",
                *map(str, self.orders),
                *map(str, self.faults),
            ]
        )


@dataclass(slots=True)
class History:
    """What happened. `events`: messages that arrived, and faults. `seconds` of virtual time."""

    script: Script
    events: int = 0
    seconds: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> Counter[str]:
        """How requests ended."""
        return Counter(asked.outcome for asked in self.asked)

    @property
    def failures(self) -> Counter[str]:
        """Why users had to ask again."""
        return Counter(reason for asked in self.asked for _, reason in asked.failures)


class HistoryError(AssertionError):
    """A history went wrong: the seed, what was wrong, and how to see it again."""

    def __init__(self, seed: int, cause: Exception, log: list[str]) -> None:
        self.seed, self.cause, self.log = seed, cause, log
        self.invariant = cause.invariant if isinstance(cause, BrokenError) else None
        super().__init__(
            f"history {seed}: {cause}\nSee it again: "
            f"python -m llava_grpc.testing.histories.soak --seed {seed} --verbose"
        )


def draw_script(seed: int) -> Script:
    """The script of a seed."""
    random = Random(seed)
    controllers = ("c1", "c2", "c3")[: random.choice((2, 2, 2, 3))]
    names = tuple(f"w{number}" for number in range(1, 1 + random.choice((3, 3, 4, 5))))
    gentle = random.random() < GENTLE_SHARE
    models = ("m1", "m2") if len(names) > 3 and not gentle and random.random() < 0.5 else ("m1",)
    workers = {
        name: WorkerPlan(models[index % len(models)], random.choice((1, 2, 3)), random.choice((0.5, 1.0, 2.0)))
        for index, name in enumerate(names)
    }
    clients = ("u", "v")
    cluster = ClusterPlan(controllers, workers, clients, random.choice(STRATEGIES))
    orders = draw_orders(random, models, clients, count=random.randint(20, 24), begin=BEGIN, end=END)
    if gentle:
        faults = draw_gentle_plan(random, controllers, names, count=3, begin=BEGIN)
    else:
        count = random.randint(3, 8)
        faults = draw_plan(random, controllers, names, clients, count=count, begin=BEGIN, end=END)
    return Script(seed, cluster, orders, faults, gentle)


def run_history(script: Script, *, verbose: bool = False) -> History:
    """Play it.

    Raises:
        HistoryError: an invariant broke, or it came to a stand.
    """
    history = History(script)
    loop = VirtualLoop()
    play = _Play(history, loop, verbose)
    try:
        with _logs(play), closing(loop):
            loop.run(play.play())
    except (BrokenError, StuckError) as error:
        raise HistoryError(script.seed, error, history.log) from error
    history.events, history.seconds = play.network.pieces + len(script.faults), loop.time()
    return history


class _Play:
    """A history as it happens."""

    def __init__(self, history: History, loop: VirtualLoop, verbose: bool) -> None:
        script = history.script
        self.history, self.loop, self.verbose = history, loop, verbose
        self._random = random = Random(f"{script.seed} as it happens")
        self.network = Network(loop, Random(random.getrandbits(64)))
        self._cluster = Cluster(script.cluster, self.network, random, self.log)
        self._watch = Watch(self._cluster, loop.fail)
        self._clients: dict[str, tuple[Process, AsyncClient]] = {}
        self._open = 0
        self._all_ended = asyncio.Event()

    def log(self, *what: object) -> None:
        """Take it down, if anybody wants to read it."""
        if self.verbose:
            self.history.log.append(f"{self.loop.time():9.4f} {' '.join(map(str, what))}")

    async def play(self) -> None:
        """The whole history."""
        script, loop = self.history.script, self.loop
        self._cluster.start()
        await asyncio.sleep(BEGIN / 2)
        if missing := self._watch.well():
            self._watch.wrong(Invariant.SERVED, f"before any fault: {missing}")
        for fault in script.faults:
            loop.call_at(fault.at, self._cluster.strike, fault)
        self._open = len(script.orders)
        for order in script.orders:
            loop.call_at(order.at, self._ask, order)
        quiet = max(fault.ends for fault in script.faults)
        try:
            async with asyncio.timeout_at(max(quiet, END) + SERVED_WITHIN):
                await self._all_ended.wait()
        except TimeoutError:
            open_ = [asked.name for asked in self.history.asked if not asked.outcome]
            self._watch.wrong(Invariant.SERVED, f"{', '.join(open_)} did not end within {SERVED_WITHIN:g} s of peace")
        await asyncio.sleep(max(0.0, quiet - loop.time()))
        await self._peace()

    def _ask(self, order: Order) -> None:
        asked = Asked(order, self._watch.wrong, self._watch.has_new_controller)
        self.history.asked.append(asked)
        process, client = self._client(order.client)
        self.log("asks", process, asked.name)
        task = process.spawn(asked.ask(client), name=asked.name)
        task.add_done_callback(lambda done: self._ended(asked, done))
        if order.leaves is Leaves.VANISHES:
            self.loop.call_later(order.after, self._vanish, process, asked)

    def _client(self, name: str) -> tuple[Process, AsyncClient]:
        if name not in self._clients:
            process = self.network.process(name, name)
            addresses = [f"{controller}:1" for controller in self.history.script.cluster.controllers]
            self._random.shuffle(addresses)
            client = process.context.run(
                lambda: AsyncClient(
                    addresses, open_channel=self.network.open_channel, random=Random(self._random.getrandbits(64))
                )
            )
            self._clients[name] = process, client
        return self._clients[name]

    def _vanish(self, process: Process, asked: Asked) -> None:
        if not asked.outcome:
            self.log("vanishes", process)
            asked.outcome = "vanished"
            process.kill()
            self.network.died(process)

    def _ended(self, asked: Asked, task: asyncio.Task[None]) -> None:
        self.log("ended", asked.name, asked.outcome, *(f"{at:.2f} {reason}" for at, reason in asked.failures))
        if not task.cancelled() and (error := task.exception()) is not None:
            self._watch.wrong(Invariant.CLEAN, f"{asked.name}: the client raised {error!r}")
        elif not asked.outcome:
            self._watch.wrong(Invariant.ONE_END, f"{asked.name}: the client gave up without a word")
        elif asked.failures and self.history.script.gentle:
            self._watch.wrong(Invariant.UNSEEN, f"{asked.name}: its user had to ask again, after {asked.failures}")
        self._open -= 1
        if not self._open:
            self._all_ended.set()

    async def _peace(self) -> None:
        """No fault is left and nobody asks: everybody is to be back, everything free, every controller to serve."""
        deadline = self.loop.time() + WELL_WITHIN
        await asyncio.sleep(SETTLES)
        while missing := self._watch.well():
            if self.loop.time() > deadline:
                self._watch.wrong(Invariant.SERVED, f"{WELL_WITHIN:g} s after the last fault: {missing}")
            await asyncio.sleep(0.5)
        process = self.network.process("probe", "probe")
        await process.spawn(self._probe())
        self._watch.look_at_the_end()
        await self._stop()

    async def _probe(self) -> None:
        """Ask each controller for an answer of each model."""
        cluster = self.history.script.cluster
        for controller in cluster.controllers:
            async with AsyncClient(f"{controller}:1", open_channel=self.network.open_channel) as client:
                for model in sorted({plan.model for plan in cluster.workers.values()}):
                    try:
                        await client.ask("still there?", model=model, seed=1, priority=Priority.HIGH, timeout=20.0)
                    except LlavaGrpcError as error:
                        self._watch.wrong(Invariant.SERVED, f"in peace {controller} answers {error.reason}: {error}")

    async def _stop(self) -> None:
        """Everybody stops in good order, and leaves nothing behind."""
        for place in self._cluster.places.values():
            place.wanted = False
        for process, client in self._clients.values():
            if process.alive:
                await process.spawn(client.close())
        await asyncio.gather(*filter(None, map(self._cluster.stop_node, self._cluster.places)))
        await asyncio.sleep(0.1)
        self._watch.look_at_the_end()
        for process, _ in self._clients.values():
            if process.alive and (tasks := process.open_tasks()):
                self._watch.wrong(Invariant.CLEAN, f"{process}: a closed client left running {tasks}")


class _Defects(logging.Handler):
    """Takes what nodes log: a traceback is a defect; the rest is for who wants to read it."""

    def __init__(self, play: _Play) -> None:
        super().__init__(logging.INFO if play.verbose else logging.ERROR)
        self._play = play

    def emit(self, record: logging.LogRecord) -> None:
        self._play.log(PROCESS.get(), record.levelname.lower(), record.getMessage())
        process = PROCESS.get()
        if record.exc_info and (process is None or process.alive):
            self._play.loop.fail(BrokenError(Invariant.CLEAN, f"{process} logs {record.exc_info[1]!r}"))


@contextmanager
def _logs(play: _Play) -> Iterator[None]:
    package, handler = logging.getLogger("llava_grpc"), _Defects(play)
    before = package.level, package.propagate
    package.addHandler(handler)
    package.propagate = False
    package.setLevel(handler.level)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.level, package.propagate = before


def run_seed(seed: int, *, verbose: bool = False) -> History:
    """Draw the seed's script and play it."""
    return run_history(draw_script(seed), verbose=verbose)
