"""Many histories: `python -m llava_grpc.testing.histories.soak --histories 100000 --seed 1`.

A history that goes wrong is named by its seed; `--seed N --verbose` plays that one again and prints all that happens in
it. Exit codes: 0 all held, 1 some did not.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llava_grpc.testing.histories.history import HistoryError, draw_script, run_history

BATCH = 20
"""Histories that a process is given at a time."""


@dataclass(slots=True)
class Tally:
    """What many histories came to. `fewest_*`: of any one of them."""

    histories: int = 0
    events: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    """Answers that went on elsewhere after their first token."""
    fewest_events: int = sys.maxsize
    fewest_requests: int = sys.maxsize
    fewest_faults: int = sys.maxsize
    broken: dict[int, str] = field(default_factory=dict)
    """What went wrong, by seed."""

    def add(self, other: Tally) -> None:
        """Count those of another in."""
        self.histories += other.histories
        self.events += other.events
        self.seconds += other.seconds
        self.faults += other.faults
        self.outcomes += other.outcomes
        self.failures += other.failures
        self.resumed += other.resumed
        self.fewest_events = min(self.fewest_events, other.fewest_events)
        self.fewest_requests = min(self.fewest_requests, other.fewest_requests)
        self.fewest_faults = min(self.fewest_faults, other.fewest_faults)
        self.broken |= other.broken

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{name} {count:,}" for name, count in counts.most_common()) or "none"

        return "\n".join(
            [
                f"{self.histories:,} histories, {self.events:,} events in {self.seconds:,.0f} s of virtual time",
                f"requests: {listed(self.outcomes)}; {self.resumed:,} answers resumed",
                f"users asked again for: {listed(self.failures)}",
                f"faults: {listed(self.faults)}",
            ]
        )


def run_batch(seeds: Sequence[int]) -> Tally:
    """Play the histories of some seeds, one after the other."""
    tally = Tally()
    for seed in seeds:
        script = draw_script(seed)
        tally.histories += 1
        tally.faults.update(fault.kind.value for fault in script.faults)
        tally.fewest_requests = min(tally.fewest_requests, len(script.orders))
        tally.fewest_faults = min(tally.fewest_faults, len(script.faults))
        try:
            history = run_history(script)
        except HistoryError as error:
            tally.broken[seed] = str(error)
            continue
        tally.events += history.events
        tally.seconds += history.seconds
        tally.outcomes += history.outcomes
        tally.failures += history.failures
        tally.resumed += sum(asked.resumes > 0 for asked in history.asked)
        tally.fewest_events = min(tally.fewest_events, history.events)
    return tally


def run_many(seeds: Sequence[int], processes: int = 0) -> Iterator[Tally]:
    """The tallies of batches as they are done, over so many processes (0: one a core)."""
    batches = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_batch, batches)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--histories", type=int, default=1, help="how many (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the first; the others follow on (default 1)")
    parser.add_argument("--processes", type=int, default=0, help="default: one a core")
    parser.add_argument("--verbose", action="store_true", help="print the one history of --seed, event by event")
    options = parser.parse_args(arguments)
    if options.verbose:
        return _show(options.seed)
    tally, console = Tally(), Console(stderr=True)
    columns = (TextColumn("histories"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=options.histories)
        for some in run_many(range(options.seed, options.seed + options.histories), options.processes):
            tally.add(some)
            progress.advance(task, some.histories)
            for what in some.broken.values():
                console.print(what, style="red", markup=False)
    print(tally)
    print(f"{len(tally.broken)} went wrong" + (f": seeds {sorted(tally.broken)}" if tally.broken else ""))
    return 1 if tally.broken else 0


def _show(seed: int) -> int:
    script = draw_script(seed)
    print(script)
    try:
        history = run_history(script, verbose=True)
    except HistoryError as error:
        print(*error.log, error, sep="\n")
        return 1
    print(*history.log, sep="\n")
    print(f"{history.events} events in {history.seconds:.1f} s of virtual time; requests: {dict(history.outcomes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
