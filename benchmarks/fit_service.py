"""The simulator's model of a worker, fitted to the real engine: how long what takes, measured and as the model has it.

The engine is driven as a worker drives it, by `submit` and a sink, in one process. Rounds in turn, medians over them:

    first token   of a prompt that nothing else runs beside: text; with a new picture; with one seen before
    steps         seconds a token while 1 to 16 requests decode

To these `sim.service.Costs` is fitted by least squares of the relative residuals. What its law leaves out is measured
too and set beside what it predicts: prompts that take several steps to read, prompts sent again (the pages of the
cache are shared), long contexts, prompts at once, one that comes while others decode; and last an open-loop run,
requests arriving at random, against the simulator with the fitted costs.

The last line is one JSON object; `--output FILE` writes it to a file too.

    .venv/bin/python benchmarks/fit_service.py [--model-path FOLDER] [--device cuda] [--rounds 9] [--quick]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy
import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from service_measure import AGAIN, AT_ONCE, AT_ONCE_TOKENS, BESIDE, LONG, NEW, SEEN, SHORT, TEXT, Bench, Plan

from llava_grpc.config import EngineSettings
from llava_grpc.core.strategies import shortest_queue
from llava_grpc.sim.doors import LateBinding
from llava_grpc.sim.engine import Clock, Ended, simulate
from llava_grpc.sim.measure import percentile
from llava_grpc.sim.service import Batch, Costs, Done, Spec
from llava_grpc.sim.workload import Job, Lengths, Request, jobs, poisson

FITTED = (TEXT, NEW, SEEN)
LOAD = 0.5
"""Of the open loop: arrivals, as a share of what the costs say the engine can do when full."""
OPEN_LOOP = Lengths(prompt=100, answer=24)
"""Medians of its requests; they vary by a factor of two either way."""


def least_squares(rows: Iterable[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Of the relative residuals; what came out below 0 is left out."""
    matrix = numpy.array(list(rows)) / numpy.array(seconds)[:, None]
    used = list(range(matrix.shape[1]))
    while True:
        found = numpy.linalg.lstsq(matrix[:, used], numpy.ones(len(seconds)), rcond=None)[0]
        if min(found) >= 0:
            return [float(found[used.index(place)]) if place in used else 0.0 for place in range(matrix.shape[1])]
        used = [place for place, value in zip(used, found, strict=True) if value >= 0]


def fitted(bench: Bench) -> Costs:
    """Costs that come closest to the medians."""
    points = [point for point in bench.first.values() if point.kind in FITTED]
    request, picture, prompt_token = least_squares(
        ((1.0, float(point.kind == NEW), point.tokens) for point in points), [point.median for point in points]
    )
    short = {running: statistics.median(found) for (running, tokens), found in bench.steps.items() if tokens == SHORT}
    step, step_sequence = least_squares(((1.0, running) for running in short), list(short.values()))
    return Costs(request=request, picture=picture, prompt_token=prompt_token, step=step, step_sequence=step_sequence)


@dataclass(frozen=True)
class Line:
    """Something measured beside what the costs say of it. Seconds."""

    what: str
    measured: float
    predicted: float
    in_fit: bool = True

    @property
    def off(self) -> float:
        """How far the prediction is off, relative to what was measured."""
        return self.predicted / self.measured - 1


def lines(bench: Bench, costs: Costs) -> list[Line]:
    """All that was measured but the open loop."""
    page = bench.engine.settings.page_size
    found = []
    for point in sorted(bench.first.values(), key=lambda point: (point.kind, point.tokens)):
        new_tokens = point.tokens % page or page if point.kind == AGAIN else point.tokens
        predicted = costs.reading(new_tokens, point.kind == NEW)
        what = f"first token, {point.kind}, {point.tokens} tokens"
        found.append(Line(what, point.median, predicted, in_fit=point.kind in FITTED))
    for (running, tokens), seconds in sorted(bench.steps.items(), key=lambda item: (item[0][1], item[0][0])):
        what = f"step of {running}" + (f", contexts of {LONG}" if tokens == LONG else "")
        found.append(Line(what, statistics.median(seconds), costs.stepping(running), in_fit=tokens == SHORT))
    mean = costs.reading(AT_ONCE_TOKENS) * (AT_ONCE + 1) / 2
    what = f"first token, mean of {AT_ONCE} prompts of {AT_ONCE_TOKENS} at once"
    found.append(Line(what, statistics.median(bench.at_once), mean, in_fit=False))
    # It comes anywhere in a step; whoever waits longest waits for the rest of that step, the prompt, and its own step.
    first = costs.stepping(BESIDE) / 2 + costs.reading(LONG)
    what = f"first token, prompt of {LONG} while {BESIDE} decode"
    found.append(Line(what, statistics.median(bench.newcomer), first, in_fit=False))
    gap = costs.reading(LONG) + costs.stepping(BESIDE + 1)
    found.append(Line("longest gap of those that decode", statistics.median(bench.gaps), gap, in_fit=False))
    return found


def open_loop(bench: Bench, costs: Costs, count: int) -> list[Line]:
    """Requests as they come at random, answered by the engine and by the simulator's model of it."""
    random = Random(2)
    lengths = [
        Lengths(
            round(OPEN_LOOP.prompt * 2 ** random.uniform(-1, 1)), round(OPEN_LOOP.answer * 2 ** random.uniform(-1, 1))
        )
        for _ in range(count)
    ]
    prompt, answer = (sum(getattr(one, name) for one in lengths) / count for name in ("prompt", "answer"))
    times = poisson(LOAD / costs.seconds(prompt, answer, bench.engine.slots), random)
    watches = bench.open_loop([Request(next(times), prompt=one.prompt, answer=one.answer) for one in lengths])
    began = min(watch.sent for watch in watches)
    asked = [
        Request(watch.sent - began, prompt=watch.usage.prompt_tokens, answer=watch.usage.completion_tokens)
        for watch in watches
    ]
    done = modelled(asked, costs, bench.engine.slots)
    found = []
    for what, measured, predicted in (
        ("first token", [w.to_first_token for w in watches], [job.to_first_token for job in done]),
        ("response", [w.response for w in watches], [job.response for job in done]),
    ):
        found.append(Line(f"open loop, {what}, mean", statistics.mean(measured), statistics.mean(predicted), False))
        found.append(Line(f"open loop, {what}, p90", percentile(measured, 90), percentile(predicted, 90), False))
    return found


def modelled(requests: Sequence[Request], costs: Costs, slots: int) -> list[Job]:
    """The same requests through the simulator, with one worker."""

    def worker(clock: Clock, spec: Spec, ended: Done) -> Batch:
        return Batch(clock, spec.speed, ended, costs)

    done: list[Job] = []
    clock, ended = Clock(), Ended(done.append)
    door = LateBinding(clock, [Spec(slots=slots)], worker, shortest_queue, Random(0), ended)
    simulate(clock, jobs(requests), door, ended, heartbeat=30.0)
    return done


def table_of(title: str, found: Sequence[Line]) -> Table:
    """For people; milliseconds."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("measured, ms", "predicted, ms", "off"):
        table.add_column(column, justify="right")
    for line in found:
        table.add_row(line.what, f"{1000 * line.measured:.2f}", f"{1000 * line.predicted:.2f}", f"{line.off:+.0%}")
    return table


def as_dict(found: Sequence[Line]) -> dict[str, dict[str, float]]:
    """For JSON; milliseconds."""
    return {
        line.what: {
            "measured_ms": round(1000 * line.measured, 3),
            "predicted_ms": round(1000 * line.predicted, 3),
            "off": round(line.off, 4),
        }
        for line in found
    }


def machine(device: str) -> dict[str, object]:
    """Its class, not its name."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", default="", help="folder of a checkpoint; by default the bundled model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: the engine's own choice")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=100, help="of the open loop")
    parser.add_argument("--pixels", type=int, default=336, help="width and height of the pictures sent")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON object here too")
    parser.add_argument("--quick", action="store_true", help="a few seconds, for a test; its figures mean little")
    return parser.parse_args()


def main() -> None:
    """Measure, fit, print tables, print JSON."""
    options = parsed()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    plan = Plan(pixels=options.pixels)
    if options.quick:
        options.rounds, options.requests = 1, 8
        plan = Plan((16, 128, 512), (768,), picture_text=(16,), running=(1, 4), answer=24, pixels=options.pixels)
    settings = EngineSettings(
        model_path=options.model_path,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        slots=options.slots,
    )
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=options.rounds + 2)
        bench = Bench(settings, plan)
        bench.round()
        bench.forget()  # that one was for warming up
        for _ in range(options.rounds):
            progress.advance(task)
            bench.round()
        costs = fitted(bench)
        found = lines(bench, costs)
        progress.advance(task)
        loop = open_loop(bench, costs, options.requests)
        card, speed = bench.engine.card, bench.engine.speed
        bench.engine.close()
    fit, beyond = [line for line in found if line.in_fit], [line for line in found if not line.in_fit]
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(options.device),
        "model": card.name,
        "dtype": card.fingerprint.dtype,
        "threads": torch.get_num_threads(),
        "speed_tok_s": round(speed, 1),
        "rounds": options.rounds,
        "costs": {name: float(f"{value:.4g}") for name, value in asdict(costs).items()},
        "worst_off": round(max(abs(line.off) for line in fit), 4),
        "fitted": as_dict(fit),
        "beyond": as_dict(beyond),
        "open_loop": as_dict(loop),
    }
    console = Console()
    if not console.is_terminal:
        console.width = 100
    console.print(table_of("what the costs are fitted to", fit))
    console.print(table_of("what the model leaves out, and a run of requests at random times", [*beyond, *loop]))
    console.print({name: f"{1000 * value:.4g} ms" for name, value in asdict(costs).items()})
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
