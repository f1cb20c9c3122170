"""What the control plane costs: choosing a worker, hearing a fleet's heartbeats, holding and refusing requests.

Picks: `Dispatcher.assign`, with its record, among 1,000 workers of one model, thousands of requests under way, each a
question about one of 500 pictures. The strategies take turns, round by round.

Heartbeats: a real controller process and 1,000 workers, each with a server, a channel and a heartbeat stream of its
own, all in one other process. The controller's CPU time while all beat every 30 s, every second, or not at all (the
arms take turns), as a share of one core.

Scale: ten requests for each worker, held at once by that controller; what then is refused because the queue is full,
and how soon.

The last line is one JSON object.

    .venv/bin/python benchmarks/bench_control.py [--quick] [--workers 1000] [--rounds 5] [--live 10]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helper import Helper, cpu_seconds, percentile

from llava_grpc.core.admission import Entry
from llava_grpc.core.demand import Demand, Piece
from llava_grpc.core.dispatcher import Assignment, Dispatcher
from llava_grpc.core.registry import Registry
from llava_grpc.core.strategies import STRATEGIES
from llava_grpc.core.stream import ModelCard
from llava_grpc.core.worker import Registration
from tests.support.processes import start_controller

MODEL = "m"
PICTURES = 500
INTERVALS = {"silent": 0.0, "30 s": 30.0, "1 s": 1.0}
"""Seconds between two heartbeats of a worker; 0: none."""
WAITING = 16
"""Requests that may wait once every slot is held."""
CONTROLLER = ("--queue-length", str(WAITING), "--queue-wait", "600", "--heartbeat-expiry", "3600")
"""Nobody is dropped while the fleet is silent on purpose."""


class Picks:
    """A dispatcher with its fleet, and the requests under way."""

    def __init__(self, strategy: str, workers: int) -> None:
        registry = Registry(expiry=1e9)
        for number in range(workers):
            registry.register(
                Registration(
                    address=f"10.0.{number // 250}.{number % 250 + 1}:21002",
                    incarnation=f"life {number}",
                    cards=(ModelCard(MODEL),),
                    speed=1.0 + number % 4,
                    slots=16,
                    kv_tokens=100_000,
                    cached_pictures=100,
                ),
                0.0,
            )
        self._dispatcher = Dispatcher(registry, STRATEGIES[strategy], Random(1), strategy_name=strategy)
        self._live: deque[Assignment] = deque()
        self._most_live = 5 * workers
        self._random = Random(2)
        self._number = 0
        while len(self._live) < self._most_live:
            self._pick(self._entry())

    def round(self, count: int) -> list[float]:
        """Microseconds of so many picks, each of which another request made room for."""
        times = []
        for entry in [self._entry() for _ in range(count)]:
            self._dispatcher.release(self._live.popleft(), 0.0)
            times.append(self._pick(entry))
        return times

    def _entry(self) -> Entry:
        self._number += 1
        picture = self._random.randrange(PICTURES)
        pieces = (Piece(b"system", 100), Piece(b"picture %d" % picture, 600), Piece(b"question %d" % self._number, 40))
        demand = Demand(pieces, (b"digest %d" % picture,), 256)
        return Entry(key=str(self._number), request_id=str(self._number), demand=demand, arrived=0.0)

    def _pick(self, entry: Entry) -> float:
        began = time.perf_counter_ns()
        assignment = self._dispatcher.assign(MODEL, entry, 0.0)
        took = time.perf_counter_ns() - began
        assert assignment is not None, "there is room"
        self._live.append(assignment)
        return took / 1e3


class Bench:
    """What is measured, and the processes that it takes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._exit = contextlib.ExitStack()
        self.picks: dict[str, list[list[float]]] = defaultdict(list)
        self.shares: dict[str, list[float]] = defaultdict(list)
        self.scale: dict[str, Any] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def steps(self) -> Iterator[str]:
        """Everything to be measured, one step after the other; what is being done."""
        options = self._options
        yield "fleets to choose from"
        arms = {name: Picks(name, options.workers) for name in STRATEGIES}
        for number in range(options.rounds):
            yield f"picks, round {number + 1} of {options.rounds}"
            for name in turned(list(arms), number):
                self.picks[name].append(arms[name].round(options.picks))
        arms.clear()
        yield f"{options.workers} workers register"
        self._controller = self._exit.enter_context(start_controller(*CONTROLLER))
        self._fleet = Helper("control_load.py", "fleet", self._controller.address, *self._sizes())
        self._exit.callback(self._fleet.close)
        self._fleet.hear()
        for number in range(options.windows):
            for arm in turned(list(INTERVALS), number):
                yield f"heartbeats, {arm}, window {number + 1} of {options.windows}"
                self.shares[arm].append(self._share(INTERVALS[arm]))
        yield f"{options.workers * options.live} requests at once"
        self._hold()

    def _sizes(self) -> tuple[str, str]:
        return str(self._options.workers), str(self._options.live)

    def _share(self, interval: float) -> float:
        """The controller's CPU time a second while all workers beat."""
        began, cpu = time.perf_counter(), cpu_seconds(self._controller.pid)
        if interval:
            self._fleet.ask(do="beat", interval=interval, seconds=self._options.window)
        else:
            time.sleep(self._options.window)
        return (cpu_seconds(self._controller.pid) - cpu) / (time.perf_counter() - began)

    def _hold(self) -> None:
        options = self._options
        load = Helper("control_load.py", "load", self._controller.address)
        self._exit.callback(load.close)
        count = options.workers * options.live
        cpu = cpu_seconds(self._controller.pid)
        seconds = load.ask(do="hold", count=count, waiting=False)
        cpu = cpu_seconds(self._controller.pid) - cpu
        held = self._fleet.ask(do="held")
        load.ask(do="hold", count=WAITING, waiting=True)
        refused = [1e3 * one for one in load.ask(do="refused", count=options.refused)]
        resident = resident_mb(self._controller.pid)
        began = time.perf_counter()
        self._fleet.ask(do="let_go")
        ends = load.ask(do="ends")
        self.scale = {
            "workers": options.workers,
            "live": sum(held),
            "live_of_a_worker": [min(held), max(held)],
            "seconds_to_first_tokens": round(seconds, 2),
            "controller_cpu_ms_a_request": round(1e3 * cpu / count, 3),
            "controller_resident_mb": round(resident),
            "refused_ms_p50": round(percentile(refused, 0.5), 2),
            "refused_ms_p99": round(percentile(refused, 0.99), 2),
            "seconds_to_the_last_end": round(time.perf_counter() - began, 2),
            "ends": ends,
        }
        assert ends == {"ok": count + WAITING}, ends


def resident_mb(pid: int) -> float:
    """Resident memory of another process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def turned(arms: list[str], number: int) -> list[str]:
    """The arms in an order that turns from round to round."""
    first = number % len(arms)
    return arms[first:] + arms[:first]


def report(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured, as it goes into the JSON line."""

    def pooled(name: str) -> list[float]:
        return [one for times in bench.picks[name] for one in times]

    return {
        "pick_us_p50": {name: round(percentile(pooled(name), 0.5), 1) for name in bench.picks},
        "pick_us_p99": {name: round(percentile(pooled(name), 0.99), 1) for name in bench.picks},
        "heartbeat_core_share": round(statistics.median(bench.shares["30 s"]), 5),
        "heartbeat_core_share_1s": round(statistics.median(bench.shares["1 s"]), 5),
        "silent_core_share": round(statistics.median(bench.shares["silent"]), 5),
        "scale": bench.scale,
        "spread": {
            "pick_us_p50": {
                name: [round(bound([percentile(times, 0.5) for times in rounds]), 1) for bound in (min, max)]
                for name, rounds in bench.picks.items()
            },
            "core_share": {arm: [round(min(shares), 5), round(max(shares), 5)] for arm, shares in bench.shares.items()},
        },
        "config": {
            "workers": options.workers,
            "picks_a_round": options.picks,
            "rounds": options.rounds,
            "window_s": options.window,
            "windows": options.windows,
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "kind": platform.machine(),
            "load_average": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
            "grpcio": grpc.__version__,
        },
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for people."""
    spread, scale = result["spread"], result["scale"]
    picks = Table(title=f"A choice among {result['config']['workers']:,} workers, µs")
    for column in ("strategy", "p50", "p99", "medians of rounds"):
        picks.add_column(column, justify="left" if column == "strategy" else "right")
    for name, median in result["pick_us_p50"].items():
        low, high = spread["pick_us_p50"][name]
        picks.add_row(name, f"{median:.1f}", f"{result['pick_us_p99'][name]:.1f}", f"{low:.1f} to {high:.1f}")
    beats = Table(title="Heartbeats of all: share of one core")
    for column in ("every", "median", "lowest and highest"):
        beats.add_column(column, justify="right")
    for arm, key in (("30 s", "heartbeat_core_share"), ("1 s", "heartbeat_core_share_1s"), ("-", "silent_core_share")):
        low, high = spread["core_share"]["silent" if arm == "-" else arm]
        beats.add_row(arm, f"{result[key]:.2%}", f"{low:.2%} to {high:.2%}")
    held = Table(title="Requests held at once")
    for column in ("", "value"):
        held.add_column(column)
    for name, value in scale.items():
        held.add_row(name.replace("_", " "), escape(str(value)))
    return [picks, beats, held]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, for a test; its figures mean little")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of picks")
    parser.add_argument("--picks", type=int, default=1000, help="picks of each strategy in a round")
    parser.add_argument("--windows", type=int, default=3, help="windows of each rate of heartbeats")
    parser.add_argument("--window", type=float, default=30.0, help="their length in seconds")
    parser.add_argument("--live", type=int, default=10, help="requests of each worker, at once")
    parser.add_argument("--refused", type=int, default=200, help="requests for which there is no place")
    options = parser.parse_args()
    if options.quick:
        options.workers, options.rounds, options.picks = 20, 2, 50
        options.windows, options.window, options.live, options.refused = 1, 0.5, 2, 5
    return options


def main() -> None:
    """Measure, print a table, print JSON."""
    options = parsed()
    with Progress(console=Console(stderr=True), transient=True) as progress, Bench(options) as bench:
        task = progress.add_task("starting", total=4 + options.rounds + len(INTERVALS) * options.windows)
        for done, words in enumerate(bench.steps()):
            progress.update(task, completed=done, description=words)
        result = report(bench, options)
    console = Console()
    if not console.is_terminal:
        console.width = 120
    for table in tables(result):
        console.print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
