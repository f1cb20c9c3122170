"""What the controller costs: tokens through it against tokens straight from the workers, in the same run.

Real processes: a controller, workers, a load generator. The arms (direct, proxied) take turns, round by round. 32
streams of 200 tokens at once: tokens a second, the controller's CPU time a token, and messages a token, that is, how
far tokens were joined into frames. From three kinds of worker, since everything depends on that:

    burst      two echo workers that make tokens as fast as they can; what piles up they join
    steps      two echo workers that make a token for every stream each 5 ms, as a GPU does: the everyday case
    one-token  a worker that sends a message for each token, as fast as it can: the worst case for any proxy

Added time to first token: open loop, Poisson arrivals (seeded), the same ones for both arms, in short windows, against
`steps`. What stands at the top of the JSON is of `burst`, whose tokens/s and CPU are the fabric's limits.

The last line is one JSON object.

    .venv/bin/python benchmarks/bench_proxy.py [--quick] [--rounds 9] [--streams 32] [--tokens 200] [--rate 50]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helper import Helper, cpu_seconds, percentile
from proxy_load import ONE_TOKEN

from tests.support.processes import NodeProcess, start_controller, start_worker

BURST, STEPS = "burst", "steps"
KINDS = (BURST, STEPS, ONE_TOKEN)
STEP_MS = 5
ARMS = ("direct", "proxied")
WINDOW_TOKENS = 32
"""Length of the answers whose first token is timed."""


def arrivals(seed: int, rate: float, seconds: float) -> list[float]:
    """Times at which requests of a Poisson process come."""
    source, at, offsets = random.Random(seed), 0.0, []
    while (at := at + source.expovariate(rate)) < seconds:
        offsets.append(at)
    return offsets


class Bench:
    """The processes, and what was measured so far: lists of samples, by (worker kind, arm, quantity)."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._exit = contextlib.ExitStack()
        self.samples: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        self.windows: list[dict[str, list[float]]] = []

    def __enter__(self) -> Bench:
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def _start(self) -> None:
        self._controller = self._exit.enter_context(start_controller())
        starting = {}
        with ThreadPoolExecutor() as pool:
            for kind, interval in ((BURST, 0), (STEPS, STEP_MS)):
                flags = ("--model-name", kind, "--engine-option", f"token_interval_ms={interval}")
                starting[kind] = [pool.submit(self._start_worker, *flags) for _ in range(self._options.workers)]
        started = {kind: [future.result() for future in futures] for kind, futures in starting.items()}
        self._workers = [worker for those in started.values() for worker in those]
        self._direct = {kind: [worker.address for worker in those] for kind, those in started.items()}
        one_token = Helper("proxy_load.py", "one-token", self._controller.address)
        self._exit.callback(one_token.close)
        self._direct[ONE_TOKEN] = [one_token.hear()]
        self._load = Helper("proxy_load.py", "load")
        self._exit.callback(self._load.close)

    def _start_worker(self, *flags: str) -> NodeProcess:
        common = ("--engine-option", "tokens=1000000", "--slots", "64", "--speed", "1")
        return self._exit.enter_context(start_worker(self._controller.address, *common, *flags))

    def _targets(self, kind: str, arm: str) -> list[str]:
        return self._direct[kind] if arm == "direct" else [self._controller.address]

    def warm_up(self) -> None:
        """Connections and code paths, unmeasured."""
        for kind in KINDS:
            for arm in ARMS:
                self._load.ask(
                    do="saturate", targets=self._targets(kind, arm), model=kind, seed=0, streams=8, tokens=100
                )

    def saturate(self, number: int) -> None:
        """A round: all kinds of worker, both arms, in an order that turns round."""
        options = self._options
        for kind in KINDS:
            for arm in turned(number):
                controller, workers = self._cpu()
                result = self._load.ask(
                    do="saturate",
                    targets=self._targets(kind, arm),
                    model=kind,
                    seed=number * options.streams,
                    streams=options.streams,
                    tokens=options.tokens,
                )
                controller_after, workers_after = self._cpu()
                tokens = result["tokens"]
                for quantity, value in (
                    ("tok_s", tokens / result["seconds"]),
                    ("messages_per_token", result["frames"] / tokens),
                    ("controller_us", (controller_after - controller) / tokens * 1e6),
                    ("worker_us", (workers_after - workers) / tokens * 1e6),
                ):
                    self.samples[kind, arm, quantity].append(value)

    def window(self, number: int) -> None:
        """The same arrivals for one arm and then the other."""
        options = self._options
        offsets = arrivals(number, options.rate, options.window)
        seen = {}
        for arm in turned(number):
            result = self._load.ask(
                do="arrive",
                targets=self._targets(STEPS, arm),
                model=STEPS,
                seed=number * 10_000,
                offsets=offsets,
                tokens=WINDOW_TOKENS,
            )
            seen[arm] = [seconds * 1e3 for seconds in result["first_token"]]
        self.windows.append(seen)

    def _cpu(self) -> tuple[float, float]:
        return cpu_seconds(self._controller.pid), sum(cpu_seconds(worker.pid) for worker in self._workers)


def turned(number: int) -> tuple[str, ...]:
    """The arms, whose order changes from round to round."""
    return ARMS if number % 2 else ARMS[::-1]


def added(windows: list[dict[str, list[float]]], share: float) -> float:
    """By how much a percentile of the time to first token is higher through the controller."""
    pooled = {arm: [value for window in windows for value in window[arm]] for arm in ARMS}
    return percentile(pooled["proxied"], share) - percentile(pooled["direct"], share)


def bootstrapped(windows: list[dict[str, list[float]]], share: float, draws: int = 200) -> list[float]:
    """Lower and upper bound (90 %) of `added`, by drawing windows again."""
    source = random.Random(0)
    values = [added(source.choices(windows, k=len(windows)), share) for _ in range(draws)]
    return [round(percentile(values, bound), 3) for bound in (0.05, 0.95)]


def report(bench: Bench, options: argparse.Namespace) -> dict[str, object]:
    """Everything measured, as it goes into the JSON line."""
    samples = bench.samples

    def median(kind: str, arm: str, quantity: str, digits: int = 1) -> float:
        return round(statistics.median(samples[kind, arm, quantity]), digits)

    def spread(kind: str, arm: str, quantity: str, digits: int = 1) -> list[float]:
        values = samples[kind, arm, quantity]
        return [round(min(values), digits), round(max(values), digits)]

    def ratios(kind: str) -> list[float]:
        pairs = zip(samples[kind, "proxied", "tok_s"], samples[kind, "direct", "tok_s"], strict=True)
        return [proxied / direct for proxied, direct in pairs]

    def of_kind(kind: str) -> dict[str, float]:
        return {
            "proxied_tok_s": median(kind, "proxied", "tok_s"),
            "direct_tok_s": median(kind, "direct", "tok_s"),
            "proxied_vs_direct": round(statistics.median(ratios(kind)), 3),
            "controller_cpu_us_per_token": median(kind, "proxied", "controller_us", 2),
            "messages_per_token": median(kind, "proxied", "messages_per_token", 3),
        }

    def spread_of_kind(kind: str) -> dict[str, list[float]]:
        return {
            "proxied_tok_s": spread(kind, "proxied", "tok_s"),
            "direct_tok_s": spread(kind, "direct", "tok_s"),
            "proxied_vs_direct": [round(min(ratios(kind)), 3), round(max(ratios(kind)), 3)],
            "controller_cpu_us_per_token": spread(kind, "proxied", "controller_us", 2),
            "messages_per_token": spread(kind, "proxied", "messages_per_token", 3),
        }

    return {
        **of_kind(BURST),
        "worker_cpu_us_per_token": median(BURST, "proxied", "worker_us", 2),
        "added_ttft_ms_p50": round(added(bench.windows, 0.5), 3),
        "added_ttft_ms_p99": round(added(bench.windows, 0.99), 3),
        "direct_ttft_ms_p50": round(percentile([v for window in bench.windows for v in window["direct"]], 0.5), 3),
        "direct_ttft_ms_p99": round(percentile([v for window in bench.windows for v in window["direct"]], 0.99), 3),
        "steps": of_kind(STEPS),
        "one_token_a_message": of_kind(ONE_TOKEN),
        "spread": {
            **spread_of_kind(BURST),
            "added_ttft_ms_p50": bootstrapped(bench.windows, 0.5),
            "added_ttft_ms_p99": bootstrapped(bench.windows, 0.99),
            "steps": spread_of_kind(STEPS),
            "one_token_a_message": spread_of_kind(ONE_TOKEN),
        },
        "rounds": options.rounds,
        "ttft_samples_an_arm": sum(len(window["direct"]) for window in bench.windows),
        "config": {
            "streams": options.streams,
            "tokens": options.tokens,
            "workers_of_each_kind": options.workers,
            "ttft_rate_per_s": options.rate,
            "ttft_tokens": WINDOW_TOKENS,
            "step_ms": STEP_MS,
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


def cell(value: float, spread: list[float], form: str) -> str:
    """A median with its spread."""
    low, high = (format(bound, form) for bound in spread)
    return escape(f"{value:{form}} [{low}, {high}]")


def tables(result: Any) -> list[Table]:
    """The result for people."""
    rates = Table(title="Through the controller: median of rounds, lowest and highest")
    for column in ("", "burst", f"steps of {STEP_MS} ms", "one token a message"):
        rates.add_column(column, justify="right" if column else "left", no_wrap=True)
    kinds = [(result, result["spread"])]
    kinds += [(result[kind], result["spread"][kind]) for kind in ("steps", "one_token_a_message")]
    for name, key, form in (
        ("tokens/s, proxied", "proxied_tok_s", ",.0f"),
        ("tokens/s, direct", "direct_tok_s", ",.0f"),
        ("proxied : direct", "proxied_vs_direct", ".2f"),
        ("controller µs a token", "controller_cpu_us_per_token", ".1f"),
        ("messages a token", "messages_per_token", ".3f"),
    ):
        cells = [
            f"{values[key]:{form}} [{', '.join(f'{one:{form}}' for one in spread[key])}]" for values, spread in kinds
        ]
        rates.add_row(name, *(cell.replace("[", "\\[") for cell in cells))
    first = Table(title="Time to first token, ms")
    for column in ("", "direct", "added by the controller", "90 % of resamplings"):
        first.add_column(column, justify="right" if column else "left")
    for share in ("p50", "p99"):
        low, high = result["spread"][f"added_ttft_ms_{share}"]
        values = (result[f"direct_ttft_ms_{share}"], result[f"added_ttft_ms_{share}"])
        first.add_row(share, *(f"{value:.2f}" for value in values), f"{low:.2f} to {high:.2f}")
    return [rates, first]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, for a test; its figures mean little")
    parser.add_argument("--workers", type=int, default=2, help="workers of each kind")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of saturating load")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200, help="tokens a stream")
    parser.add_argument("--windows", type=int, default=30, help="windows of arrivals, for each arm")
    parser.add_argument("--window", type=float, default=1.0, help="their length in seconds")
    parser.add_argument("--rate", type=float, default=50.0, help="arrivals a second")
    options = parser.parse_args()
    if options.quick:
        options.workers, options.rounds, options.streams, options.tokens = 1, 1, 4, 50
        options.windows, options.window = 1, 0.5
    return options


def steps(bench: Bench, options: argparse.Namespace) -> Iterator[str]:
    """Everything to be measured, one step after the other; what is being done."""
    yield "warming up"
    bench.warm_up()
    for number in range(options.rounds):
        yield f"saturating, round {number + 1} of {options.rounds}"
        bench.saturate(number)
    for number in range(options.windows):
        yield f"arrivals, window {number + 1} of {options.windows}"
        bench.window(number)


def main() -> None:
    """Measure, print a table, print JSON."""
    options = parsed()
    with Progress(console=Console(stderr=True), transient=True) as progress, Bench(options) as bench:
        task = progress.add_task("starting", total=1 + options.rounds + options.windows)
        for done, words in enumerate(steps(bench, options)):
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
