"""`python -m drills`: plays the drills and reports; the last line is one JSON object. Exit code 1 where a demand is not
met or a drill could not be played to its end."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from random import SystemRandom

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from drills import DRILLS
from drills.outcome import Outcome, summary, table
from drills.stage import Stage


async def play(names: list[str], stage: Stage, console: Console) -> list[Outcome]:
    """One after the other. SIGTERM ends them as Ctrl-C does."""
    me = asyncio.current_task()
    assert me is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    outcomes = []
    for name in names:
        began = time.monotonic()
        try:
            outcome = await DRILLS[name](stage)
        except Exception as error:  # the others are worth playing all the same
            console.print_exception()
            outcome = Outcome(name, broken=[f"could not be played to its end: {type(error).__name__}, see above"])
        outcome.seconds = time.monotonic() - began
        console.print(f"{name}: {outcome.verdict} ({outcome.seconds:.0f} s)", markup=False, highlight=False)
        outcomes.append(outcome)
    return outcomes


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m drills", description="Faults on a fleet of real processes.")
    parser.add_argument("--quick", action="store_true", help="fewer faults and streams; times are not judged")
    parser.add_argument("--seed", type=int, help="of everything that is drawn; printed where it was not given")
    parser.add_argument("--only", metavar="DRILL", action="append", choices=DRILLS, help=f"of {', '.join(DRILLS)}")
    options = parser.parse_args()
    seed = SystemRandom().randrange(2**32) if options.seed is None else options.seed
    console = Console(width=None if Console().is_terminal else 160)
    console.print(f"seed {seed}", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        try:
            outcomes = asyncio.run(play(options.only or list(DRILLS), Stage(seed, options.quick, progress), console))
        except (KeyboardInterrupt, asyncio.CancelledError):
            console.print("interrupted: every process has been ended")
            return 130
    console.print(table(outcomes))
    print(json.dumps(summary(outcomes, seed)))
    return int(any(one.broken for one in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
