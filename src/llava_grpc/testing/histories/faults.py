"""What befalls a cluster: a plan, drawn from a seed, that can be printed and played again.

Law: every fault ends within the plan's time, so that afterwards everything must be well again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random


class Kind(Enum):
    """What a fault is; `target` is a node's name, `other` another one's where a way between two is meant."""

    KILL = "kill"
    """The process is gone at once (SIGKILL); its machine resets its connections. A new one is started later."""
    POWER = "power loss"
    """The machine is gone without a word; it and its process are back later."""
    RESTART = "restart"
    """The process is asked to stop (SIGTERM), and started again when it has."""
    REPLACE = "replace"
    """Another machine takes over a worker's address, while the first lives on, cut off, and comes back: two lives."""
    SUSPEND = "suspend"
    """The process is suspended (SIGSTOP): it answers nothing, not even pings, and goes on later as if nothing was."""
    STALL = "stall"
    """The process's event loop does not run, while its transport answers pings."""
    PARTITION = "partition"
    """Nothing gets from one machine to the other, nor back."""
    ONE_WAY = "one-way partition"
    """Nothing gets from one machine to the other; what comes back does."""
    ISOLATE = "isolate"
    """Nothing gets to a machine or away from it."""
    DELAY = "delay"
    """Everything between two machines takes `factor` times as long."""
    RESET = "reset"
    """All connections between two machines break; what was on its way, done or not, is lost."""
    DUPLICATE = "duplicate"
    """A share `factor` of all unary calls arrive a second time later, as if sent again after a lost answer."""
    SLOW = "slow worker"
    """A worker's steps take `factor` times as long."""
    HANG = "hung engine"
    """A worker's engine computes nothing, while the worker answers whoever asks: as when a device hangs."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them. Times in seconds since the start; `lasts` until its end, or the new process's start."""

    at: float
    kind: Kind
    target: str = ""
    other: str = ""
    lasts: float = 0.0
    factor: float = 1.0

    def __str__(self) -> str:
        where = f" {self.target}" + (f" - {self.other}" if self.other else "") if self.target else ""
        strength = f", x {self.factor:.1f}" if self.factor != 1.0 else ""
        return f"at {self.at:6.2f} s: {self.kind.value}{where}, for {self.lasts:.2f} s{strength}"

    @property
    def ends(self) -> float:
        """When it is over."""
        return self.at + self.lasts


_OF_WAYS = (Kind.PARTITION, Kind.ONE_WAY, Kind.DELAY, Kind.RESET)
_WORKERS_ALONE = (Kind.REPLACE, Kind.SLOW, Kind.HANG)
_WEIGHTS = {Kind.KILL: 6, Kind.PARTITION: 2, Kind.STALL: 2, Kind.SUSPEND: 2, Kind.RESET: 2}
DURATIONS = (0.05, 0.5, 2.0, 8.0, 16.0)
"""Seconds, to be varied by half: shorter and longer than every patience in the fabric."""
HANGS = (2.0, 8.0, 40.0)
"""Likewise, for engines: the last is longer than a stream may stand still."""
LONGEST_AFTER = 10.0
"""Seconds after the last fault's beginning in which all but hung engines are over."""
REPLACED_LIVES_ON = 6.0
"""Seconds for which a replaced worker lives on after it is back on the network."""
GENTLE = (Kind.KILL, Kind.KILL, Kind.RESTART, Kind.POWER, Kind.SUSPEND, Kind.STALL)
SETTLED = 4.0
"""Seconds after one of those in which a cluster has got over it."""
AT_PEACE = 1.0
"""Seconds between two faults of one node."""


def draw_plan(
    random: Random,
    controllers: Sequence[str],
    workers: Sequence[str],
    others: Sequence[str],
    *,
    count: int,
    begin: float,
    end: float,
) -> tuple[Fault, ...]:
    """So many faults from `begin` on, most before `end`. What befalls a node as a whole befalls it once at a time."""
    busy_until = dict.fromkeys([*controllers, *workers], 0.0)
    plan = []
    for at in sorted(random.uniform(begin, end) for _ in range(count)):
        fault = None
        while fault is None:
            fault = _draw(random, at, end + LONGEST_AFTER, controllers, workers, others, busy_until)
        plan.append(fault)
    return tuple(plan)


def draw_gentle_plan(
    random: Random, controllers: Sequence[str], workers: Sequence[str], *, count: int, begin: float
) -> tuple[Fault, ...]:
    """So many processes that die, stop or stand still, each only once the one before is back and settled."""
    plan, at = [], begin
    for _ in range(count):
        at += random.uniform(0.0, 2.0)
        target = random.choice([*controllers, *workers])
        fault = Fault(at, random.choice(GENTLE), target, lasts=random.choice(DURATIONS[:3]) * random.uniform(0.5, 1.5))
        plan.append(fault)
        at = fault.ends + SETTLED
    return tuple(plan)


def _draw(
    random: Random,
    at: float,
    over_by: float,
    controllers: Sequence[str],
    workers: Sequence[str],
    others: Sequence[str],
    busy_until: dict[str, float],
) -> Fault | None:
    """One fault at that time, or None where the die fell on a node that has one already."""
    kind = random.choices(list(Kind), [_WEIGHTS.get(kind, 1) for kind in Kind])[0]
    lasts = min(random.choice(DURATIONS) * random.uniform(0.5, 1.5), over_by - at)
    if kind is Kind.DUPLICATE:
        return Fault(at, kind, lasts=lasts, factor=random.uniform(0.2, 0.9))
    if kind in _OF_WAYS:
        target, other = random.sample([random.choice(controllers), random.choice([*workers, *others])], 2)
        factor = random.uniform(10, 500) if kind is Kind.DELAY else 1.0
        return Fault(at, kind, target, other, 0.0 if kind is Kind.RESET else lasts, factor)
    target = random.choice(workers if kind in _WORKERS_ALONE else [*controllers, *workers])
    if at < busy_until[target]:
        return None
    if kind is Kind.HANG:
        lasts = random.choice(HANGS) * random.uniform(0.8, 1.2)
    busy_until[target] = at + lasts + (REPLACED_LIVES_ON if kind is Kind.REPLACE else 0.0) + AT_PEACE
    return Fault(at, kind, target, lasts=lasts, factor=random.uniform(2, 20) if kind is Kind.SLOW else 1.0)
