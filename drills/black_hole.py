"""Drill `black-hole`: the link to a worker swallows every packet, in mid-answer, and nobody is told.

Shows that streams go on elsewhere though no connection breaks, that nothing is lost, and that the worker is back once
the link is. The worker stands in a network namespace of its own, behind a pair of virtual interfaces; a token bucket
without room for a single packet is the hole. Linux alone, as root, with iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from drills import silence
from drills.fleet import Fleet, Footprint
from drills.mix import questions
from drills.outcome import Outcome
from drills.stage import Stage, leave
from llava_grpc.client import AsyncClient

NAME = "black-hole"
HOLE = ("tbf", "rate", "1kbit", "burst", "1", "limit", "1")
TOKEN = ("--join-token", "drill")
"""A controller that listens beyond loopback demands one."""


class NotHereError(Exception):
    """This machine, or this user, cannot make networks; the message says why."""


@dataclass(frozen=True)
class Link:
    """A way to a network of its own. `here` and `there` are the addresses at its two ends."""

    space: str
    outer: str
    inner: str
    here: str
    there: str

    @property
    def within(self) -> tuple[str, ...]:
        """What runs a command at the far end."""
        return ("ip", "netns", "exec", self.space)

    def swallow(self) -> None:
        """From now on nothing gets through, in either direction."""
        for place, interface in (((), self.outer), (self.within, self.inner)):
            _run(*place, "tc", "qdisc", "add", "dev", interface, "root", *HOLE)

    def heal(self) -> None:
        """It is a link again."""
        for place, interface in (((), self.outer), (self.within, self.inner)):
            _run(*place, "tc", "qdisc", "del", "dev", interface, "root")


@contextlib.contextmanager
def link() -> Iterator[Link]:
    """A link that is gone at the end.

    Raises:
        NotHereError: there can be none.
    """
    if not sys.platform.startswith("linux"):
        raise NotHereError(f"network namespaces are Linux's, this is {sys.platform}")
    if os.geteuid() != 0:
        raise NotHereError("making network namespaces needs root")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise NotHereError(f"there is no {tool} (apt-get install iproute2)")
    number = os.getpid()
    net = f"10.{200 + number % 50}.{number // 50 % 250}"
    made = Link(f"llava-drill-{number}", f"lld{number}a", f"lld{number}b", f"{net}.1", f"{net}.2")
    inside = ("ip", "-n", made.space)
    try:
        try:
            _run("ip", "netns", "add", made.space)
            _run("ip", "link", "add", made.outer, "type", "veth", "peer", "name", made.inner, "netns", made.space)
        except subprocess.CalledProcessError as error:
            raise NotHereError(f"no network namespace can be made here: {error.stderr.strip()}") from error
        _run("ip", "addr", "add", f"{made.here}/24", "dev", made.outer)
        _run("ip", "link", "set", made.outer, "up")
        _run(*inside, "addr", "add", f"{made.there}/24", "dev", made.inner)
        _run(*inside, "link", "set", made.inner, "up")
        _run(*inside, "link", "set", "lo", "up")
        yield made
    finally:
        subprocess.run(("ip", "netns", "del", made.space), check=False, capture_output=True)


async def drill(stage: Stage) -> Outcome:
    """See the module."""
    outcome = Outcome(NAME)
    try:
        with link() as way:
            await _drill(stage, outcome, way)
    except NotHereError as why:
        outcome.skipped = str(why)
    return outcome


async def _drill(stage: Stage, outcome: Outcome, way: Link) -> None:
    chance, rounds = stage.chance(NAME), stage.either(2, 1)
    move = stage.bar("black holes", rounds)
    fleet = Fleet(
        workers=2,
        controller_flags=(*silence.CONTROLLER, *TOKEN, "--host", way.here),
        worker_flags=(*silence.WORKER, *TOKEN),
    )
    async with fleet, AsyncClient(fleet.addresses) as client:
        far = await fleet.add_worker(0, "--host", way.there, within=way.within)
        asked = await questions(
            client, chance, stage.either(60, 30), tokens=stage.either((10, 60), (10, 40)), at_once=60
        )
        before = Footprint([*fleet.controllers, *fleet.workers])
        for number in range(rounds):
            await silence.falls_silent(fleet, client, asked, chance, outcome, far, begin=way.swallow, end=way.heal)
            move(number + 1)
        await leave(outcome, fleet, before)
    silence.judge_detection(outcome, stage.quick)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
