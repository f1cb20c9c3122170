"""What does a request notice when workers die, or only seem to?"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from llava_grpc.sim.faults import Faults, draw
from llava_grpc.sim.fleets import after_warm_up, load_of, peak_rate, run
from llava_grpc.sim.measure import percentile
from llava_grpc.sim.questions import Question
from llava_grpc.sim.report import Cell, Report
from llava_grpc.sim.service import Spec
from llava_grpc.sim.workload import chats

EIGHT = (Spec(slots=8),) * 8
LOAD = 0.7
EVERY, AWAY = 60.0, 150.0
"""Seconds from one worker's return to the next fault, on average, and from a fault to the return."""


def _deaths(noticed: float) -> Callable[[float, Random], Faults]:
    return lambda until, random: Faults(draw(len(EIGHT), until, random, every=EVERY, away=AWAY), noticed)


def _silences(until: float, random: Random) -> Faults:
    return Faults(draw(len(EIGHT), until, random, every=EVERY, away=AWAY, dies=False))


CASES: dict[str, Callable[[float, Random], Faults]] = {
    "none": lambda until, random: Faults(),
    "dies, told at once": _deaths(0.0),
    "dies, told in 10 s": _deaths(10.0),
    "dies in silence": _deaths(math.inf),
    "heartbeats lost": _silences,
}


def ask_failures(question: Question) -> Report:
    """Eight workers at 70 % load, of which one is gone for most of the time."""
    random = Random(f"{question.seed} requests")
    lengths = chats(question.requests, random)
    requests = load_of(lengths, LOAD * peak_rate(EIGHT, lengths), random, arrivals=question.arrivals)
    rows: list[tuple[Cell, ...]] = []
    curves: dict[str, list[float]] = {}
    for case, make in CASES.items():
        faults = make(requests[-1].at, Random(f"{question.seed} faults"))
        for name in question.strategies:
            done = run(name, requests, EIGHT, seed=question.seed, faults=faults, progress=question.progress)
            settled = [job for job in after_warm_up(done) if job.error is None]
            first = [job.to_first_token for job in settled]
            curves[f"{name}, {case}"] = first
            rows.append(
                (
                    case,
                    name,
                    sum(job.retries for job in done),
                    sum(job.declined for job in done),
                    sum(job.error is not None for job in done),
                    *(percentile(first, p) for p in (99, 99.9)),
                    percentile([job.response for job in settled], 99),
                )
            )
    return Report(
        preset="failures",
        seed=question.seed,
        requests=question.requests,
        columns=(
            "fault",
            "strategy",
            "retries",
            "declined",
            "failed",
            "first_token_p99",
            "first_token_p999",
            "answer_p99",
        ),
        rows=rows,
        notes=(
            f"8 workers of 8 slots, 70 % load; a worker is gone for {AWAY:g} s, and {EVERY:g} s on average after its "
            "return the next goes. In silence: three heartbeats of 30 s are missed before it is given up; two of 15 s "
            "where a rule chooses at once. Seconds.",
            "What a lost worker was doing begins again elsewhere, from scratch: its first token is that of the last "
            "attempt. Declined: a worker had no slot left, whatever the register said.",
        ),
        curves=curves,
        curve_label="time to first token",
    )
